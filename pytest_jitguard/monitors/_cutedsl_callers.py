"""Who asked the CuTe DSL for a compile or a load: libraries that keep a cache of their own name it better than it."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from pytest_jitguard.core.keys import Component, SpecializationKey
from pytest_jitguard.monitors._cutedsl_keys import Named, components, named
from pytest_jitguard.monitors._frames import find_frame, frames_of

_DEEPEST = 25


@dataclass(frozen=True)
class Caller:
    """One miss of a library's cache: the function that makes the kernel, its arguments, the hash they are kept by.

    `frame` is who called the library. It must not outlive the miss, since a frame that is kept keeps its locals.
    """

    named: Named
    frame: FrameType
    arguments: tuple[Component, ...]
    artifact_hash: str | None

    def key(self, target: tuple[Component, ...]) -> SpecializationKey:
        """Return the key that the library looks up, with the target."""
        return SpecializationKey((*self.arguments, *target))


def cached_by(frame: FrameType) -> Caller | None:
    """Return the miss of quack's `jit_cache` that led here, None if it was none."""
    code = _quack_code()
    found = find_frame(frame, (code,), _DEEPEST) if code else None
    if found is None:
        return None
    held = found.f_locals
    function, args, kwargs = held["fn"], held["args"], held["kwargs"]
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    told = [c for name, value in bound.arguments.items() for c in components(name, value, "constexpr")]
    return Caller(named(function), found.f_back or found, tuple(told), held.get("sha"))


def _quack_code() -> CodeType | None:
    """Return the code that all functions decorated with `jit_cache` share."""
    decorator = inspect.unwrap(getattr(sys.modules.get("quack.cache.jit"), "jit_cache", lambda: None))
    inner = getattr(decorator, "__code__", None)
    constants = inner.co_consts if inner else ()
    return next((c for c in constants if isinstance(c, CodeType) and c.co_name == "wrapper"), None)


def program_above(frame: FrameType) -> Any:
    """Return the function that is being compiled, by the nearest frame of the DSL that holds it."""
    for above in list(frames_of(frame))[:_DEEPEST]:
        if "funcBody" in above.f_code.co_varnames:
            return above.f_locals.get("funcBody")
    return None
