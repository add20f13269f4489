"""What was loaded and compiled, held against the events of monitors: who accounts for what. Pure: no I/O, no CUPTI."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.witness._order import owners
from pytest_jitguard.witness.images import FILE, UNKNOWN, Image, identifiers, image_of
from pytest_jitguard.witness.records import CALL, COMPILER, FROM_FILE, MODULE, Record

SLACK = 5.0
"""Seconds within which what was compiled on a thread is loaded by it. A first launch makes a CUDA context between."""

_EPSILON = 0.001
_PAUSE = 0.02
_KINDS = ("compile", "cache_load", "device_load", "autotune", "download")
_STAGES = {1: "PTX to cubin", 2: "NVVM IR to PTX"}
_CACHE_LOOKUP, _CACHE_STORE, _COMPILE = 1, 2, 3
_LONG_ENOUGH = 6


class Jit(NamedTuple):
    """One record of the driver's compiler, which NVRTC is told by as well."""

    started: float
    ended: float
    stage: str
    is_compile: bool


@dataclass(frozen=True)
class Sighting:
    """A generated module that was loaded, or something that was compiled and not loaded (`image` is None).

    `thread` is a name, or `thread 4711` if Python knows none (`is_known` is false). `call` is the driver's function,
    with the file that it read.
    """

    started: float
    ended: float
    thread: str
    is_known: bool
    image: Image | None = None
    call: str = ""
    failed: bool = False
    jits: tuple[Jit, ...] = ()

    @property
    def kernels(self) -> tuple[str, ...]:
        """The symbols of the kernels that came."""
        return self.image.kernels if self.image else ()

    @property
    def kind(self) -> str:
        """The kind of event: what the driver took from its own cache is no compile."""
        cached = bool(self.jits) and not any(jit.is_compile for jit in self.jits)
        return "cache_load" if cached else "compile"

    @property
    def stages(self) -> dict[str, float]:
        """Seconds of the driver's compiler by stage."""
        stages: dict[str, float] = {}
        for jit in self.jits:
            stages[jit.stage] = stages.get(jit.stage, 0.0) + max(0.0, jit.ended - jit.started)
        return stages


class Seen(NamedTuple):
    """What a number of records amount to: sightings by time, and how many modules of libraries were loaded lazily."""

    sightings: list[Sighting]
    library: int


# -- records to sightings ----------------------------------------------------------------------------------------------


def gather(
    records: Iterable[Record], names: Mapping[int, str], read: Callable[[str], bytes] = lambda path: b""
) -> Seen:
    """Put together what belongs together: a load call with its module and what the driver compiled in it.

    `names` are the names of threads by the system's numbers; `read` returns a file that the driver was told to load.
    A module that no call brought is a library's, loaded lazily; so is whatever comes in the wrapper of the CUDA
    runtime.
    """
    ordered = sorted(records, key=lambda record: record.started)
    modules = [record for record in ordered if record.what == MODULE]
    calls = [record for record in ordered if record.what == CALL]
    jits = [record for record in ordered if record.what == COMPILER]
    owner = owners(calls)
    inside: dict[int, list[Record]] = {}
    for jit in jits:
        inside.setdefault(getattr(owner(jit), "call", 0), []).append(jit)
    loads: list[Sighting] = []
    taken: set[int] = set()
    for call in calls:
        brought = [module for module in modules if module.call == call.call]
        image = _image_of(call, brought, read)
        if image.is_generated:
            loads.append(_load(call, image, inside.pop(call.call, []), names))
            taken.update(id(module) for module in brought)
    library = sum(id(module) not in taken for module in modules)
    alone = _alone([jit for left in inside.values() for jit in left], names)
    return Seen(sorted([*loads, *alone], key=lambda sighting: sighting.started), library)


def _image_of(call: Record, modules: Sequence[Record], read: Callable[[str], bytes]) -> Image:
    loaded = [image_of(module.data, module.size) for module in modules]
    if call.name in FROM_FILE:
        given = next(iter(loaded), None) or image_of(read(os.fsdecode(call.data)))
        return given if given.kind != UNKNOWN else Image(FILE)
    given = image_of(call.data, call.size)
    # PTX and fat binaries become cubins; those have the names, and the image that was given has the kind and the size.
    kernels = given.kernels or tuple(name for image in loaded for name in image.kernels)
    return given._replace(kernels=kernels)


def _load(call: Record, image: Image, jits: Sequence[Record], names: Mapping[int, str]) -> Sighting:
    thread, known = _thread(call.thread, names)
    compiled = tuple(map(_jit, jits))
    name = f"{call.name} from {os.fsdecode(call.data)}" if call.name in FROM_FILE else call.name
    return Sighting(call.started, call.ended, thread, known, image, name, call.result != 0, compiled)


def _alone(jits: Sequence[Record], names: Mapping[int, str]) -> list[Sighting]:
    """Return what was compiled outside of load calls: the records of one thread without a pause are one compile."""
    found: list[Sighting] = []
    for record in _spanned(sorted(jits, key=lambda record: (record.thread, record.started))):
        jit, (thread, known) = _jit(record), _thread(record.thread, names)
        before = found[-1] if found else None
        if before and before.thread == thread and jit.started - before.ended <= _PAUSE:
            found[-1] = replace(before, ended=max(before.ended, jit.ended), jits=(*before.jits, jit))
        else:
            found.append(Sighting(jit.started, jit.ended, thread, known, jits=(jit,)))
    return [sighting for sighting in found if sighting.kind == "compile"]


def _spanned(jits: Iterable[Record]) -> list[Record]:
    """Let what is stored into the driver's cache begin where it was looked up: between is NVRTC's compile, untold."""
    found: list[Record] = []
    for jit in jits:
        before = found[-1] if found else jit
        same = (before.thread, before.stage) == (jit.thread, jit.stage)
        if jit.operation == _CACHE_STORE and before.operation == _CACHE_LOOKUP and same:
            found[-1] = jit._replace(started=before.started)
        else:
            found.append(jit)
    return found


def _jit(record: Record) -> Jit:
    # NVRTC's compiles are told by what they store into the driver's cache.
    is_compile = record.operation in (_CACHE_STORE, _COMPILE)
    return Jit(record.started, record.ended, _STAGES.get(record.stage, "the driver's compiler"), is_compile)


def _thread(number: int, names: Mapping[int, str]) -> tuple[str, bool]:
    return (names[number], True) if number in names else (f"thread {number}", False)


# -- sightings to events -----------------------------------------------------------------------------------------------


@dataclass
class Ledger:
    """Which events of this process have accounted for something already. Each module counts once."""

    spent: set[str] = field(default_factory=set)
    _closed: set[str] = field(default_factory=set)
    _parents: set[str | None] = field(default_factory=set)
    _living: frozenset[str] = frozenset()

    def account(
        self, sightings: Sequence[Sighting], events: Sequence[CompileEvent], living: Iterable[str] = ()
    ) -> list[tuple[Sighting, CompileEvent | None]]:
        """Find the event that each sighting belongs to, None if no monitor accounts for it.

        Names go before times: what is left over is then not hidden by what somebody else needs. `living` are the names
        of the threads that Python knows now; a thread that it does not know may be any that ran before.
        """
        known = [event for event in events if event.kind in _KINDS and event.id not in self._closed]
        self._parents = {event.parent for event in known}
        self._living = frozenset(living)
        found: dict[int, CompileEvent] = {}
        for rule in (self._just_made, self._made_meanwhile, self._meanwhile, self._just_before, self._made_once):
            for sighting in (s for s in sightings if id(s) not in found):
                event = max(rule(sighting, known), key=lambda event: event.started, default=None)
                if event is not None:
                    found[id(sighting)] = event
                    self.spent.add(event.id)
        return [(sighting, found.get(id(sighting))) for sighting in sightings]

    def close(self, event: CompileEvent) -> None:
        """Let an event account for nothing more: it is itself about a module that nobody accounted for."""
        self._closed.add(event.id)

    def _just_made(self, seen: Sighting, events: Sequence[CompileEvent]) -> list[CompileEvent]:
        """Return compiles and loads about then of a kernel of that name, to which no module was put down yet."""
        return [event for event in self._unspent(events) if _is_about(event, seen) and _is_during(event, seen, SLACK)]

    def _made_meanwhile(self, seen: Sighting, events: Sequence[CompileEvent]) -> list[CompileEvent]:
        """Return what was under way for a kernel of that name: one autotune run loads a module for each variant."""
        return [event for event in events if _is_about(event, seen) and _is_during(event, seen, 0.0)]

    def _meanwhile(self, seen: Sighting, events: Sequence[CompileEvent]) -> list[CompileEvent]:
        """Return what was under way on the thread, whatever it calls its kernels."""
        return [event for event in events if _is_during(event, seen, 0.0) and self._is_thread_of(event, seen)]

    def _just_before(self, seen: Sighting, events: Sequence[CompileEvent]) -> list[CompileEvent]:
        """Return what the thread has just compiled and not loaded yet; once, so that nothing hides behind it."""
        before = [event for event in self._unspent(events) if event.ended is not None and event.id not in self._parents]
        near = [event for event in before if _is_during(event, seen, SLACK) and self._is_thread_of(event, seen)]
        return near if seen.image else []

    def _made_once(self, seen: Sighting, events: Sequence[CompileEvent]) -> list[CompileEvent]:
        """Return earlier compiles of a kernel of that name: it is loaded when it is first launched."""
        return [event for event in self._unspent(events) if event.started <= seen.ended and _is_about(event, seen)]

    def _unspent(self, events: Sequence[CompileEvent]) -> list[CompileEvent]:
        return [event for event in events if event.id not in self.spent and event.status != "failed"]

    def _is_thread_of(self, event: CompileEvent, seen: Sighting) -> bool:
        return event.thread == seen.thread if seen.is_known else event.thread not in self._living


def _is_during(event: CompileEvent, seen: Sighting, slack: float) -> bool:
    # Without an end though it is over: nobody knows how long it took.
    known = event.started if event.status == "ok" and event.ended is None else event.ended
    ended = float("inf") if known is None else known
    return event.started - _EPSILON <= seen.started <= ended + slack


def _is_about(event: CompileEvent, seen: Sighting) -> bool:
    """Tell whether an event is about one of the kernels in a module.

    Its name may be the symbol, or one of the names in a C++ symbol, or the beginning of one (`gemm` of `gemm_impl`).
    """
    name = event.kernel.partition("<")[0].rpartition("::")[2].strip()
    if not name:
        return False
    names = [part for symbol in seen.kernels for part in identifiers(symbol)]
    return event.kernel in seen.kernels or name in names or (len(name) >= _LONG_ENOUGH and _begins_one(name, names))


def _begins_one(name: str, names: Iterable[str]) -> bool:
    return any(one.startswith(name) for one in names)


def joined(sightings: Sequence[Sighting]) -> list[Sighting]:
    """Make one of what was compiled and what was then loaded on the same thread: NVRTC compiles before it loads."""
    made: list[Sighting] = []
    for sighting in sightings:
        before = next((one for one in reversed(made) if one.thread == sighting.thread), None)
        if sighting.image and before and not before.image and sighting.started - before.ended <= SLACK:
            made.remove(before)
            both = {"started": before.started, "jits": (*before.jits, *sighting.jits)}
            made.append(replace(sighting, **both))  # type: ignore[arg-type]
        else:
            made.append(sighting)
    return made
