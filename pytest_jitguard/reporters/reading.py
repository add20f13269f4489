"""Journal records of a run, read back process by process: windows, events, verdicts, and what was lost."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.phases import PhaseLog, Placed, RequestSpan, Window
from pytest_jitguard.processes.journal import MISFIT, JournalText, read_folder, whole
from pytest_jitguard.processes.relatives import runs_here

Record = Mapping[str, Any]


@dataclass
class ProcessRecords:
    """What is known of one process image before it is understood.

    `recovered` counts records that the process could not write and handed over otherwise; they are among `records`.
    `alive` marks a process that is still running (the one that builds the report): no goodbye is expected of it.
    """

    role: str
    image: str
    records: Sequence[Record]
    rejected: Sequence[str] = ()
    recovered: int = 0
    alive: bool = False


def read_run(
    folder: Path, *, alive: Collection[str] = (), lost: Mapping[str, Sequence[Record]] | None = None
) -> list[ProcessRecords]:
    """Read every journal of a run's folder.

    `alive` are the images of processes that still run, `lost` maps an image to the records that it could not write.
    """
    unwritten = dict(lost or {})
    found = [_from_text(text, alive, unwritten) for text in read_folder(folder)]
    return found + [_from_memory(image, records, alive) for image, records in unwritten.items() if records]


def _from_text(text: JournalText, alive: Collection[str], unwritten: dict[str, Sequence[Record]]) -> ProcessRecords:
    # The file's name ends with the image, so that a journal whose first line is torn is still told apart.
    image = str(text.hello.get("image") or text.path.stem.rpartition("-")[2])
    extra = unwritten.pop(image, ())
    is_short = text.incomplete and not text.ended and image not in alive
    short = [f"{text.path.name}: what came last could not be written"] if is_short else []
    is_alive = image in alive or (not text.ended and runs_here(text.hello))
    return ProcessRecords(
        role=str(text.hello.get("role", "")),
        image=image,
        records=[*text.records, *extra],
        rejected=[*text.rejected, *short],
        recovered=len(extra),
        alive=is_alive,
    )


def _from_memory(image: str, records: Sequence[Record], alive: Collection[str]) -> ProcessRecords:
    hello = next((record for record in records if record.get("record") == "hello"), {})
    return ProcessRecords(str(hello.get("role", "")), image, records, recovered=len(records), alive=image in alive)


@dataclass
class Process:
    """One process image, understood. `rejected` are lines and records that do not fit, as text.

    `died` says that it ended without a goodbye, `replaced` that it called exec and goes on as another image. `offset`
    is what its host's clock is behind, in seconds. `run` are all processes of the run, this one among them.
    """

    role: str
    image: str
    hello: Record = field(default_factory=dict)
    died: bool = False
    lost: int = 0
    rejected: list[str] = field(default_factory=list)
    phases: PhaseLog = field(default_factory=PhaseLog)
    events: list[CompileEvent] = field(default_factory=list)
    of_kind: dict[str, list[Record]] = field(default_factory=dict)
    replaced: bool = False
    rank: int | None = None
    world: int | None = None
    offset: float = 0.0
    run: Sequence[Process] = field(default=(), repr=False)

    @property
    def pid(self) -> int:
        """The process id, 0 if the first record was lost."""
        return int(self.hello.get("pid", 0))

    @property
    def host(self) -> str:
        """The host's name, empty if the first record was lost."""
        return str(self.hello.get("host", ""))

    @property
    def name(self) -> str:
        """How people find the process: `gw0 (pid 4711)`."""
        return f"{self.role or 'a process'} (pid {self.pid})" if self.pid else self.role or "a process"

    @functools.cached_property
    def guards(self) -> list[Process]:
        """The pytest processes of the run."""
        return [process for process in self.run if process.is_guard]

    @property
    def scope(self) -> str:
        """The server in whose tree the process is, empty in pytest's own."""
        return str(self.hello.get("scope") or "")

    @property
    def is_guard(self) -> bool:
        """Whether it is pytest itself, its xdist controller or a worker: then its phases count, and its death."""
        return str(self.hello.get("guard") or self.image) == self.image

    @property
    def born(self) -> float:
        """Wall-clock seconds at which the journal began."""
        return float(self.hello.get("time", 0.0))

    def all(self, kind: str) -> list[Record]:
        """Return the records of one kind, in their order."""
        return self.of_kind.get(kind, [])

    def place(self, event: CompileEvent) -> Placed:
        """Return where an event of this process began; of several tests that share a server, the first's."""
        return self.places(event)[0]

    def places(self, event: CompileEvent) -> list[Placed]:
        """Return where an event of this process began: several places only if tests of several workers shared it."""
        if self.is_guard or self.phases.around(event.started):
            return [self.phases.place(event.started)]
        if not self.scope:
            mine = (guard for guard in self.guards if guard.image == self.hello.get("guard"))
            return [guard.phases.place(event.started) for guard in mine] or [Placed("between")]
        knowing = (guard.phases for guard in self.guards if guard.phases.knows(self.scope))
        told = [phases.place(event.started, self.scope) for phases in knowing]
        served = [placed for placed in told if placed.served]
        return served or sorted(told, key=lambda placed: placed.phase == "between")[:1] or [Placed("between")]

    def wall_clock(self, moment: float) -> float | None:
        """Turn a moment of the guards' monotonic clock into seconds since the epoch."""
        if "monotonic" not in self.hello:
            return None
        return self.born + moment - self.offset - float(self.hello["monotonic"])


def understand(raw: ProcessRecords) -> Process:
    """Read one process's records; what does not fit is rejected, counted and never raised."""
    process = Process(raw.role, raw.image, rejected=list(raw.rejected))
    for record in raw.records:
        process.of_kind.setdefault(str(record.get("record")), []).append(record)
    process.hello = _fitting_hello(process)
    goodbye = process.all("bye")
    process.died = not goodbye and not raw.alive
    said = sum(whole(record.get("lost")) or 0 for record in goodbye)
    process.lost = max(0, said - raw.recovered)
    _read_identity(process)
    _read_windows(process)
    _read_uses(process)
    _read_events(process, still_running=raw.alive and not goodbye)
    _check_forms(process)
    return process


_HELLO: Mapping[str, type | tuple[type, ...]] = {
    "pid": int,
    "start": int,
    "host": str,
    "guard": str,
    "scope": str,
    "time": (int, float),
    "monotonic": (int, float),
}


def _fitting_hello(process: Process) -> Record:
    """Return the first record of a process without what does not fit."""
    hello = next(iter(process.all("hello")), {})
    wrong = [name for name, form in _HELLO.items() if name in hello and not isinstance(hello[name], form)]
    if wrong:
        _reject(process, hello, f"does not fit in {', '.join(wrong)}")
    return {name: value for name, value in hello.items() if name not in wrong}


def _reject(process: Process, record: Record, why: str) -> None:
    process.rejected.append(f"{process.name}: {record.get('record')} record: {why}")


def _read_windows(process: Process) -> None:
    windows: dict[Any, tuple[Window, Any]] = {}
    for record in process.all("open"):
        try:
            windows[record["window"]] = (_window(record), record["parent"])
        except MISFIT as error:
            _reject(process, record, f"{type(error).__name__} {error}")
    for window, parent in windows.values():
        window.parent = windows[parent][0] if parent in windows and parent != window.id else None
    for record in process.all("close"):
        try:
            windows[record["window"]][0].ended = float(record["ended"])
        except MISFIT as error:
            _reject(process, record, f"{type(error).__name__} {error}")
    # Recovered records come last, whenever they were made.
    for window in sorted((window for window, _ in windows.values()), key=lambda w: (w.started, w.id)):
        process.phases.add(window)


def _read_identity(process: Process) -> None:
    """Take what the process said of itself last: titles and ranks come after the first record."""
    for record in (process.hello, *process.all("identity")):
        process.role = str(record.get("role") or process.role)
        process.rank = _known(whole(record.get("rank")), process.rank)
        process.world = _known(whole(record.get("world")), process.world)
    for record in process.all("clock"):
        offset = record.get("offset")
        process.offset = float(offset) if isinstance(offset, (int, float)) else process.offset


def _known(now: int | None, before: int | None) -> int | None:
    return before if now is None else now


def _read_uses(process: Process) -> None:
    spans: dict[Any, RequestSpan] = {}
    for record in (*process.all("use"), *process.all("request")):
        try:
            if record["record"] == "use":
                process.phases.use(str(record["owner"]), int(record["attempt"]), str(record["scope"]))
            else:
                spans[record["id"]] = _request(record)
        except MISFIT as error:
            _reject(process, record, f"{type(error).__name__} {error}")
    process.phases.requests.extend(spans.values())


def _request(record: Record) -> RequestSpan:
    return RequestSpan(
        id=str(record["id"]),
        scope=str(record["scope"]),
        started=float(record["started"]),
        owner=str(record["owner"]),
        attempt=int(record["attempt"]),
        text=str(record["text"]),
        ended=None if record["ended"] is None else float(record["ended"]),
    )


def _window(record: Record) -> Window:
    return Window(
        id=int(record["window"]),
        phase=str(record["phase"]),
        label=str(record["label"]),
        started=float(record["started"]),
        owner=str(record["owner"]),
        attempt=int(record["attempt"]),
        explicit=bool(record["explicit"]),
        allowed=str(record["allowed"]),
        scope=str(record.get("scope") or ""),
    )


def _read_events(process: Process, *, still_running: bool) -> None:
    events: dict[Any, CompileEvent] = {}
    for record in process.all("begin"):
        try:
            event = CompileEvent.from_begin(record)
        except MISFIT as error:
            _reject(process, record, f"{type(error).__name__} {error}")
            continue
        event.pid, event.host, event.role = process.pid, process.host, process.role
        event.rank, event.world, event.scope = process.rank, process.world, process.scope
        event.started += process.offset
        events[event.id] = event
    for record in process.all("end"):
        try:
            events[record["event"]].finish(record, process.offset)
        except MISFIT as error:
            _reject(process, record, f"{type(error).__name__} {error}")
    for event in events.values():
        if event.status == "running" and not still_running:
            event.status = "interrupted"
    process.events = sorted(events.values(), key=lambda event: event.started)


_NEEDED: Mapping[str, Mapping[str, type | tuple[type, ...]]] = {
    "verdict": {
        "nodeid": str,
        "attempt": int,
        "mode": str,
        "verdict": str,
        "violations": list,
        "allowed": list,
        "known": list,
        "evidence": dict,
    },
    "outcome": {"nodeid": str, "when": str, "outcome": str, "xfail": bool, "attempt": int},
    "finding": {"name": str, "message": str},
    "monitor": {"name": str, "state": str, "version": str, "detail": str},
    "warmup": {"label": str, "status": str, "seconds": (int, float), "cause": str, "steps": list},
    "session": {"monitors": list, "ever_armed": list, "order_dependent": bool},
    "server": {"scope": str, "name": str, "state": str, "at": (int, float)},
    "child": {"pid": int, "argv": list, "how": str, "started": (int, float), "python": (bool, type(None))},
    "trouble": {"message": str},
}
"""What the report relies on in records that no class of `core` reads."""


def _check_forms(process: Process) -> None:
    for kind, needed in _NEEDED.items():
        fitting = []
        for record in process.all(kind):
            wrong = [name for name, form in needed.items() if not isinstance(record.get(name), form)]
            if wrong:
                _reject(process, record, f"does not fit in {', '.join(wrong)}")
            else:
                fitting.append(record)
        process.of_kind[kind] = fitting


def understand_all(processes: Iterable[ProcessRecords]) -> list[Process]:
    """Read all processes of a run, first started first, and bring them together."""
    run = sorted((understand(raw) for raw in processes), key=lambda process: (process.born, process.image))
    _reject_doubles(run)
    for process in run:
        process.run = run
        if process.died and any(_follows(other, process) for other in run):
            process.died, process.replaced = False, True
    return run


def _reject_doubles(run: Iterable[Process]) -> None:
    """Trust one journal of each image: which of two is the true one, nobody knows, and the report is to say so."""
    seen: set[str] = set()
    for process in run:
        if process.image in seen:
            process.events, process.phases, process.of_kind = [], PhaseLog(), {}
            process.rejected.append(f"{process.name}: a second journal of image {process.image}")
        seen.add(process.image)


def _follows(other: Process, process: Process) -> bool:
    """Tell whether another image is the same process after exec, which keeps the pid and the start time."""
    same = all(other.hello.get(key) == process.hello.get(key) for key in ("host", "pid", "start"))
    return same and bool(process.hello.get("start")) and other.born > process.born
