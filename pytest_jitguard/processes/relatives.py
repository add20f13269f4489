"""The other processes whose events a guard judges: its children and the servers it uses, as their journals tell."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.processes import proc
from pytest_jitguard.processes.journal import MISFIT, whole
from pytest_jitguard.processes.tail import FolderTail, Record, Source

_HERE = os.uname().nodename
"""As in the first record of a journal. Not asked for at the time: tests replace `socket.gethostname`."""


@dataclass
class Relative:
    """One process image: what it said of itself, and its events so far."""

    hello: Record
    role: str
    rank: int | None = None
    world: int | None = None
    offset: float = 0.0
    said_goodbye: bool = False
    stamps: dict[str, float] = field(default_factory=dict)
    events: dict[str, CompileEvent] = field(default_factory=dict)
    running: dict[str, CompileEvent] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        """The process id on its host."""
        return whole(self.hello.get("pid")) or 0

    @property
    def scope(self) -> str:
        """The server in whose tree it runs, empty in pytest's own tree."""
        return str(self.hello.get("scope") or "")

    @property
    def is_alive(self) -> bool:
        """Whether it still runs, as far as can be told: a process of another host is taken for living."""
        if self.said_goodbye:
            return False
        return self.hello.get("host") != _HERE or proc.runs(self.pid, whole(self.hello.get("start")) or 0)


class Relatives:
    """Keeps the events of other processes up to date for one guard.

    `guard` is the image of the guard's own journal. `scopes` are the servers that it started or attached to.
    """

    def __init__(self, folder: Path, guard: str) -> None:
        self.guard = guard
        self.scopes: set[str] = set()
        self.processes: dict[str, Relative] = {}
        self._tail = FolderTail(folder, self._wants)

    def _wants(self, hello: Record) -> bool:
        if hello.get("image") == self.guard:
            return False
        scope = str(hello.get("scope") or "")  # whatever it is: hellos are not trusted
        return scope in self.scopes if scope else hello.get("guard") == self.guard

    def poll(self) -> list[CompileEvent]:
        """Read what is new; return the events that have begun since the last time."""
        with _without_garbage_collection():
            heard = [self._take(source, record) for source, record in self._tail.poll()]
        begun = [event for event in heard if event is not None]
        self._end_with_their_processes()
        return begun

    def _take(self, source: Source, record: Record) -> CompileEvent | None:
        hello = source.hello or {}
        image = str(hello.get("image"))
        if image not in self.processes:
            rank, world = hello.get("rank"), hello.get("world")
            self.processes[image] = Relative(hello, str(hello.get("role", "")), whole(rank), whole(world))
        if self.processes[image].hello is not hello:
            return None  # a second journal of one image is nobody's; the report tells
        try:
            return self._understand(self.processes[image], record)
        except MISFIT:
            return None  # the report counts it

    def _understand(self, process: Relative, record: Record) -> CompileEvent | None:
        """Take in a record; return the event that it begins, if it does."""
        kind = record["record"]
        if kind == "begin":
            event = CompileEvent.from_begin(record)
            event.started += process.offset
            identify(event, process)
            process.events[event.id] = process.running[event.id] = event
            return event
        elif kind == "end":
            process.events[record["event"]].finish(record, process.offset)
            process.running.pop(record["event"], None)
        elif kind == "identity":
            process.role, process.rank, process.world = (
                str(record["role"]),
                whole(record["rank"]),
                whole(record["world"]),
            )
        elif kind == "clock":
            process.offset = float(record["offset"])
        elif kind == "stamp":
            process.stamps[str(record["what"])] = float(record["at"]) + process.offset
        elif kind == "bye":
            process.said_goodbye = True
        return None

    def _end_with_their_processes(self) -> None:
        """Call interrupted what a process that is gone had begun; nobody need wait for it."""
        for process in self.processes.values():
            if process.running and not process.is_alive:
                for event in process.running.values():
                    event.status = "interrupted" if event.status == "running" else event.status
                process.running.clear()

    def living(self) -> list[Relative]:
        """Return the processes that still run."""
        return [process for process in self.processes.values() if process.is_alive]

    def lost(self, scope: str) -> list[Relative]:
        """Return the processes of a server that are gone without a goodbye."""
        mine = (process for process in self.processes.values() if process.scope == scope)
        return [process for process in mine if not process.said_goodbye and not process.is_alive]

    def stamps(self, scope: str, what: str) -> list[float]:
        """Return when the processes of a server said that they had come so far (monotonic seconds)."""
        mine = (process for process in self.processes.values() if process.scope == scope)
        return [process.stamps[what] for process in mine if what in process.stamps]


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Spare the collector from looking through ever more events that are all kept: it would take most of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def identify(event: CompileEvent, process: Relative) -> None:
    """Write on an event in which process it happened."""
    event.pid, event.host = process.pid, str(process.hello.get("host", ""))
    event.role, event.rank, event.world = process.role, process.rank, process.world
    event.scope = process.scope


def runs_here(hello: Mapping[str, Any]) -> bool:
    """Tell whether the process that wrote this first record still runs on this host."""
    pid, start = whole(hello.get("pid")) or 0, whole(hello.get("start")) or 0
    return pid > 0 and start > 0 and hello.get("host") == _HERE and proc.runs(pid, start)
