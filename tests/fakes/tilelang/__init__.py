"""A stand-in for TileLang 0.1.15: its layers from a decorated factory down to the compiler, its caches, and no TVM.

A factory's kernels are kept by the arguments it was called with; below that, programs are kept by a hash of their text,
in memory and on disk, without a lock while one is compiled. tests/heavy runs the same scenes against the real library.
"""

from __future__ import annotations

__version__ = "0.1.15"

from tilelang import language as language
from tilelang.autotuner import autotune as autotune
from tilelang.autotuner import tuner as _tuner  # noqa: F401
from tilelang.jit import compile as compile

# As in the original, a function hides the module of its name.
from tilelang.jit import jit as jit
