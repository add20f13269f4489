"""Children started against children heard: which Python processes of a run nobody could look into."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Record = Mapping[str, Any]

EXEC = "exec"
"""How a process becomes another program."""

TOOL = ("-X", "jitguard")
"""The options of Python that programs of our own are started with, as DeepGEMM's compiler: they need not report."""

_EARLY = 1.0
"""Seconds by which a hello may lie before the start that it answers: the clock is read before either."""

_SAME_START = 2.0
"""Seconds within which two records of one pid tell of one start: whoever forked it, and whoever asked for it."""


class Started(NamedTuple):
    """A process whose start somebody noted. `python` is None where it could not be told what it runs."""

    host: str
    pid: int
    argv: tuple[str, ...]
    how: str
    python: bool | None
    started: float

    @property
    def name(self) -> str:
        """How people find it: `python -S worker.py (pid 4711)`."""
        return f"{shlex.join(self.argv) or 'a process'} (pid {self.pid})"


@dataclass(frozen=True)
class Census:
    """How many Python processes there were beside the one that runs the tests, and which of them did not report."""

    python: int
    silent: tuple[Started, ...]

    @property
    def reported(self) -> int:
        """How many Python processes reported."""
        return self.python - len(self.silent)

    @property
    def sentence(self) -> str:
        """`1 of 9 Python processes did not report: python -S worker.py (pid 4711)`; empty if all did."""
        if not self.silent:
            return ""
        processes = "process" if self.python == 1 else "processes"
        names = ", ".join(one.name for one in self.silent)
        return f"{len(self.silent)} of {self.python} Python {processes} did not report: {names}"


def conclude(children: Iterable[Record], hellos: Iterable[Record]) -> Census:
    """Compare `child` records, each with a `host`, with `hello` records.

    A pid may be used again: a hello answers the latest start of its pid before it. After `exec` a process says hello
    once more and is still the same. What is not known to be Python counts only if it reported; so does a process whose
    start nobody saw.
    """
    children, hellos = list(children), list(hellos)
    starts = _starts(record for record in children if record["how"] != EXEC)
    answered: set[Started] = set()
    unseen = 0
    for (host, pid, _), images in _heard(hellos).items():
        asked = _answered(starts.get((host, pid), []), min(float(hello["monotonic"]) for hello in images))
        if asked is not None:
            answered.add(asked)
        elif not any(_is_guard(hello) for hello in images):
            unseen += 1
    everyone = [one for several in starts.values() for one in several]
    silent = [one for one in everyone if one.python and one not in answered]
    replaced = _silent_images([record for record in children if record["how"] == EXEC], hellos)
    return Census(unseen + len(answered) + len(silent), (*silent, *replaced))


def _silent_images(executed: Iterable[Record], hellos: Iterable[Record]) -> list[Started]:
    """Return the programs that processes which had reported became, and of which nothing was heard."""
    # The last record of one moment counts: an exec that failed is taken back.
    became = {(str(r["host"]), int(r["pid"]), float(r["started"])): _started(r) for r in executed}
    heard = [(str(hello["host"]), int(hello["pid"]), float(hello["monotonic"])) for hello in hellos]
    return [
        one
        for (host, pid, at), one in became.items()
        if one.python and not any((host, pid) == who[:2] and who[2] >= at for who in heard)
    ]


def _is_guard(hello: Record) -> bool:
    return hello.get("guard") == hello.get("image")


def _heard(hellos: Iterable[Record]) -> dict[tuple[str, int, int], list[Record]]:
    """Return hellos by what all images of one process share: host, pid, and when it began."""
    found: dict[tuple[str, int, int], list[Record]] = {}
    for hello in hellos:
        process = (str(hello["host"]), int(hello["pid"]), int(hello.get("start", 0)))
        found.setdefault(process, []).append(hello)
    return found


def _starts(children: Iterable[Record]) -> dict[tuple[str, int], list[Started]]:
    """Return starts by host and pid in the order of time, one for each process."""
    found: dict[tuple[str, int], list[Started]] = {}
    for one in sorted((_started(record) for record in children), key=lambda one: one.started):
        known = found.setdefault((one.host, one.pid), [])
        if not known or one.started - known[-1].started > _SAME_START:
            known.append(one)
        elif one.python and not known[-1].python:
            known[-1] = one
    return found


def _started(record: Record) -> Started:
    argv = tuple(str(part) for part in record["argv"])
    pid, started = int(record["pid"]), float(record["started"])
    return Started(str(record.get("host", "")), pid, argv, str(record["how"]), record["python"], started)


def _answered(starts: list[Started], heard: float) -> Started | None:
    before = [one for one in starts if one.started <= heard + _EARLY]
    return before[-1] if before else None
