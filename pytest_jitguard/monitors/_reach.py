"""Whether a callable still leads to ours: replaced is not lost, as long as whoever came on top passes calls on."""

from __future__ import annotations

from collections.abc import Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

_FARTHEST = 6
"""How many steps are followed from what is in a library's place to what was there before."""

_MOST = 2_000


def leads_to(start: Any, ours: Any) -> bool:
    """Tell whether a callable is `ours`, or holds it where a wrapper holds what it wraps.

    Followed are `__wrapped__`, closures, defaults, bound and partial functions, attributes, containers, and the globals
    that a function's code names.
    """
    seen: set[int] = set()
    nearest = [start]
    for _ in range(_FARTHEST):
        if any(thing is ours for thing in nearest):
            return True
        seen.update(map(id, nearest))
        found = {id(held): held for thing in nearest for held in _held_by(thing) if id(held) not in seen}
        nearest = list(found.values())
        if not nearest or len(seen) > _MOST:
            return False
    return any(thing is ours for thing in nearest)


def _held_by(thing: Any) -> Iterator[Any]:
    """Yield what a callable may call: parts of functions and of objects, nothing of modules, texts and numbers."""
    if isinstance(thing, (ModuleType, type, str, bytes, int, float, BuiltinFunctionType)) or thing is None:
        return
    if isinstance(thing, MethodType):
        yield from (thing.__func__, thing.__self__)
    elif isinstance(thing, FunctionType):
        yield from _held_by_function(thing)
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield from thing
    elif isinstance(thing, dict):
        yield from thing.values()
    else:
        yield from _attributes(thing)
        call = vars(type(thing)).get("__call__")
        if isinstance(call, FunctionType):
            yield call


def _held_by_function(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()
    yield from (function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _attributes(thing: Any) -> Iterator[Any]:
    """Yield what an object holds: a `functools.partial` its function, an object of a rival its original."""
    for name in ("func", "__func__", "__wrapped__", "args", "keywords"):
        held = getattr(type(thing), name, None)
        if held is not None:
            yield getattr(thing, name, None)
    yield from getattr(thing, "__dict__", {}).values()
    for kind in type(thing).__mro__:
        slots = vars(kind).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            yield getattr(thing, slot, None)
