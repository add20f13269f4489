"""A stand-in for the CuTe DSL 4.8: its layers from a call down to the compiler, its keys and caches, and no MLIR.

A program is traced on each call, hashed, looked up in memory and on disk, and compiled if it is nowhere. Plain Python
values become part of a program's name, and so of its hash; values of the DSL's own types do not. `cute.compile` looks
nothing up. tests/heavy runs the same scenes against the real library.
"""

from __future__ import annotations

from cutlass.numbers import Boolean as Boolean
from cutlass.numbers import Constexpr as Constexpr
from cutlass.numbers import Float32 as Float32
from cutlass.numbers import Int32 as Int32

__version__ = "4.8.1"

from cutlass import cute as cute
