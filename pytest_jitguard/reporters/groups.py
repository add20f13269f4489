"""Violations grouped by kernel, worst first, and the words that every renderer says them with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_jitguard.core.kinds import count, deeds
from pytest_jitguard.core.verdicts import duration, merge_entries, wholes


def one_line(text: str) -> str:
    """Fold a text into one line."""
    return " ".join(text.split())


def file_and_line(frame: str) -> str:
    """Shorten `file:line:function` to `file:line`."""
    head, _, tail = frame.rpartition(":")
    return frame if tail.isdigit() else head or frame


def cause_of(violation: Mapping[str, Any]) -> str:
    """Return the one clause that says why, without what happened and where."""
    if violation.get("cause"):
        return str(violation["cause"])
    label = violation.get("label")
    said_before = f" while serving {label}: " if label else " while serving: "
    return str(violation["message"]).partition(said_before)[2] or str(violation["message"])


def each_once(violations: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Leave out what tells of an event again: on a server that xdist workers share, one is charged to several tests."""
    return list({violation["event"] or number: violation for number, violation in enumerate(violations)}.values())


@dataclass
class KernelGroup:
    """The violations of one kernel; of an expectation that was not met, those with the same message.

    Each violation carries the `nodeid` of its test, and as `parts` what lies within it and is not counted here.
    """

    system: str
    kernel: str
    module: str
    message: str = ""
    name: str = ""
    violations: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def tests(self) -> list[str]:
        """The tests in which it happened."""
        return list(dict.fromkeys(violation["nodeid"] for violation in self.violations))

    @property
    def events(self) -> list[Mapping[str, Any]]:
        """The violations, those of several tests by one event once."""
        return each_once(self.violations)

    @property
    def seconds(self) -> float:
        """What the violations cost together, as far as it is known."""
        return sum(violation["seconds"] or 0.0 for violation in self.events)

    @property
    def worst_first(self) -> list[Mapping[str, Any]]:
        """The violations, the most expensive first."""
        return sorted(self.violations, key=lambda violation: -(violation["seconds"] or 0.0))

    @property
    def worst(self) -> Mapping[str, Any]:
        """The violation that cost most."""
        return self.worst_first[0]

    @property
    def cost(self) -> str:
        """The time in words: `1.38 s`, or `more than 1.38 s` if some event never came to an end."""
        if all(violation["seconds"] is None for violation in self.violations):
            return "time unknown"
        unfinished = any(violation["seconds"] is None for violation in self.violations)
        return f"more than {duration(self.seconds)}" if unfinished else duration(self.seconds)

    def entries(self, most: int | None = None) -> str:
        """Return what to add to the warmup, put together from the cures of all (or `most`) violations."""
        return merge_entries(self.cures[:most])

    @property
    def cures(self) -> list[str]:
        """The warmup entries of the violations, each once."""
        return list(dict.fromkeys(str(v["cure"]) for v in self.violations if v.get("cure")))

    @property
    def advice(self) -> list[str]:
        """What could be changed in the kernel instead, each once."""
        return list(dict.fromkeys(one_line(v["advice"]) for v in self.violations if v.get("advice")))

    @property
    def happened(self) -> str:
        """What happened how often: `2 compiles`."""
        return deeds([violation["kind"] for violation in self.events])

    @property
    def site(self) -> str:
        """Where the worst was launched from, `file:line`."""
        return file_and_line(self.worst["launch_site"]) if self.worst["launch_site"] else ""

    @property
    def line(self) -> str:
        """The group in one line."""
        tests = count(len(self.tests), "test")
        if self.message:
            return f"{one_line(self.message)} ({tests})"
        where = f" ({self.site})" if self.site else ""
        return f"{self.name}: {self.happened} in {tests}, {self.cost}: {one_line(cause_of(self.worst))}{where}"


def group_violations(tests: Sequence[Mapping[str, Any]]) -> list[KernelGroup]:
    """Group the violations of test entries by kernel, the most expensive first."""
    groups: dict[tuple[str, ...], KernelGroup] = {}
    for test in tests:
        for violation in wholes(test["violations"]):
            group = groups.setdefault(_identity(violation), _group_for(violation))
            group.violations.append({**violation, "nodeid": test["nodeid"]})
    _name(list(groups.values()))
    return sorted(groups.values(), key=lambda g: (-g.seconds, -len(g.violations), g.name, g.message))


def _identity(violation: Mapping[str, Any]) -> tuple[str, ...]:
    if violation["kernel"] is None:
        return (str(violation["message"]),)
    return (str(violation["system"]), str(violation["module"]), str(violation["kernel"]))


def _group_for(violation: Mapping[str, Any]) -> KernelGroup:
    if violation["kernel"] is None:
        return KernelGroup("", "", "", message=str(violation["message"]))
    return KernelGroup(str(violation["system"]), str(violation["kernel"]), str(violation["module"] or ""))


def _name(groups: Sequence[KernelGroup]) -> None:
    """Call each kernel by its own name; by module and system too where that would be two kernels."""
    for group in groups:
        namesakes = [other for other in groups if other.kernel == group.kernel]
        group.name = group.kernel
        if len({other.module for other in namesakes}) > 1:
            group.name = f"{group.module}.{group.kernel}" if group.module else group.kernel
        if len({other.system for other in namesakes}) > 1:
            group.name = f"{group.system}:{group.name}"
