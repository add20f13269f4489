"""Triton's in-process lookups: what is resident, what came without an event, and how to take variants out and back."""

from __future__ import annotations

import gc
import weakref
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

_PARKED = "_jitguard_parked"
"""Attribute of a kernel function that keeps forgotten variants alive exactly as long as its own lookup would."""


@dataclass(eq=False)
class Slot:
    """The token of one variant or autotune result: a place in a lookup, whatever is in it at the moment.

    Compares by identity, and holds neither the kernel nor its function: a kernel made in a factory dies as it would.
    """

    shelf: _Shelf
    key: Any
    parked: Callable[[], Any] | None = None


@dataclass(eq=False)
class _Shelf:
    """One lookup of one owner, as last seen: that of a kernel function for one device, or that of an autotuner."""

    owner: weakref.ref[Any]
    device: int | None
    name: str
    slots: dict[Any, Slot] = field(default_factory=dict)
    here: list[Slot] = field(default_factory=list)
    keys: list[Any] | None = None
    ids: list[int] = field(default_factory=list)

    def lookup(self) -> dict[Any, Any]:
        owner = self.owner()
        if self.device is None:
            return owner.cache if owner is not None else {}
        # Only `value[0]` has kept its place from 3.6 to 3.9, and indexing would create an entry.
        entry = owner.device_caches.get(self.device) if owner is not None else None
        return entry[0] if entry else {}

    def changed(self, lookup: dict[Any, Any]) -> bool:
        """Tell whether keys or values are other objects now.

        Keys are kept, and the death of a value resets `keys`, so that no new object can pass under an old id.
        """
        return self.keys is None or self.ids != [*map(id, lookup), *map(id, lookup.values())]

    def died(self, _: Any) -> None:
        self.keys = None


class Lookups:
    """Every kernel function and autotuner of the process, held weakly, and what their lookups hold."""

    def __init__(self) -> None:
        self._functions: dict[int, tuple[weakref.ref[Any], dict[int, _Shelf]]] = {}
        self._tuners: dict[int, tuple[weakref.ref[Any], _Shelf]] = {}
        self._known: dict[int, weakref.ref[Any]] = {}
        self._fresh: list[tuple[str, str]] = []
        self._announced: deque[str] = deque()  # appended by any thread
        self._credit: Counter[str] = Counter()
        self._seen: list[_Shelf] = []
        self._current: dict[Hashable, str] | None = None

    # -- who there is --------------------------------------------------------------------------------------------------

    def adopt(self, function_type: type, tuner_type: type) -> None:
        """Take in what was made before; what is resident by now needs no event."""
        for thing in gc.get_objects():
            # type(), because isinstance() asks objects for their __class__, which lazy modules answer with warnings.
            if issubclass(type(thing), function_type):
                self.add_function(thing)
            elif issubclass(type(thing), tuner_type):
                self.add_tuner(thing)
        self._look()
        self._fresh.clear()

    # By id, because hashing a kernel function computes its cache key, which reads sources and may raise.

    def add_function(self, function: Any) -> None:
        """Watch a kernel function's lookups."""
        at = id(function)
        self._functions[at] = (weakref.ref(function, lambda _: self._gone(self._functions, at)), {})

    def add_tuner(self, tuner: Any) -> None:
        """Watch an autotuner's results."""
        at = id(tuner)
        if at in self._tuners or not hasattr(tuner, "cache"):
            return
        reference = weakref.ref(tuner, lambda _: self._gone(self._tuners, at))
        self._tuners[at] = (reference, _Shelf(reference, None, full_name(tuner)))

    def _gone(self, where: dict[int, Any], at: int) -> None:
        where.pop(at, None)
        self._current = None

    def _shelves(self) -> Iterator[tuple[_Shelf, dict[Any, Any]]]:
        for reference, shelves in list(self._functions.values()):
            function = reference()
            for device, entry in list(getattr(function, "device_caches", {}).items()):
                if device not in shelves:
                    shelves[device] = _Shelf(reference, device, full_name(function))
                yield shelves[device], entry[0]
        for reference, shelf in list(self._tuners.values()):
            tuner = reference()
            if tuner is not None:
                yield shelf, tuner.cache

    # -- what is resident ----------------------------------------------------------------------------------------------

    def resident(self) -> dict[Hashable, str]:
        """Return what the lookups hold, by token; the same mapping as before if nothing changed."""
        self._look()
        if self._current is None:
            self._current = {slot: shelf.name for shelf, _ in self._shelves() for slot in shelf.here}
        return self._current

    def _look(self) -> None:
        """Bring the picture up to date; cheap where nothing changed."""
        before, self._seen = self._seen, []
        for shelf, lookup in self._shelves():
            self._seen.append(shelf)
            if shelf.changed(lookup):
                self._take_in(shelf, lookup)
                self._current = None
        if self._seen != before:
            self._current = None

    def _take_in(self, shelf: _Shelf, lookup: dict[Any, Any]) -> None:
        items = list(lookup.items())
        shelf.here = [shelf.slots.setdefault(key, Slot(shelf, key)) for key, _ in items]
        shelf.keys = [key for key, _ in items]
        shelf.ids = [*map(id, shelf.keys), *(id(value) for _, value in items)]
        if shelf.device is None:
            return
        for _, value in items:
            kernel = compiled(value)
            if kernel is not None and id(kernel) not in self._known:
                self._fresh.append((str(getattr(kernel, "hash", "")), shelf.name))
                self._know(kernel, shelf)

    def _know(self, kernel: Any, shelf: _Shelf) -> None:
        at = id(kernel)

        def died(_: Any) -> None:
            self._known.pop(at, None)
            shelf.died(_)

        self._known[at] = weakref.ref(kernel, died)

    # -- what came without an event ------------------------------------------------------------------------------------

    def announce(self, hash: str) -> None:
        """Note that an event told of one kernel object that will come, perhaps into a lookup. From any thread."""
        self._announced.append(hash)

    def unannounced(self) -> list[str]:
        """Return the names of kernel objects that came into a lookup without an event.

        Each compile or load makes one object, so each new object uses up one announcement of its hash.
        """
        self._look()
        fresh, self._fresh = self._fresh, []
        while self._announced:
            self._credit[self._announced.popleft()] += 1
        unseen = []
        for hash, name in fresh:
            if self._credit[hash]:
                self._credit[hash] -= 1
            else:
                unseen.append(name)
        return unseen

    # -- out and back --------------------------------------------------------------------------------------------------

    def forget(self, tokens: Iterable[Hashable]) -> None:
        """Remove variants from the lookup. The kernel objects stay alive: a captured graph may hold them."""
        for slot in tokens:
            assert isinstance(slot, Slot)
            value = slot.shelf.lookup().pop(slot.key, None)
            if value is None:
                continue
            if slot.shelf.device is None:
                slot.parked = _always(value)
            else:
                vars(slot.shelf.owner()).setdefault(_PARKED, []).append(value)
                slot.parked = weakref.ref(value)

    def recall(self, tokens: Iterable[Hashable]) -> None:
        """Put parked variants back, unless the lookup has a newer one by now."""
        for slot in tokens:
            assert isinstance(slot, Slot)
            owner, value = slot.shelf.owner(), slot.parked() if slot.parked else None
            slot.parked = None
            if owner is None or value is None or slot.shelf.lookup().setdefault(slot.key, value) is not value:
                continue
            remaining = [kernel for kernel in vars(owner).pop(_PARKED, ()) if kernel is not value]
            if remaining:
                vars(owner)[_PARKED] = remaining

    def recall_all(self) -> None:
        """Put everything back."""
        shelves = [shelf for _, shelves in self._functions.values() for shelf in shelves.values()]
        for shelf in [*shelves, *(shelf for _, shelf in self._tuners.values())]:
            self.recall(slot for slot in shelf.slots.values() if slot.parked)


def _always(value: Any) -> Callable[[], Any]:
    return lambda: value


def compiled(value: Any) -> Any:
    """Return the kernel in a slot, None while it is an async compile that is pending; never waits."""
    return vars(value).get("kernel") if type(value).__name__ == "FutureKernel" else value


def names_of(src: Any) -> tuple[str, str]:
    """Return (kernel, module): the function's own name, also under autotune and heuristics; the name alone for IR."""
    fn = getattr(src, "fn", None)
    while fn is not None and hasattr(fn, "fn"):
        fn = fn.fn
    if fn is None:
        return str(getattr(src, "name", src)), ""
    return str(fn.__name__), str(fn.__module__)


def full_name(thing: Any) -> str:
    """Return `module.kernel` of a kernel function or autotuner."""
    return ".".join(part for part in reversed(names_of(thing)) if part)
