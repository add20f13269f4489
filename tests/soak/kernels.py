"""Kernels of every kind that a serving test launches: plain, with heuristics, autotuned."""
# ruff: noqa: ANN001 - annotations of kernel parameters are instructions to Triton
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def scale(x, y, n, BLOCK: tl.constexpr) -> None:
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < n) * 2, mask=at < n)


@triton.heuristics({"EVEN": lambda args: args["n"] % args["BLOCK"] == 0})
@triton.jit
def shift(x, y, n, BLOCK: tl.constexpr, EVEN: tl.constexpr) -> None:
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if EVEN:
        tl.store(y + at, tl.load(x + at) + 1)
    else:
        tl.store(y + at, tl.load(x + at, mask=at < n) + 1, mask=at < n)


@triton.autotune(configs=[triton.Config({"BLOCK": block}) for block in (64, 128)], key=["n"])
@triton.jit
def square(x, y, n, BLOCK: tl.constexpr) -> None:
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < n)
    tl.store(y + at, value * value, mask=at < n)


BLOCKS = (64, 128, 256)
SIZES = (1, 100, 1024)


def launch_all() -> int:
    """Launch every warmed variant once; return how many launches that were."""
    launches = 0
    for n in SIZES:
        x, y = torch.empty(n, device="cuda"), torch.empty(n, device="cuda")
        grid = (1,)
        for block in BLOCKS:
            scale[grid](x, y, n, BLOCK=block)
            shift[grid](x, y, n, BLOCK=block)
            launches += 2
        square[grid](x, y, n)
        launches += 1
    return launches
