"""What the report says of processes as a fleet: servers, ranks, children that did not report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pytest_jitguard.core.census import Census, conclude
from pytest_jitguard.core.events import CompileEvent, process_name, server_name
from pytest_jitguard.core.kinds import FAILING_KINDS
from pytest_jitguard.core.kinship import doubles_of, mark_origins
from pytest_jitguard.core.phases import WARMING_PHASES, PhaseLog, RequestSpan
from pytest_jitguard.core.policy import Allowance, Policy
from pytest_jitguard.core.stalls import Stall, stalls
from pytest_jitguard.core.verdicts import deed
from pytest_jitguard.processes.journal import whole
from pytest_jitguard.reporters.attempts import bare_nodeid
from pytest_jitguard.reporters.reading import Process, Record


def relate(run: Sequence[Process]) -> set[str]:
    """Mark where loads from disk come from; return the ids of events that are told by another event already."""
    placed = [(event, process.place(event)) for process in run for event in process.events]
    warmed = [event for event, place in placed if place.phase in WARMING_PHASES]
    mark_origins((event for event, place in placed if place.served), warmed)
    return set(doubles_of([event for event, _ in placed]))


def policy_of(environment: Mapping[str, Any]) -> Policy:
    """Return the rules of the session, which hold for what no test answers for."""
    settings = environment.get("settings")
    fail_on = settings.get("fail_on") if isinstance(settings, Mapping) else None
    allowed = [Allowance(str(pattern), str(reason)) for pattern, reason in environment.get("allow", ())]
    return Policy(fail_on=frozenset(fail_on or FAILING_KINDS), allowances=tuple(allowed))


def between(run: Sequence[Process], policy: Policy, unguarded: Collection[str]) -> list[str]:
    """Tell of what servers served though no guarded test answers for it; the next test finds it warm.

    `unguarded` are the tests, by node id, that were not guarded.
    """
    told = []
    for process in run:
        for event in process.events if process.scope else ():
            owners = [bare_nodeid(placed.owner) for placed in process.places(event) if placed.served]
            answered = process.place(event).phase != "between" and not (owners and set(owners) <= set(unguarded))
            if not answered and policy.forbids(event) and not policy.allowance(event):
                told.append(_outside(event, process, owners))
    return told


def _outside(event: CompileEvent, process: Process, owners: Sequence[str]) -> str:
    """Say what a server compiled, and whose request it was for."""
    what = f"{event.kernel} ({event.system}) {deed(event, event.started)}"
    where = f"{server_name(process.scope)}, {process_name(event)}: {what}"
    if owners:
        return f"{where}, in {owners[0]}, which is not guarded"
    logs = [guard.phases for guard in process.guards]
    asked = (_asker(span, phases) for phases in logs for span in phases.in_flight(event.started, process.scope))
    return where + next(asked, "")


def _asker(span: RequestSpan, phases: PhaseLog) -> str:
    sent_in = phases.place(span.started).phase
    if not span.owner:
        return f", for a request sent in phase {sent_in}"
    late = sent_in == "serving"
    return f", for a late request of {span.owner}" if late else f", for a request sent in the {sent_in} of {span.owner}"


def longest_stall(run: Sequence[Process]) -> Stall | None:
    """Return the longest stall while serving."""
    served = [event for process in run for event in process.events if any(p.served for p in process.places(event))]
    return next(iter(stalls(served)), None)


def census(run: Sequence[Process]) -> Census:
    """Count the child processes that were started against those that reported."""
    started = [{**record, "host": process.host} for process in run for record in process.all("child")]
    return conclude(started, [process.hello for process in run if "monotonic" in process.hello])


def children_section(counted: Census, run: Sequence[Process], servers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the census of child processes."""
    silent = [{"pid": one.pid, "host": one.host, "how": one.how, "argv": list(one.argv)} for one in counted.silent]
    return {"python": counted.python, "reported": counted.reported, "silent": silent, "gone": gone(run, servers)}


def silent_servers(servers: Iterable[Mapping[str, Any]]) -> list[str]:
    """Tell of servers that came up, and of which no process reported: whatever they compiled was not seen."""
    return [
        f"{server['name']} ({' '.join(server['argv'])})"
        for server in servers
        if not server["processes"] and server["start_up_seconds"] is not None
    ]


def unproven(run: Sequence[Process]) -> list[str]:
    """Tell of monitors in servers of which nobody knows whether they saw anything.

    They hooked in, no event ever proved them, and their process ended (by a signal) before it could compare what is
    resident with what was seen. Ranks launch kernels; of others only a server without any event is told.
    """
    busy = {process.scope for process in run if process.events}
    return [
        f"{state['name']} in {server_name(process.scope)}, {process.name}"
        for process in run
        if process.scope and not process.all("bye") and (process.rank is not None or process.scope not in busy)
        for state in process.all("monitor")[-1:]
        if state["state"] == "unproven"
    ]


def troubles(run: Sequence[Process]) -> list[str]:
    """Tell of failures of the guard itself in child processes."""
    return [f"{process.name}: {record['message']}" for process in run for record in process.all("trouble")]


def servers_section(run: Sequence[Process]) -> list[dict[str, Any]]:
    """Return every server of the run: how it stood at last, and what its process tree compiled when."""
    latest: dict[str, Record] = {}
    for process in run:
        for record in process.all("server"):
            latest[record["scope"]] = record
    return [_server_entry(scope, record, run) for scope, record in latest.items()]


def _server_entry(scope: str, record: Record, run: Sequence[Process]) -> dict[str, Any]:
    mine = [process for process in run if process.scope == scope]
    placed = [(event, process.place(event)) for process in mine for event in process.events]
    phases = Counter("warmup" if p.phase in WARMING_PHASES else "served" if p.served else p.phase for _, p in placed)
    return {
        "scope": scope,
        "name": str(record["name"]),
        "state": record["state"],
        "url": record.get("url"),
        "pid": whole(record.get("pid")),
        "argv": [str(part) for part in _listed(record.get("argv"))],
        "log": record.get("log"),
        "start_up_seconds": _seconds(record.get("start_up_seconds")),
        "ended": str(record.get("ended") or ""),
        "processes": [process.pid for process in mine],
        "lost": [pid for pid in _listed(record.get("lost")) if whole(pid) is not None],
        "events": dict(sorted(phases.items())),
    }


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def gone(run: Iterable[Process], servers: Iterable[Mapping[str, Any]]) -> list[str]:
    """Name the child processes that ended without a goodbye; those of a server only if it still ran then."""
    ended = {(server["scope"], pid) for server in servers for pid in server["processes"] if pid not in server["lost"]}
    return [p.name for p in run if p.died and not p.is_guard and (p.scope, p.pid) not in ended]
