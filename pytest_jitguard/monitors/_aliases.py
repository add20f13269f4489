"""Names that others took of a library's functions before the guard came: `from library import compile`.

Those that are names of modules are replaced together with the library's own. What else holds a function (a closure, a
default, an attribute of a class) cannot be replaced safely, and is only told.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import CellType, FrameType, FunctionType, ModuleType
from typing import Any

from pytest_jitguard.patching import _LINK

_ATTEMPTS = 5
"""How often a module is looked through whose names change meanwhile."""

_MOST_HOLDERS = 3
"""How many holders of a function are named."""

_HAS_ATTRIBUTES = 1 << 9
"""Flag of classes that a `class` statement made (Py_TPFLAGS_HEAPTYPE). Up to Python 3.10 a dictionary holds what their
objects have."""


class Aliases:
    """Replaces names of functions in all modules, and puts them back."""

    def __init__(self) -> None:
        self._wanted: dict[int, Any] = {}
        self._replaced: list[tuple[dict[str, Any], str, Any]] = []
        self._given: list[Any] = []

    def want(self, owner: Any, original: Any, ours: Any) -> None:
        """Have names of a module's function replaced by `ours`, which stands in the module already.

        A class has other uses than being called, and what another library defined is that library's: both are left.
        """
        if not issubclass(type(owner), ModuleType) or isinstance(original, type):
            return
        if _top(getattr(original, "__module__", None)) == _top(names_of(owner).get("__name__")):
            self._wanted[id(original)] = ours
            self._given.append(ours)

    def adopt(self, owner: Any, name: str, ours: Any) -> None:
        """Put this name back as well: somebody took ours by it."""
        if issubclass(type(owner), ModuleType):
            self._replaced.append((names_of(owner), name, ours))

    def replace(self, within: str = "") -> None:
        """Replace what is wanted in all modules, or in those of one package."""
        wanted, self._wanted = self._wanted, {}
        for module in _modules(within) if wanted else ():
            names = names_of(module)
            for name, ours in _found(names, wanted):
                names[name] = ours
                self._replaced.append((names, name, ours))

    def put_back(self) -> None:
        """Put back what still stands where it was put: to what would be called now, should others have come or gone."""
        while self._replaced:
            names, name, ours = self._replaced.pop()
            if names.get(name) is ours:
                names[name] = original_of(ours)
        given, self._given = {id(ours): ours for ours in self._given}, []
        for module in _modules("") if given else ():  # modules that were imported meanwhile took ours
            names = names_of(module)
            for name, ours in _found(names, given):
                names[name] = original_of(ours)


def original_of(ours: Any) -> Any:
    """Return what a replacement of ours calls."""
    return vars(ours)[_LINK].original


def names_of(module: ModuleType) -> dict[str, Any]:
    """Return what a module holds, past the `__getattribute__` of modules that load themselves when they are asked."""
    names: dict[str, Any] = vars(ModuleType)["__dict__"].__get__(module)
    return names


def _modules(within: str) -> Iterator[ModuleType]:
    """Yield what is imported; `sys.modules` also has None and objects that only pass for modules."""
    for name, module in list(sys.modules.items()):
        if issubclass(type(module), ModuleType) and (not within or name == within or name.startswith(f"{within}.")):
            yield module


def _found(names: dict[str, Any], wanted: Mapping[int, Any]) -> list[tuple[str, Any]]:
    """Return the names of what is wanted; none if other threads do not leave them alone for a moment."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(RuntimeError):  # the dictionary changed its size
            if wanted.keys().isdisjoint(map(id, names.values())):
                return []
            return [(name, wanted[id(value)]) for name, value in list(names.items()) if id(value) in wanted]
    return []


def _top(name: object) -> str:
    return name.partition(".")[0] if isinstance(name, str) else ""


# -- what is no name of a module ---------------------------------------------------------------------------------------


def holders(ours: Any) -> list[str]:
    """Say who else holds the function that `ours` replaced, a few of them. What is frozen is not found.

    Takes about 0.3 s per million objects, and as much again if there is somebody.
    """
    link = vars(ours)[_LINK]
    known = {id(link), id(vars(link)), id(vars(ours))}
    held = [thing for thing in gc.get_referrers(link.original) if id(thing) not in known and _may_call(thing)]
    return list(dict.fromkeys(_described(held, link.original)))[:_MOST_HOLDERS] if held else []


def _may_call(thing: Any) -> bool:
    """Tell what may call it from what only refers to it: a running frame, a wrapper of ours, the library's own module.

    A list may be anybody's for a moment. So may a tuple, but those that are a function's defaults are found by it.
    """
    if type(thing) is dict:
        return _LINK not in thing and not ("around" in thing and "raw" in thing) and not _is_module(thing)
    return not (issubclass(type(thing), (FrameType, list)) or type(thing).__name__ == "_Link")


def _is_module(names: Mapping[str, Any]) -> bool:
    module = sys.modules.get(names["__name__"]) if isinstance(names.get("__name__"), str) else None
    return module is not None and issubclass(type(module), ModuleType) and names_of(module) is names


def _described(held: Iterable[Any], original: Any) -> Iterator[str]:
    ids = {id(thing) for thing in held}
    # Of objects only the types are looked at: to ask one for anything may run code of its own.
    for thing in gc.get_objects():
        if type(thing) is FunctionType:
            found = ids.intersection(map(id, _parts(thing)))
            ids -= found
            if found:
                yield _path(thing)
        elif issubclass(type(thing), type) and _has(thing, original):
            yield _path(thing)
    for thing in held:
        if id(thing) in ids:
            yield from _described_object(thing)


def _described_object(thing: Any) -> Iterator[str]:
    """Describe what is no part of a function. A class has a dictionary with `__module__`, and is described itself."""
    if type(thing) is functools.partial:
        yield "a functools.partial"
    elif type(thing) is not dict:
        if not issubclass(type(thing), (tuple, CellType)):
            yield f"an object of {_path(type(thing))}"
    elif "__builtins__" in thing:
        yield f"a module {thing.get('__name__')} that is not in sys.modules"
    elif "__module__" not in thing:
        owners = [type(owner) for owner in gc.get_referrers(thing) if type(owner).__flags__ & _HAS_ATTRIBUTES]
        yield f"an object of {_path(owners[0])}" if owners else "a dictionary"


def _parts(function: FunctionType) -> Iterator[Any]:
    yield from function.__closure__ or ()
    yield function.__defaults__
    yield function.__kwdefaults__


def _has(kind: type, original: Any) -> bool:
    return any(
        value is original or (type(value) is staticmethod and value.__func__ is original)
        for value in list(vars(type)["__dict__"].__get__(kind).values())
    )


def _path(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
