"""Where monitors report: events in memory, and every record handed to a sink before anything else happens."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent, Launch
from pytest_jitguard.core.keys import SpecializationKey

Record = Mapping[str, Any]


_living: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _renew_locks() -> None:
    # A lock may have been held by a thread that does not exist in the forked child.
    for recorder in _living:
        recorder._lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_locks)


class Recorder:
    """Takes begin and end of events from any thread of one process.

    `sink` receives each record as a plain mapping, begin records before the compile goes on. A sink must not raise,
    nor must `on_begin` and `on_end`. `on_finished` may raise into the compile: only the debugging mode `raise`
    sets it, and monitors call it through `finished`.

    A forked child keeps the recorder that its monitors know, and renews it. What its parent began is not its to end.
    """

    def __init__(
        self,
        image: str,
        sink: Callable[[Record], None],
        *,
        host: str = "",
        role: str = "",
        rank: int | None = None,
    ) -> None:
        self.image = image
        self.host = host
        self.role = role
        self.rank = rank
        self.events: list[CompileEvent] = []
        self.on_begin: Callable[[CompileEvent], None] | None = None
        self.on_end: Callable[[CompileEvent], None] | None = None
        self.on_finished: Callable[[CompileEvent], None] | None = None
        self._sink = sink
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._enclosing = threading.local()
        _living.add(self)

    def renew(self, image: str, sink: Callable[[Record], None], *, role: str = "", rank: int | None = None) -> None:
        """Become the recorder of the forked child that calls this: no events, nobody listening, new locks."""
        self.image, self.role, self.rank = image, role, rank
        self.events = []
        self.on_begin = self.on_end = self.on_finished = None
        self._sink = sink
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._enclosing = threading.local()

    @contextlib.contextmanager
    def inside(self, event: CompileEvent) -> Iterator[None]:
        """Count what begins on this thread meanwhile, whoever reports it, as a part of this event."""
        stack: list[CompileEvent] = self._enclosing.__dict__.setdefault("events", [])
        stack.append(event)
        try:
            yield
        finally:
            stack.remove(event)

    def enclosing(self, without: Collection[str] = ()) -> CompileEvent | None:
        """Return the innermost event, not of some kinds, that is under way on this thread and has others as parts."""
        stack: list[CompileEvent] = self._enclosing.__dict__.get("events", [])
        return next((event for event in reversed(stack) if event.kind not in without), None)

    def _is_ours(self, event: CompileEvent) -> bool:
        return event.id.rpartition("-")[0] == self.image

    def begin(
        self,
        system: str,
        kernel: str,
        module: str,
        *,
        kind: str = "compile",
        started: float | None = None,
        launch: Launch | None = None,
        stack: tuple[str, ...] = (),
        parent: str | None = None,
        thread: str = "",
        reason: str = "",
    ) -> CompileEvent:
        """Record that an event begins now, or began at `started` (monotonic seconds).

        It is a part of `parent`, the id of an event, or else of what is under way on this thread (see `inside`).
        `thread` names the thread that it happened on, by default this one. `reason` is what is known of it by now.
        """
        around = self.enclosing() if parent is None else None
        event = CompileEvent(
            id=f"{self.image}-{next(self._numbers)}",
            system=system,
            kernel=kernel,
            module=module,
            kind=kind,
            started=monotonic() if started is None else started,
            launch=launch,
            stack=stack,
            parent=around.id if around else parent,
            thread=thread or threading.current_thread().name,
            reason=reason,
            pid=os.getpid(),
            host=self.host,
            role=self.role,
            rank=self.rank,
        )
        with self._lock:
            self.events.append(event)
            self._sink(event.begin_record())
        if self.on_begin:
            self.on_begin(event)
        return event

    def end(
        self,
        event: CompileEvent,
        *,
        kind: str | None = None,
        status: str = "ok",
        ended: float | None = None,
        key: SpecializationKey | None = None,
        artifact_hash: str | None = None,
        stages: Mapping[str, float] | None = None,
        detail: str = "",
        cure: str = "",
        reason: str = "",
        kernel: str = "",
        module: str = "",
        timed: bool = True,
    ) -> None:
        """Record that an event is over; whatever was learned on the way replaces what the beginning guessed.

        One that is not `timed` has no end: when it began is all that is known.
        """
        if not self._is_ours(event):
            return
        with self._lock:
            event.kind = kind or event.kind
            event.status = status
            event.ended = (monotonic() if ended is None else ended) if timed else None
            event.key = key or event.key
            event.artifact_hash = artifact_hash or event.artifact_hash
            event.stages = dict(stages or event.stages)
            event.detail = detail or event.detail
            event.cure = cure or event.cure
            event.reason = reason or event.reason
            event.kernel, event.module = kernel or event.kernel, module or event.module
            self._sink(event.end_record())
        if self.on_end:
            self.on_end(event)

    def finished(self, event: CompileEvent) -> None:
        """Say that the library's call which caused an ended event is about to return: a monitor's very last act.

        It may raise into that call, so nothing may be left to do: no lock held, nothing to hand on, nothing to undo.
        """
        __tracebackhide__ = True  # a failure at the culprit, not here
        if self.on_finished and self._is_ours(event):
            self.on_finished(event)

    def corroborate(self, event: CompileEvent, witness: str) -> None:
        """Note that a net saw an event of this process as well: one event, and one witness more."""
        with self._lock:
            if witness not in event.witnesses:
                event.witnesses = (*event.witnesses, witness)
                if event.status != "running":
                    self._sink(event.end_record())

    def note(self, record: Record) -> None:
        """Hand a record that is not an event (a window, a verdict) to the sink."""
        with self._lock:
            self._sink(record)
