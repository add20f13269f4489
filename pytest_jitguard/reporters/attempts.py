"""What became of each test: verdicts and outcomes of all its attempts in all processes, put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.explain import Background, explain
from pytest_jitguard.core.kinds import FAILING_KINDS
from pytest_jitguard.core.phases import WARMING_PHASES
from pytest_jitguard.core.verdicts import VERDICTS, Violation, worst
from pytest_jitguard.reporters.reading import Process, Record

_OUTCOMES = ("unknown", "rerun", "passed", "xpassed", "skipped", "xfailed", "interrupted", "failed")
"""From least to most telling: what processes say of the same test is summed up by the last of these."""

ENFORCING = ("fail", "raise")
"""Modes in which a violation fails the test."""


def bare_nodeid(nodeid: str) -> str:
    """Strip the `@group` that xdist's loadgroup appends; an `@` in a path or in brackets belongs to the test."""
    head, at, group = nodeid.rpartition("@")
    return head if at and "::" in head and "]" not in group and "/" not in group and "::" not in group else nodeid


@dataclass
class Attempt:
    """One attempt of a test in one process."""

    process: Process
    nodeid: str
    number: int
    verdict: Record | None = None
    outcomes: dict[str, tuple[str, bool]] = field(default_factory=dict)
    interrupted: bool = False
    guarded: bool = True

    @property
    def was_judged(self) -> bool:
        """Whether its call ran: a setup that failed or skipped has a verdict too, which says just that."""
        return self.verdict is not None and "not_run" not in self.verdict.get("evidence", {})

    @property
    def word(self) -> str:
        """The verdict word of the attempt."""
        if self.verdict is not None and self.verdict["verdict"] in VERDICTS:
            # A call that Ctrl-C ended is judged as far as it came, which clears it of nothing.
            return worst([str(self.verdict["verdict"]), *(["interrupted"] if self.interrupted else [])])
        if self.interrupted:
            return "interrupted"
        # A guarded test whose warmup failed ends in its setup, and one whose fixture failed proves nothing either.
        return "error" if self.guarded and self.outcomes.get("setup", ("", False))[0] == "failed" else "unguarded"

    @property
    def outcome(self) -> str:
        """The outcome of the attempt, as pytest counts it."""
        outcomes = list(self.outcomes.values())
        words = {word for word, _ in outcomes}
        if "failed" in words:
            return "failed"
        if self.interrupted:
            return "interrupted"
        if "rerun" in words:
            return "rerun"
        if "skipped" in words:
            return "xfailed" if ("skipped", True) in outcomes else "skipped"
        if "passed" in words:
            return "xpassed" if ("passed", True) in outcomes else "passed"
        return "unknown"


Tests = dict[str, list[Attempt]]


def attempts_by_test(processes: Iterable[Process]) -> Tests:
    """Return the attempts of every test, by bare node id, in the order of processes and attempts."""
    tests: Tests = {}
    for process in processes:
        attempts: dict[tuple[str, int], Attempt] = {}
        _take_verdicts(process, attempts)
        _take_outcomes(process, attempts)
        _take_open_windows(process, attempts)
        for (nodeid, _), attempt in sorted(attempts.items(), key=lambda item: item[0][1]):
            tests.setdefault(nodeid, []).append(attempt)
    return tests


def _at(process: Process, attempts: dict[tuple[str, int], Attempt], nodeid: str, number: int) -> Attempt:
    return attempts.setdefault((nodeid, number), Attempt(process, nodeid, number))


def _take_verdicts(process: Process, attempts: dict[tuple[str, int], Attempt]) -> None:
    for record in process.all("verdict"):
        _at(process, attempts, bare_nodeid(record["nodeid"]), record["attempt"]).verdict = record


def _take_outcomes(process: Process, attempts: dict[tuple[str, int], Attempt]) -> None:
    latest: dict[str, int] = {}
    for record in process.all("outcome"):
        nodeid = bare_nodeid(record["nodeid"])
        # The report of a teardown is made when the attempt is over: it carries no number.
        number = record["attempt"] or latest.get(nodeid, 1)
        latest[nodeid] = number
        attempt = _at(process, attempts, nodeid, number)
        attempt.outcomes[record["when"]] = (record["outcome"], record["xfail"])
        attempt.guarded = attempt.guarded and record.get("guarded") is not False


def _take_open_windows(process: Process, attempts: dict[tuple[str, int], Attempt]) -> None:
    """Mark attempts that were cut short: the process died in setup or call, or a call was left without a report."""
    for window in process.phases.windows:
        if window.attempt < 1 or window.phase not in ("setup", "serving"):
            continue
        attempt = _at(process, attempts, bare_nodeid(window.owner), window.attempt)
        cut = window.ended is None if process.died else window.phase == "serving" and "call" not in attempt.outcomes
        attempt.interrupted |= cut


def test_entry(nodeid: str, attempts: Sequence[Attempt], events: Mapping[str, CompileEvent]) -> dict[str, Any]:
    """Return a test's entry of the document: the worst verdict of all attempts, the outcome of the last."""
    # An attempt that was not judged (its fixture failed, and it was run again) says nothing beside one that was.
    telling_attempts = [a for a in attempts if a.was_judged or a.interrupted] or list(attempts)
    word = worst([attempt.word for attempt in telling_attempts])
    telling = next(attempt for attempt in telling_attempts if attempt.word == word)
    record = telling.verdict or {}
    return {
        "nodeid": nodeid,
        "outcome": _outcome(attempts),
        "mode": record.get("mode"),
        "verdict": word,
        "violations": _joined(attempts, "violations", _VIOLATION, events),
        "known": _joined(attempts, "known", _VIOLATION, events),
        "allowed": _joined(attempts, "allowed", _ALLOWED, events),
        "evidence": _evidence(record, attempts),
        "attempts": [
            {"attempt": a.number, "pid": a.process.pid, "verdict": a.word, "outcome": a.outcome} for a in attempts
        ],
    }


def _outcome(attempts: Sequence[Attempt]) -> str:
    """Sum up: the last attempt of each process counts, and of several processes the gravest."""
    last = {attempt.process.image: attempt.outcome for attempt in attempts}
    return max(last.values(), key=_OUTCOMES.index)


_VIOLATION: Mapping[str, Any] = {
    **dict.fromkeys(("event", "parent", "system", "kind", "kernel", "module", "seconds", "pid", "rank", "world")),
    **dict.fromkeys(("role", "scope", "origin", "request"), ""),
    **dict.fromkeys(("phase", "label", "message", "launch_site", "called_from", "cure", "advice"), ""),
    "never_warmed": False,
    "changes": (),
}
_ALLOWED: Mapping[str, Any] = {
    **dict.fromkeys(("event", "parent", "system", "kind", "kernel", "module", "seconds", "pattern")),
    "reason": "",
}
"""What renderers may rely on, should a record lack it."""


def _joined(
    attempts: Sequence[Attempt], name: str, blank: Mapping[str, Any], events: Mapping[str, CompileEvent]
) -> list[dict[str, Any]]:
    """Join lists of the attempts' verdicts; a rerun repeats the violations of the attempt before."""
    joined: dict[Any, dict[str, Any]] = {}
    for attempt in attempts:
        for item in (attempt.verdict or {}).get(name, ()):
            if isinstance(item, Mapping):
                joined.setdefault(item.get("event") or item.get("message"), {**blank, **item})
    for item in _left_unjudged(attempts) if name == "violations" else ():
        joined.setdefault(item["event"], {**blank, **item})
    for item in joined.values():
        # What was still running when it was judged has its seconds from the event's end.
        event = events.get(str(item["event"]))
        if event is not None and event.seconds is not None:
            item["seconds"] = event.seconds
    return list(joined.values())


def _left_unjudged(attempts: Sequence[Attempt]) -> Iterator[dict[str, Any]]:
    """Tell what a call had served when its process died: nobody was left to judge it, and it may be the cause."""
    for attempt in attempts:
        if not attempt.interrupted or attempt.was_judged:
            continue
        run = attempt.process.run or [attempt.process]
        placed = [(event, place) for process in run for event in process.events for place in process.places(event)]
        warmed = [e for e, p in placed if p.phase in WARMING_PHASES and e.status == "ok"]
        for event, place in placed:
            mine = place.served and bare_nodeid(place.owner) == attempt.nodeid and place.attempt == attempt.number
            if mine and event.kind in FAILING_KINDS:
                explanation = explain(event, Background(warmed=warmed))
                yield Violation.of(event, explanation, event.started, place.label).to_wire()


def _evidence(record: Record, attempts: Sequence[Attempt]) -> dict[str, Any]:
    blank = {"monitors_armed": [], "warmup_events": 0, "launches": None, "expected": {}}
    evidence = {**blank, **record.get("evidence", {})}
    seen = {pid for a in attempts for pid in (a.verdict or {}).get("evidence", {}).get("processes", ())}
    return {**evidence, "processes": sorted(seen | {a.process.pid for a in attempts})}
