# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""Kernels to launch. Unannotated: Triton reads annotations as types."""

import enum
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import torch  # noqa: F401 - for launches written as text
import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@triton.jit
def copy(source, target, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + i, tl.load(source + i, mask=i < n), mask=i < n)


@triton.jit
def put(x, value, C: tl.constexpr):
    pass


@triton.jit
def put_many(x, y, i, j, flag, number, nothing, C: tl.constexpr, D: tl.constexpr):
    tl.store(x, 1)


@triton.jit(do_not_specialize=["n"])
def loose(x, n):
    tl.store(x, n)


@triton.jit(do_not_specialize_on_alignment=["x"])
def loose_pointer(x, n):
    tl.store(x, n)


@triton.jit
def annotated(x, n: tl.int64):
    tl.store(x, n)


@triton.jit
def pair_sum(x, pair, C: tl.constexpr):
    pass


@triton.jit
def described(descriptor, target, SIZE: tl.constexpr):
    tl.store(target, 1)


@triton.jit
def helper(a):
    return a + 1


@triton.jit
def calls(x, F: tl.constexpr):
    tl.store(x, F(1))


@triton.jit
def wrong(x, C: tl.constexpr):
    tl.static_assert(C > 10, "C is too small")
    tl.store(x, C)


@triton.jit
def broken(x):
    tl.store(x, no_such_name)  # type: ignore[name-defined]  # noqa: F821


@gluon.jit
def gluon_put(x, n, C: gl.constexpr):
    gl.store(x, n)


@gluon.jit
def gluon_pass(x, n, C: gl.constexpr):
    pass


def make_copy(bias: Any = 0) -> Any:
    captured = tl.constexpr(bias)

    @triton.jit
    def copy(source, target, n, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(target + i, tl.load(source + i, mask=i < n) + captured, mask=i < n)

    return copy


CONFIGS = [triton.Config({"BLOCK": 64}), triton.Config({"BLOCK": 128}, num_warps=8)]


@triton.autotune(configs=CONFIGS, key=["n"])
@triton.jit
def tuned(source, target, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + i, tl.load(source + i, mask=i < n), mask=i < n)


@triton.heuristics({"BLOCK": lambda args: 64 if args["n"] % 64 == 0 else 32})
@triton.jit
def guessed(source, target, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + i, tl.load(source + i, mask=i < n), mask=i < n)


@triton.autotune(configs=CONFIGS, key=["n"])
@triton.heuristics({"EVEN": lambda args: args["n"] % 2 == 0})
@triton.jit
def tuned_guess(source, target, n, EVEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + i, tl.load(source + i, mask=i < n), mask=i < n)


def make_tuned(configs: Any = None, **options: Any) -> Any:
    return triton.autotune(configs=configs or CONFIGS, key=["n"], **options)(make_copy())


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Shape:
    rows: int
    dtype: Any = tl.float16


Point = namedtuple("Point", "x y")  # noqa: PYI024 - the fields are whatever the launch gives


class Identity:
    """Hashes by identity: a new one is a new key."""


class Grumpy:
    """Says nothing about itself."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


class Verbose:
    def __init__(self, n: int) -> None:
        self.n = n

    def __repr__(self) -> str:
        return "v" * 100_000 + str(self.n)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Verbose) and self.n == other.n

    def __hash__(self) -> int:
        return hash(self.n)


def make_helper(amount: int) -> Any:
    captured = tl.constexpr(amount)

    @triton.jit
    def helper(a):
        return a + captured

    return helper
