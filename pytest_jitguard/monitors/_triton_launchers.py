"""Launchers in C: up to 3.6, Triton compiles one when a signature is launched first, and not when it is compiled.

So a kernel that was warmed by `.warmup()` alone still runs the C compiler in the first request. Since 3.7 one launcher
serves all kernels.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from pytest_jitguard.monitors._frames import find_frame

BUILDER = "triton.runtime.build"
"""The module whose `_build` runs the C compiler, if the launcher is not in Triton's cache."""

REASON = "its launcher, in C: up to 3.6 Triton compiles that at the first launch of a signature, not in .warmup()"

_NAME = "__triton_launcher"
"""How Triton calls each launcher; its driver's own helpers have other names."""

_NEAR = 12
"""How many frames may lie between the C compiler and `CompiledKernel._init_handles`."""


def are_compiled() -> bool:
    """Tell whether this Triton compiles launchers."""
    drivers = (sys.modules.get(f"triton.backends.{backend}.driver") for backend in ("nvidia", "amd"))
    return any(hasattr(driver, "make_launcher") for driver in drivers)


def launched(name: object, caller: FrameType) -> Any:
    """Return the `CompiledKernel` whose launcher is to be built; None if something else is."""
    compiler = sys.modules.get("triton.compiler.compiler")
    handles = getattr(getattr(compiler, "CompiledKernel", None), "_init_handles", None)
    if name != _NAME or handles is None:
        return None
    frame = find_frame(caller, (handles.__code__,), _NEAR)
    return frame.f_locals.get("self") if frame is not None else None
