"""The report of a run: one document and the judgement over it, built from journal records and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_jitguard.core.baseline import Debt, debt_from_violation
from pytest_jitguard.core.census import Census
from pytest_jitguard.core.events import CompileEvent, topmost
from pytest_jitguard.core.findings import Facts, Finding, failing, findings
from pytest_jitguard.core.kinds import count
from pytest_jitguard.reporters import fleet
from pytest_jitguard.reporters.attempts import ENFORCING, Tests, attempts_by_test, bare_nodeid, test_entry
from pytest_jitguard.reporters.reading import Process, ProcessRecords, Record, read_run, understand_all

__all__ = ["ProcessRecords", "RunReport", "bare_nodeid", "build", "read_run"]

SCHEMA = 1

_STATES = ("off", "waiting", "armed", "unproven", "blind")
"""From best to worst: a process that never imports the library says nothing about those that do."""

_WARMUP_STATUS = ("none", "ok", "failed", "timeout")

_ABSENCE = ("nothing-guarded", "nothing-watched", "warmup-empty")
"""Findings that conclude from what is missing: a run that was cut short proves nothing by that."""


@dataclass
class RunReport:
    """A finished report: `document` is what is written, the rest is what pytest acts upon.

    `failing` are the findings that nobody waived, of them `usage_errors` those about a mistake in the set-up;
    `violated` are the entries of the tests that fail by their violations (mode and expected failures considered).
    `partial` says that not all tests were run to their end: debt that did not show may still be owed.
    """

    document: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)
    failing: list[Finding] = field(default_factory=list)
    usage_errors: list[Finding] = field(default_factory=list)
    violated: list[dict[str, Any]] = field(default_factory=list)
    new_debts: list[Debt] = field(default_factory=list)
    known_debts: list[Debt] = field(default_factory=list)
    paid_debts: list[Debt] = field(default_factory=list)
    partial: bool = False

    @property
    def verdict(self) -> str:
        """`passed`, `failed`, `interrupted` or `usage-error`."""
        return str(self.document["verdict"])

    @property
    def passed(self) -> bool:
        """Whether the guard has nothing to object to."""
        return self.verdict == "passed"


@dataclass(frozen=True)
class _Told:
    """What the journals tell, understood once: the judgement and the document are made from it."""

    run: Sequence[Process]
    attempts: Tests
    tests: Sequence[dict[str, Any]]
    environment: Mapping[str, Any]
    servers: Sequence[dict[str, Any]]
    census: Census


def build(
    processes: Sequence[ProcessRecords],
    *,
    waived: Sequence[str] | None = None,
    baseline_debts: frozenset[Debt] | None = None,
    partial: bool = False,
) -> RunReport:
    """Build the report of a run.

    `waived` are the names of findings that do not fail the session, by default those that the run was started with.
    `partial` says that not all of the suite was run, so that debt which did not show is not thereby paid; what
    processes say about that in their session records counts too.
    """
    run = understand_all(processes)
    doubles = fleet.relate(run)
    events = {event.id: event for process in run for event in process.events}
    attempts = attempts_by_test(run)
    tests = [test_entry(nodeid, attempts[nodeid], events) for nodeid in sorted(attempts)]
    report = RunReport({}, partial=partial or _is_partial(run) or _is_cut_short(run, tests))
    _settle_debts(report, tests, baseline_debts)
    environment = _environment(run)
    lifted = list(environment.get("waive", ())) if waived is None else list(waived)
    told = _Told(run, attempts, tests, environment, fleet.servers_section(run), fleet.census(run))
    _find(report, told, lifted)
    report.violated = [test for test in tests if _fails(test)]
    reasons = _reasons(report, run, tests)
    report.document = {
        "schema": SCHEMA,
        "verdict": _verdict(report, run, tests),
        "reasons": reasons,
        "partial": report.partial,
        "environment": environment,
        "cache": str(environment.get("cache") or "unknown"),
        "monitors": _monitors(run),
        "warmup": warmup_section(run),
        "tests": tests,
        "events": [
            event_entry(event, process) for process in run for event in process.events if event.id not in doubles
        ],
        "servers": told.servers,
        "children": fleet.children_section(told.census, run, told.servers),
        "processes": [_process_entry(process) for process in run],
        "findings": [{**finding.to_wire(), "waived": finding not in report.failing} for finding in report.findings],
        "order_dependent": any(session["order_dependent"] for process in run for session in process.all("session")),
        "debt": {
            "known": [debt.to_wire() for debt in report.known_debts],
            "new": [debt.to_wire() for debt in report.new_debts],
            "paid": [debt.to_wire() for debt in report.paid_debts],
        },
    }
    return report


# -- the judgement -----------------------------------------------------------------------------------------------------


def _fails(test: Mapping[str, Any]) -> bool:
    return test["verdict"] == "violated" and test["mode"] in ENFORCING and test["outcome"] != "xfailed"


def _verdict(report: RunReport, run: Sequence[Process], tests: Sequence[Mapping[str, Any]]) -> str:
    if report.usage_errors:
        return "usage-error"
    if report.failing or report.violated or any(test["verdict"] == "error" for test in tests):
        return "failed"
    return "interrupted" if _is_cut_short(run, tests) else "passed"


def _is_partial(run: Sequence[Process]) -> bool:
    return any(session.get("partial") for process in run for session in process.all("session"))


def _is_cut_short(run: Sequence[Process], tests: Sequence[Mapping[str, Any]]) -> bool:
    dead = any(process.died for process in run if process.is_guard)
    return dead or any(test["verdict"] == "interrupted" for test in tests)


def _reasons(report: RunReport, run: Sequence[Process], tests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say why the verdict is not `passed`, the gravest first."""
    reasons = [str(finding) for finding in report.failing]
    if report.violated:
        first = report.violated[0]
        reasons.append(
            f"{count(len(report.violated), 'guarded test')} violated, first {first['nodeid']}: "
            f"{first['violations'][0]['message'] if first['violations'] else 'no detail was kept'}"
        )
    for word, story in (
        ("error", "ended before the call, so that nothing was judged"),
        ("interrupted", "never came to an end"),
    ):
        names = [test["nodeid"] for test in tests if test["verdict"] == word]
        if names:
            reasons.append(f"{count(len(names), 'test')} {story}, first {names[0]}")
    dead = [process.name for process in run if process.died and process.is_guard]
    return [*reasons, *(f"{name} ended without a goodbye: it was killed or crashed" for name in dead)]


def _settle_debts(report: RunReport, tests: Sequence[Mapping[str, Any]], baseline: frozenset[Debt] | None) -> None:
    report.new_debts = _debts(violation for test in tests for violation in test["violations"])
    report.known_debts = _debts(violation for test in tests for violation in test["known"])
    if baseline and not report.partial:
        report.paid_debts = sorted(baseline - {*report.new_debts, *report.known_debts})


def _debts(violations: Iterable[Mapping[str, Any]]) -> list[Debt]:
    return sorted({debt for violation in violations if (debt := debt_from_violation(violation))})


def _find(report: RunReport, told: _Told, waived: Sequence[str]) -> None:
    noted = [record for process in told.run for record in process.all("finding")]
    own = dict.fromkeys(Finding(r["name"], r["message"], str(r.get("remedy", ""))) for r in noted)
    concluded = findings(_facts(report, told))
    if _is_cut_short(told.run, told.tests):
        concluded = [finding for finding in concluded if finding.name not in _ABSENCE]
    report.findings = list(dict.fromkeys([*own, *concluded]))
    report.failing = failing(report.findings, waived)
    usage = {record["name"] for record in noted if record.get("severity") == "usage"}
    report.usage_errors = [finding for finding in report.failing if finding.name in usage]


def _facts(report: RunReport, told: _Told) -> Facts:
    run, tests = told.run, told.tests
    settings = told.environment.get("settings", {})
    unguarded = {test["nodeid"] for test in tests if test["verdict"] == "unguarded"}
    unjudged = [test for test in tests if not any(attempt.was_judged for attempt in told.attempts[test["nodeid"]])]
    why = {"skipped": "skipped", "xfailed": "skipped", "failed": "failed in setup"}
    not_run = Counter(why.get(test["outcome"], "not run") for test in unjudged)
    return Facts(
        guarded=sum(test["verdict"] in ("clean", "allowed", "known", "violated") for test in tests),
        not_run=not_run,
        tests=len(tests) - len(unjudged),
        ever_armed=frozenset(name for process in run for name in _ever_armed(process)),
        monitors=_monitors(run),
        warmups=[record for process in run for record in _session_warmups(process)],
        warmup_events=sum(len(_warmup_events(process, "")) for process in run),
        lost_records=sum(process.lost + len(process.rejected) for process in run),
        paid_debt=[str(debt) for debt in report.paid_debts],
        between=fleet.between(run, fleet.policy_of(told.environment), unguarded),
        silent=[told.census.sentence] if told.census.silent else [],
        silent_servers=fleet.silent_servers(told.servers) if settings.get("children") != "off" else (),
        unproven=fleet.unproven(run),
        troubles=fleet.troubles(run),
        children=str(settings.get("children") or "auto"),
        longest=fleet.longest_stall(run),
        budgets=told.environment.get("budgets") or {},
    )


# -- parts of the document ---------------------------------------------------------------------------------------------


def _environment(run: Sequence[Process]) -> dict[str, Any]:
    """Return the first process's environment, with the packages of all (a controller need not see the library)."""
    records = [record for process in run for record in process.all("environment")]
    if not records:
        return {}
    packages: dict[str, Any] = {}
    for record in records:
        seen = record.get("packages")
        for name, version in (seen if isinstance(seen, Mapping) else {}).items():
            packages[str(name)] = packages.get(str(name)) or version
    first = {name: value for name, value in records[0].items() if name != "record"}
    return {**first, "packages": packages}


def _monitor_states(process: Process) -> dict[str, dict[str, Any]]:
    """Return how the monitors of a process stood at last. Blind once is blind; being switched off at the end is not."""
    states: dict[str, dict[str, Any]] = {}
    summed_up = [record for session in process.all("session") for record in session["monitors"]]
    for record in (*process.all("monitor"), *summed_up):
        name = str(record["name"])
        before = states.get(name, {}).get("state")
        if before != "blind" and not (before and record["state"] == "off"):
            told = {key: record.get(key, "") for key in ("name", "state", "version", "detail")}
            states[name] = {**told, "net": bool(record.get("net")), "has_seen": bool(record.get("has_seen", True))}
    return states


def _ever_armed(process: Process) -> set[str]:
    summed_up = {str(name) for session in process.all("session") for name in session["ever_armed"]}
    return summed_up | {
        record["name"]
        for record in process.all("monitor")
        if record["state"] == "armed" and record.get("has_seen", True)
    }


def _monitors(run: Sequence[Process]) -> list[dict[str, Any]]:
    """Merge the monitors of all processes: the worst state wins."""
    merged: dict[str, tuple[dict[str, Any], Process]] = {}
    per_process: dict[str, list[dict[str, Any]]] = {}
    for process in run:
        for name, state in _monitor_states(process).items():
            per_process.setdefault(name, []).append({"pid": process.pid, "role": process.role, **state})
            if name not in merged or _badness(state, process) > _badness(*merged[name]):
                merged[name] = (state, process)
    return [
        {
            **merged[name][0],
            "version": next((p["version"] for p in per_process[name] if p["version"]), ""),
            "ever_armed": any(name in _ever_armed(process) for process in run),
            "processes": [{key: row[key] for key in ("pid", "role", "state", "detail")} for row in per_process[name]],
        }
        for name in sorted(merged)
    ]


def _badness(state: Mapping[str, Any], process: Process) -> int:
    if state["state"] == "unproven" and not process.is_guard:
        # A child has no canary. One that imports the library and compiles nothing says nothing about the others.
        return _STATES.index("waiting")
    return _STATES.index(state["state"]) if state["state"] in _STATES else len(_STATES)


def _session_warmups(process: Process) -> list[Record]:
    """Return the session's own warmup; that of a marker carries a label and fails its tests only."""
    return [record for record in process.all("warmup") if not record["label"] and record["status"] != "none"]


def _warmup_events(process: Process, owner: str) -> list[CompileEvent]:
    """Return what a warmup caused: the session's for the empty owner, else that of a marker."""
    placed = ((event, process.place(event)) for event in process.events)
    return [event for event, at in placed if at.phase == "warmup" and at.owner == owner and not at.attempt]


def _counts(every: Sequence[CompileEvent]) -> dict[str, int]:
    """Count events, a run of a tuner and what it compiled as one."""
    events = topmost(every)
    done = Counter(event.kind for event in events if event.status == "ok")
    return {
        "events": len(events),
        "compiled": done["compile"],
        "cache_loaded": done["cache_load"],
        "autotuned": done["autotune"],
        "failed": sum(event.status in ("failed", "interrupted") for event in events),
    }


def warmup_section(run: Sequence[Process]) -> dict[str, Any]:
    """Return the session's warmup over all processes, and every warmup per process."""
    session = [record for process in run for record in _session_warmups(process)]
    per_process = [_warmup_entry(process, record) for process in run for record in process.all("warmup")]
    gravest = max(session, key=_gravity, default={})
    return {
        "status": str(gravest.get("status", "none")),
        "cause": str(gravest.get("cause", "")),
        # Processes warm up side by side: the slowest is what people wait for.
        "seconds": max((float(record["seconds"]) for record in session), default=0.0),
        **_counts([event for process in run for event in _warmup_events(process, "")]),
        "steps": [step for record in session for step in _steps(record)],
        "processes": per_process,
    }


def _gravity(record: Record) -> int:
    return _WARMUP_STATUS.index(record["status"]) if record["status"] in _WARMUP_STATUS else len(_WARMUP_STATUS)


def _warmup_entry(process: Process, record: Record) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "role": process.role,
        "label": record["label"],
        "status": record["status"],
        "cause": record["cause"],
        "seconds": float(record["seconds"]),
        "waited": float(record.get("waited") or 0.0),
        "detail": str(record.get("detail") or ""),
        **_counts(_warmup_events(process, record["label"])),
        "steps": _steps(record),
    }


def _steps(record: Record) -> list[dict[str, Any]]:
    blank = {"path": "", "status": "", "seconds": None, "error": "", "traceback": ""}
    return [{**blank, **step} for step in record["steps"] if isinstance(step, Mapping)]


def event_entry(event: CompileEvent, process: Process) -> dict[str, Any]:
    """Return an event with its place in the run: phase, test (if it belongs to one), block."""
    placed, *others = process.places(event)
    return {
        "id": event.id,
        "system": event.system,
        "kind": event.kind,
        "status": event.status,
        "kernel": event.kernel,
        "module": event.module,
        "phase": placed.phase,
        "served": placed.served,
        "test": bare_nodeid(placed.owner) if placed.attempt else None,
        "attempt": placed.attempt or None,
        "group": placed.owner if not placed.attempt else "",
        "shared": [bare_nodeid(other.owner) for other in others],
        "scope": event.scope,
        "origin": event.origin,
        "reason": event.reason,
        "witnesses": list(event.witnesses),
        "label": placed.label,
        "started": event.started,
        "time": process.wall_clock(event.started),
        "seconds": event.seconds,
        "pid": event.pid,
        "host": event.host,
        "rank": event.rank,
        "world": event.world,
        "role": event.role,
        "thread": event.thread,
        "parent": event.parent,
        "artifact_hash": event.artifact_hash,
        "stages": event.stages,
        "stack": list(event.stack),
        "key": None if event.key is None else event.key.to_wire(),
        "launch": None if event.launch is None else event.launch.to_wire(),
        "detail": event.detail,
        "cure": event.cure,
    }


def _process_entry(process: Process) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "host": process.host,
        "role": process.role,
        "image": process.image,
        "scope": process.scope,
        "guard": str(process.hello.get("guard") or process.image),
        "rank": process.rank,
        "world": process.world,
        "argv": [str(part) for part in process.hello.get("argv") or ()],
        "replaced": process.replaced,
        "time": process.born or None,
        "died": process.died,
        "lost": process.lost,
        "rejected": process.rejected,
        "events": len(process.events),
        "order_dependent": any(session["order_dependent"] for session in process.all("session")),
        "launches": next((session.get("launches") for session in process.all("session")), None),
    }
