"""What Dynamo keeps between compiles: cache entries by code object, and the sizes that it has learned to be dynamic."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Hashable, Iterator, Mapping
from types import CodeType, ModuleType
from typing import Any


class Resident:
    """Counts cache entries against announced compiles, by code object.

    `reset()` and dead guards take entries away, so that there may be fewer than were announced, and never more.
    """

    def __init__(self) -> None:
        self._announced: dict[int, tuple[weakref.ref[CodeType], int]] = {}
        self._module: ModuleType | None = None

    def watch(self, module: ModuleType) -> None:
        """Take what is there already for announced: it was compiled before we came."""
        self._module = module
        for code in self._codes():
            self._count(code, len(_entries(code)))

    def announce(self, code: CodeType) -> None:
        """Note that an event told of one more variant."""
        self._count(code, 1)

    def announced(self, code: CodeType) -> int:
        """Return how many variants of a code events told of."""
        known, number = self._announced.get(id(code), (None, 0))
        return number if known is not None and known() is code else 0

    def entries(self) -> dict[Hashable, str]:
        """Return a token for every cache entry, with the name of its function."""
        return {id(entry): _name(code) for code in self._codes() for entry in _compiled(code)}

    def unannounced(self) -> list[str]:
        """Return the names of functions of which more is resident than events told of."""
        return [_name(code) for code in self._codes() if len(_entries(code)) > self.announced(code)]

    def _count(self, code: CodeType, more: int) -> None:
        self._announced[id(code)] = (weakref.ref(code), self.announced(code) + more)

    def _codes(self) -> Iterator[CodeType]:
        """Yield the code objects that Dynamo has been asked for since its last reset."""
        seen = getattr(getattr(self._module, "input_codes", None), "seen", ())
        for reference in list(seen):
            code = reference()
            if code is not None:
                yield code


def _entries(code: CodeType) -> list[Any]:
    look = getattr(sys.modules.get("torch._C._dynamo.eval_frame"), "_debug_get_cache_entry_list", None)
    return list(look(code)) if look else []


def _compiled(code: CodeType) -> list[Any]:
    """Return the code that Dynamo made of a code: it lives as long as its cache entry, whose wrapper does not."""
    return [entry.code for entry in _entries(code) if hasattr(entry, "code")]


def _name(code: CodeType) -> str:
    return str(getattr(code, "co_qualname", code.co_name))


# -- automatic dynamic shapes ------------------------------------------------------------------------------------------


def dynamic_dims(code: CodeType) -> dict[str, tuple[int, ...]]:
    """Return by argument the dimensions that Dynamo takes for dynamic, since it saw them change; -1 for a number."""
    pgo = sys.modules.get("torch._dynamo.pgo")
    states, make = getattr(pgo, "_CODE_STATE", None), getattr(getattr(pgo, "CodeId", None), "make", None)
    if states is None or make is None:
        return {}
    entries = getattr(states.get(make(code)), "automatic_dynamic", {})
    found = {_source(name): tuple(_dynamic(entry)) for name, entry in entries.items()}
    return {name: dims for name, dims in found.items() if dims}


def _source(name: str) -> str:
    """Return an argument's name from Dynamo's, which is `L['x']`."""
    return name[3:-2] if name.startswith("L['") and name.endswith("']") and name.count("[") == 1 else name


def _dynamic(entry: Any) -> Iterator[int]:
    size = getattr(entry, "size", None)
    marks = [_is_mark(step) for step in size] if isinstance(size, tuple) else []
    yield from (dim for dim, dynamic in enumerate(marks) if dynamic)
    if not isinstance(size, tuple) and _is_mark(getattr(entry, "scalar", None)) and not _is_mark(size, "AutoUnset"):
        yield -1


def _is_mark(value: Any, name: str = "AutoDynamic") -> bool:
    return type(value).__name__ == name


def newly_dynamic(before: Mapping[str, tuple[int, ...]], after: Mapping[str, tuple[int, ...]]) -> str:
    """Say what became dynamic by a compile, empty if nothing did."""
    new = [(name, dim) for name, dims in after.items() for dim in dims if dim not in before.get(name, ())]
    told = [name if dim < 0 else f"{name} at dim {dim}" for name, dim in new]
    if not told:
        return ""
    return f"{' and '.join(told)} changed, so the new variant is for all values there but 0 and 1 (automatic dynamic)"
