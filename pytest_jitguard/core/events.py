"""Compile events: what a monitor reports, and the one place that knows their wire format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pytest_jitguard.core.keys import SpecializationKey


@dataclass(frozen=True)
class Launch:
    """The call that caused an event, as far as it could be seen.

    `values` are scalars as written by the caller, `tensors` maps argument names to a form like `float16[500, 512]`,
    `options` the launch options in the caller's order (their order is part of Triton's in-process key), `path` the
    expression that reaches the kernel object by import, empty if there is none.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    options: tuple[tuple[str, str], ...] = ()
    path: str = ""

    def to_wire(self) -> dict[str, Any]:
        """Return the launch as plain types."""
        return {
            "values": dict(self.values),
            "tensors": dict(self.tensors),
            "options": [list(option) for option in self.options],
            "path": self.path,
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Launch:
        """Read what `to_wire` wrote."""
        options = tuple((str(name), str(value)) for name, value in wire["options"])
        return cls(dict(wire["values"]), dict(wire["tensors"]), options, str(wire["path"]))


@dataclass
class CompileEvent:
    """One thing that a request would wait for.

    `status` is `running`, `ok`, `failed`, or `interrupted` if its process died over it. `started` and `ended` are
    seconds of the host's monotonic clock; `ended` is None while it runs, or unknown. `stack` is `file:line:function`,
    innermost first, without frames of the JIT library, torch, the standard library and this package. `seconds` of a
    failed compile is an upper bound: the time until it was seen to be over. `cure` is a warmup entry to paste, in the
    system's own language, empty where the monitor cannot write one. `reason` is why the system compiled, in its own
    words (a guard that failed, a file that was not there), empty where it cannot tell. `witnesses` are the nets that
    saw the same compile besides the monitor of `system`. `parent` is the event that it is a part of. `rank` and `world`
    number the processes of a distributed run. `scope` is empty for pytest's own process tree, else the id of the
    server in whose tree it is.
    `origin` is `warmup` for a load of what the same server's warmup built in another of its processes.
    """

    id: str
    system: str
    kernel: str
    module: str
    started: float
    kind: str = "compile"
    status: str = "running"
    ended: float | None = None
    key: SpecializationKey | None = None
    launch: Launch | None = None
    artifact_hash: str | None = None
    stages: dict[str, float] = field(default_factory=dict)
    stack: tuple[str, ...] = ()
    thread: str = ""
    parent: str | None = None
    detail: str = ""
    cure: str = ""
    reason: str = ""
    witnesses: tuple[str, ...] = ()
    pid: int = 0
    host: str = ""
    role: str = ""
    rank: int | None = None
    world: int | None = None
    scope: str = ""
    origin: str = ""

    @property
    def seconds(self) -> float | None:
        """How long it took, None while it runs, if it never came to an end, or where nobody knows."""
        return None if self.ended is None else max(0.0, self.ended - self.started)

    @property
    def full_name(self) -> str:
        """`module.kernel`, or the kernel alone where the module is not known."""
        return f"{self.module}.{self.kernel}" if self.module else self.kernel

    def begin_record(self) -> dict[str, Any]:
        """Return what is known when the event begins, as the journal keeps it."""
        return {
            "record": "begin",
            "event": self.id,
            "system": self.system,
            "kind": self.kind,
            "kernel": self.kernel,
            "module": self.module,
            "started": self.started,
            "thread": self.thread,
            "parent": self.parent,
            "stack": list(self.stack),
            "launch": None if self.launch is None else self.launch.to_wire(),
            "reason": self.reason,
        }

    def end_record(self) -> dict[str, Any]:
        """Return what is known when the event is over, as the journal keeps it."""
        return {
            "record": "end",
            "event": self.id,
            "kind": self.kind,
            "status": self.status,
            "kernel": self.kernel,
            "module": self.module,
            "ended": self.ended,
            "key": None if self.key is None else self.key.to_wire(),
            "artifact_hash": self.artifact_hash,
            "stages": self.stages,
            "detail": self.detail,
            "cure": self.cure,
            "reason": self.reason,
            "witnesses": list(self.witnesses),
        }

    @classmethod
    def from_begin(cls, record: Mapping[str, Any]) -> CompileEvent:
        """Read a begin record; KeyError or ValueError if it does not fit."""
        launch = record["launch"]
        return cls(
            id=str(record["event"]),
            system=str(record["system"]),
            kind=str(record["kind"]),
            kernel=str(record["kernel"]),
            module=str(record["module"]),
            started=_moment(record["started"]),
            thread=str(record["thread"]),
            parent=record["parent"],
            stack=tuple(map(str, record["stack"])),
            launch=None if launch is None else Launch.from_wire(launch),
            reason=str(record.get("reason", "")),
        )

    def finish(self, record: Mapping[str, Any], offset: float = 0.0) -> None:
        """Take over an end record; KeyError or ValueError if it does not fit.

        `offset` is added to its times: the seconds by which another host's clock is behind.
        """
        self.kind, self.status = str(record["kind"]), str(record["status"])
        self.kernel, self.module = str(record["kernel"]), str(record["module"])
        self.ended = None if record["ended"] is None else float(record["ended"]) + offset
        self.key = None if record["key"] is None else SpecializationKey.from_wire(record["key"])
        self.artifact_hash = record["artifact_hash"]
        self.stages = {str(name): float(seconds) for name, seconds in record["stages"].items()}
        self.detail, self.cure = str(record["detail"]), str(record["cure"])
        # Journals of the first release have neither.
        self.reason = str(record.get("reason", ""))
        self.witnesses = tuple(map(str, record.get("witnesses", ())))


def _moment(value: Any) -> float:
    moment = float(value)
    if not math.isfinite(moment):
        raise ValueError(f"{value} is no moment")
    return moment


Told = TypeVar("Told", CompileEvent, Mapping[str, Any])


def topmost(items: Sequence[Told]) -> list[Told]:
    """Leave out what is part of another item: the compiles of an autotune run lie within its time.

    Items are events, or what a report tells of events: mappings with `event` (an id) and `parent`.
    """
    ids = {_link(item)[0] for item in items}
    return [item for item in items if _link(item)[1] is None or _link(item)[1] not in ids]


def _link(item: CompileEvent | Mapping[str, Any]) -> tuple[str | None, str | None]:
    return (item.id, item.parent) if isinstance(item, CompileEvent) else (item["event"], item.get("parent"))


def server_name(scope: str) -> str:
    """Return how people call a server, from its id `server:NAME#1`."""
    return scope.removeprefix("server:").rpartition("#")[0] or scope


def process_name(event: CompileEvent) -> str:
    """Say in which process an event happened: `rank 3 of 8`, or `VLLM::EngineCore (pid 4711)`."""
    if event.rank is not None and event.world != 1:
        return f"rank {event.rank}" + (f" of {event.world}" if event.world else "")
    return f"{event.role or 'a process'} (pid {event.pid})"


GUARDS = ("", "pytest", "xdist worker", "xdist controller")
"""Roles of the processes that run tests: a compile in one of them needs no word on where."""
