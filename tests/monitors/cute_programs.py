"""Programs of the CuTe DSL, for the real library and for its stand-in. They compute and print nothing."""

# mypy: ignore-errors
from __future__ import annotations

import cutlass
from cutlass import cute

STEP = 1


@cute.jit
def count(n: cutlass.Int32) -> None:
    m = n + 1  # noqa: F841


@cute.jit
def scale(n: cutlass.Int32, factor: cutlass.Constexpr[int], offset: cutlass.Float32 = 0.5) -> None:
    m = n + factor  # noqa: F841


@cute.jit
def reads_a_global(n: cutlass.Int32) -> None:
    m = n + STEP  # noqa: F841


@cute.jit
def broken(n: cutlass.Int32) -> None:
    m = n + undefined  # noqa: F821, F841


class Tile:
    def __init__(self, rows: int) -> None:
        self.rows = rows

    @cute.jit
    def __call__(self, n: cutlass.Int32) -> None:
        m = n + self.rows  # noqa: F841
