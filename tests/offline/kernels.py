# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"
"""Kernels to launch. Unannotated: Triton reads annotations as types."""

from typing import Any

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


def make_copy() -> Any:
    """Return a copy kernel with in-process caches of its own."""

    @triton.jit
    def copy(source, target, n, BLOCK: tl.constexpr):
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(target + i, tl.load(source + i, mask=i < n), mask=i < n)

    return copy


def make_tuned(**options: Any) -> Any:
    """Return the copy kernel tuned over two block sizes."""
    configs = [triton.Config({"BLOCK": 64}), triton.Config({"BLOCK": 128}, num_warps=8)]
    return triton.autotune(configs=configs, key=["n"], **options)(make_copy())


def make_heuristic() -> Any:
    """Return the copy kernel with a block size from its arguments."""
    return triton.heuristics({"BLOCK": lambda args: 64 if args["n"] % 64 == 0 else 32})(make_copy())


@triton.jit
def descriptor_argument(descriptor, target, SIZE: tl.constexpr):
    rows, columns = tl.arange(0, SIZE), tl.arange(0, SIZE)
    tl.store(target + rows[:, None] * SIZE + columns[None, :], descriptor.load([0, 0]))


@triton.jit
def descriptor_on_device(source, target, SIZE: tl.constexpr):
    descriptor = tl.make_tensor_descriptor(source, [64, 64], [64, 1], [SIZE, SIZE])
    rows, columns = tl.arange(0, SIZE), tl.arange(0, SIZE)
    tl.store(target + rows[:, None] * SIZE + columns[None, :], descriptor.load([0, 0]))


@triton.jit
def big_tiles(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STEPS: tl.constexpr):
    total = tl.zeros((M, N), tl.float32)
    for step in tl.range(0, STEPS, num_stages=4):
        x = tl.load(a + tl.arange(0, M)[:, None] * K * STEPS + tl.arange(0, K)[None, :] + step * K)
        y = tl.load(b + tl.arange(0, K)[:, None] * N + tl.arange(0, N)[None, :] + step * K * N)
        total = tl.dot(x, y, total)
    tl.store(c + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :], total)


@gluon.jit
def gluon_copy(source, target, BLOCK: gl.constexpr, WARP: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1], [WARP], [4], [0])
    i = gl.arange(0, BLOCK, layout)
    gl.store(target + i, gl.load(source + i))


@triton.jit
def add_in_loop(x, y, out, count, n, BLOCK: tl.constexpr):
    pointers = out + tl.arange(0, BLOCK)
    for _ in range(0, n, BLOCK):
        tl.store(pointers, tl.load(x + tl.arange(0, BLOCK)) + tl.load(y))
        pointers += BLOCK
    tl.atomic_add(count, 1)
