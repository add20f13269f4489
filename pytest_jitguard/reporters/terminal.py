"""What a run says on the terminal, as lines with markup; whoever owns a terminal writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pytest_jitguard import __version__
from pytest_jitguard.core.events import topmost
from pytest_jitguard.core.kinds import EXPECT, count, deeds, listed
from pytest_jitguard.core.settings import Settings
from pytest_jitguard.core.verdicts import detail, duration
from pytest_jitguard.reporters.attempts import ENFORCING
from pytest_jitguard.reporters.groups import KernelGroup, each_once, group_violations, one_line
from pytest_jitguard.reporters.model import RunReport

Line = tuple[str, dict[str, bool]]

MAX_LINES = 20
_MAX_FINDINGS = 6
_MIN_TRACEBACK, _MAX_TRACEBACK = 3, 15
_RED, _YELLOW, _GREEN, _PLAIN = {"red": True}, {"yellow": True}, {"green": True}, dict[str, bool]()
_RED_BOLD = {"red": True, "bold": True}


# -- while it runs -----------------------------------------------------------------------------------------------------


def header(settings: Settings) -> list[Line]:
    """Say in one line how the run is guarded, naming what differs from the usual."""
    steps = len(settings.steps())
    parts = [
        f"mode {settings.mode}",
        f"guarding {'all tests' if settings.guard == 'all' else 'marked tests'}",
        f"warmup {count(steps, 'step') if steps else 'not configured'}",
        f"cache {settings.cache}",
        f"monitors {', '.join(settings.monitors)}",
    ]
    if settings.offline:
        parts.append(f"offline target {settings.offline} (tensors on {settings.offline_tensors})")
    if settings.baseline:
        parts.append(f"known debt in {settings.baseline}")
    if settings.children != "auto":
        parts.append(f"children {settings.children}")
    if settings.waive:
        parts.append(f"waived {', '.join(settings.waive)}")
    return [(f"jitguard {__version__}: {'; '.join(parts)}", _PLAIN)]


def after_warmup(monitors: Sequence[Mapping[str, Any]], warmup: Mapping[str, Any]) -> list[Line]:
    """Say in one line which monitors watch and what was warmed; both in the form of the document's sections."""
    awake = [_monitor(monitor) for monitor in monitors if monitor["state"] != "waiting" and not _is_quiet(monitor)]
    watching = ", ".join(awake) or _asleep(monitors)
    failed = warmup["status"] in ("failed", "timeout")
    return [(f"jitguard: {watching}; {_warmed(warmup)}", _RED if failed else _PLAIN)]


def _asleep(monitors: Sequence[Mapping[str, Any]]) -> str:
    waiting = [monitor["name"] for monitor in monitors if monitor["state"] == "waiting"]
    if len(waiting) == 1:
        return f"monitor {waiting[0]} waiting for its library"
    return f"{len(waiting)} monitors waiting for their libraries" if waiting else "no compile seen yet"


def _is_quiet(monitor: Mapping[str, Any]) -> bool:
    """Tell whether nobody need hear of a monitor: a net is always there, some libraries come with every torch."""
    said = monitor["state"] == "blind" or (monitor["state"] == "unproven" and monitor["detail"])
    return not said and not monitor.get("has_seen", True)


def _monitor(monitor: Mapping[str, Any]) -> str:
    words = (monitor["name"], monitor.get("version"), monitor["state"])
    why = f" ({one_line(monitor['detail'])})" if monitor["state"] in ("blind", "unproven") and monitor["detail"] else ""
    return " ".join(str(word) for word in words if word) + why


def _warmed(warmup: Mapping[str, Any]) -> str:
    if warmup["status"] == "none":
        return "no warmup configured"
    if warmup["status"] != "ok":
        return one_line(warmup["cause"])
    did = f"{warmup['compiled']} compiled, {warmup['cache_loaded']} loaded from disk, {warmup['autotuned']} autotuned"
    warmed = sum(not process["label"] and process["status"] != "none" for process in warmup.get("processes", ()))
    where = f" in {warmed} processes" if warmed > 1 else ""
    return f"warmup {duration(warmup['seconds'])}{where}: {did}"


def violation_line(nodeid: str, headline: str) -> list[Line]:
    """Say a violation when it happens."""
    return [(f"jitguard: {nodeid}: {one_line(headline)}", _RED)]


# -- at the end --------------------------------------------------------------------------------------------------------


def summary(
    report: RunReport,
    verbose: int = 0,
    width: int = 100,
    *,
    places: Mapping[str, str] | None = None,
    problems: Sequence[str] = (),
) -> list[Line]:
    """Sum the run up: at most 20 lines, everything with `verbose`.

    `places` says what was written where, `problems` what could not be written or done; they come first.
    """
    document = report.document
    top = [*((problem, _RED_BOLD) for problem in problems), *_findings(report, verbose), *_dead(document)]
    top.append(_headline(report))
    tail, where = _notes(document, verbose), _places(document, places or {})
    groups = group_violations(document["tests"])
    if verbose > 0:
        return [
            *top,
            *(line for group in groups for line in _in_detail(group)),
            *tail,
            *_warmup_detail(document),
            *where,
        ]
    room = MAX_LINES - len(top) - len(tail) - len(where)
    trace = _last_of_traceback(document, room - bool(groups))
    middle = [*trace, *_shortened_groups(groups, max(1, room - len(trace)))]
    return [*((_fit(text, width), markup) for text, markup in (*top, *middle, *tail)), *where]


def _fit(text: str, width: int) -> str:
    """Let a line take two rows of a wide terminal or three of a narrow one: more would not be a summary."""
    room = max(2 * width, 240)
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _findings(report: RunReport, verbose: int) -> list[Line]:
    failing = [(one_line(str(finding)), _RED_BOLD) for finding in report.failing]
    rest = [finding for finding in report.findings if finding not in report.failing]
    lenient = [(f"{'warning' if f.severity == 'warning' else 'waived'}: {one_line(str(f))}", _YELLOW) for f in rest]
    lines = [*failing, *lenient]
    if verbose > 0 or len(lines) <= _MAX_FINDINGS:
        return lines
    left_out = len(lines) - (_MAX_FINDINGS - 1)
    return [*lines[: _MAX_FINDINGS - 1], (f"… and {count(left_out, 'more finding')} (-v shows all)", _RED)]


def _dead(document: Mapping[str, Any]) -> list[Line]:
    guards = (p for p in document["processes"] if p["guard"] == p["image"])
    dead = [f"{p['role'] or 'process'} (pid {p['pid']})" for p in guards if p["died"]]
    if not dead:
        return []
    told = "this report ends where its journal ends" if len(dead) == 1 else "this report ends where their journals end"
    return [(f"killed or crashed: {_some(dead)}; {told}", _RED_BOLD)]


def _some(names: Sequence[str], most: int = 3) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _headline(report: RunReport) -> Line:
    tests = report.document["tests"]
    guarded = [test for test in tests if test["verdict"] in ("clean", "allowed", "known", "violated")]
    violated = [test for test in guarded if test["verdict"] == "violated"]
    if not violated:
        if not guarded:
            return ("no guarded test was judged", _PLAIN if report.passed else _YELLOW)
        text = f"{count(len(guarded), 'guarded test')}, no unexpected compile{_launched(guarded)}"
        return (text, _GREEN if report.passed else _PLAIN)
    breaches = each_once(violation for test in violated for violation in topmost(test["violations"]))
    kinds = [violation["kind"] for violation in breaches]
    known = any(kind != EXPECT for kind in kinds)
    seconds = [violation["seconds"] for violation in breaches if violation["seconds"] is not None]
    cost = f", {duration(sum(seconds))} together" if seconds else ""
    text = f"{'unexpected: ' if known else ''}{deeds(kinds)} in {len(violated)} of "
    text += f"{count(len(guarded), 'guarded test')}{cost}"
    return (text, _RED_BOLD if report.violated else _YELLOW)


def _launched(tests: Iterable[Mapping[str, Any]]) -> str:
    counted = [test["evidence"]["launches"] for test in tests if test["evidence"]["launches"] is not None]
    return f" in {count(sum(counted), 'launch', 'launches')}" if sum(counted) else ""  # those of servers do not count


def _shortened_groups(groups: Sequence[KernelGroup], room: int) -> list[Line]:
    shown = groups if len(groups) <= room else groups[: room - 1]
    lines = [(group.line, _RED) for group in shown]
    left_out = groups[len(shown) :]
    if left_out:
        seconds = sum(group.seconds for group in left_out)
        events = sum(len(group.violations) for group in left_out)
        cost = f", {duration(seconds)}" if seconds else ""
        text = f"… and {count(len(left_out), 'more kernel')} with {count(events, 'violation')}{cost}"
        lines.append((f"{text} (-v shows all)", _RED))
    return lines


def _in_detail(group: KernelGroup) -> list[Line]:
    lines: list[Line] = [(group.line, _RED_BOLD)]
    before: list[str] = []
    for violation in group.worst_first:
        lines.append((f"  {violation['nodeid']}: {one_line(violation['message'])}", _RED))
        facts = detail(violation)
        lines += [(f"    {text}", _PLAIN) for text in (["as above"] if facts and facts == before else facts)]
        before = facts
    if group.cures:
        entries = (f"    {line}".rstrip() for line in group.entries().splitlines())
        lines += [(text, _PLAIN) for text in ("  add this to the warmup:", *entries)]
    lines += [(f"  {advice}", _PLAIN) for advice in group.advice]
    return lines


def _notes(document: Mapping[str, Any], verbose: int) -> list[Line]:
    notes = [*_tolerated(document, verbose), *_lenient(document), *_cut_short(document), *_not_judged(document)]
    notes += [*_servers(document), *_gone(document)]
    unarmed = [
        _monitor(monitor)
        for monitor in document["monitors"]
        if monitor["state"] not in ("armed", "waiting") and not _is_quiet(monitor)
    ]
    if unarmed:
        notes.append((f"monitors that are not armed: {'; '.join(unarmed)}", _YELLOW))
    if document["order_dependent"]:
        text = "order dependent: variants stayed resident between tests, so verdicts can depend on the order of tests"
        notes.append((text, _YELLOW))
    return notes


def _tolerated(document: Mapping[str, Any], verbose: int) -> list[Line]:
    allowed = [item for test in document["tests"] for item in topmost(test["allowed"])]
    known = [item for test in document["tests"] for item in topmost(test["known"])]
    parts = []
    if allowed:
        parts.append(f"allowed: {deeds([a['kind'] for a in allowed])} ({_kernels(allowed)})")
    if known:
        parts.append(f"known debt: {deeds([k['kind'] for k in known])} ({_kernels(known)})")
    lines: list[Line] = [("; ".join(parts), _PLAIN)] if parts else []
    if verbose > 0:
        lines += [(f"  allowed {a['kernel']}: {one_line(a['reason'])}", _PLAIN) for a in allowed]
        lines += [(f"  known {one_line(k['message'])}", _PLAIN) for k in known]
    return lines


def _kernels(items: Iterable[Mapping[str, Any]]) -> str:
    return _some(sorted({str(item["kernel"]) for item in items}))


def _lenient(document: Mapping[str, Any]) -> list[Line]:
    """Say in one line why a violation did not make its test fail."""
    violated = [test for test in document["tests"] if test["verdict"] == "violated"]
    lenient = [test for test in violated if test["mode"] not in ENFORCING]
    expected = [test for test in violated if test["mode"] in ENFORCING and test["outcome"] == "xfailed"]
    parts = []
    if lenient:
        modes = listed(sorted({str(test["mode"]) for test in lenient}))
        parts.append(f"{count(len(lenient), 'violated test')} in mode {modes} did not fail")
    if expected:
        parts.append(f"{count(len(expected), 'violated test')} failed as expected (xfail)")
    return [("; ".join(parts), _YELLOW)] if parts else []


def _cut_short(document: Mapping[str, Any]) -> list[Line]:
    names = [test["nodeid"] for test in document["tests"] if test["verdict"] == "interrupted"]
    return [(f"never came to an end: {_some(names)}", _RED)] if names else []


def _not_judged(document: Mapping[str, Any]) -> list[Line]:
    names = [test["nodeid"] for test in document["tests"] if test["verdict"] == "error"]
    return [(f"not judged, since their setup failed: {_some(names)}", _RED)] if names else []


def _servers(document: Mapping[str, Any]) -> list[Line]:
    """Say of each server how it came up and what it compiled meanwhile."""
    lines: list[Line] = []
    for server in document["servers"]:
        ready = server["start_up_seconds"]
        came = f"warm after {duration(ready)}" if ready is not None else f"never ready ({server['state']})"
        warmed = count(server["events"].get("warmup", 0), "event")
        ended = f", {server['ended']}" if server["ended"] else ""
        processes = count(len(server["processes"]), "process reported", "processes reported")
        if document["environment"].get("settings", {}).get("children") == "off":
            processes = "not watched (--jitguard-children=off)"
        lines.append((f"server {server['name']}: {came}, {warmed} in its warmup, {processes}{ended}", _PLAIN))
    return lines


def _gone(document: Mapping[str, Any]) -> list[Line]:
    """Name the children that ended without a goodbye: what they last did may not be told."""
    gone = document["children"]["gone"]
    return [(f"gone without a goodbye: {_some(gone)}", _PLAIN)] if gone else []


def _places(document: Mapping[str, Any], places: Mapping[str, str]) -> list[Line]:
    cache = {"keep": "compile caches kept from earlier runs", "cold": "compile caches cold"}.get(document["cache"])
    lines: list[Line] = [(cache, _PLAIN)] if cache else []
    written = "; ".join(f"{what}: {where}" for what, where in places.items() if where)
    return [*lines, (written, _PLAIN)] if written else lines


def _warmup_detail(document: Mapping[str, Any]) -> list[Line]:
    lines: list[Line] = []
    for warmup in document["warmup"]["processes"]:
        whose = f" ({warmup['label'].removeprefix('warmup:')})" if warmup["label"] else ""
        lines.append((f"{warmup['role']} (pid {warmup['pid']}): {_warmed(warmup)}{whose}", _PLAIN))
        for step in warmup["steps"]:
            lines.append((f"  {step['path']}: {step['status']}, {duration(step['seconds'])}", _PLAIN))
        lines += [(f"    {text}", _RED) for text in _traceback(warmup)]
    return lines


def _traceback(warmup: Mapping[str, Any]) -> list[str]:
    """Return the traceback, or the stacks, of one process's warmup."""
    last = warmup["steps"][-1]["traceback"] if warmup["steps"] else ""
    return str(warmup["detail"] or last or "").splitlines()


def _last_of_traceback(document: Mapping[str, Any], room: int) -> list[Line]:
    """Return the end of the first traceback of the session's failed warmup: it says what went wrong, and where."""
    failed = (w for w in document["warmup"]["processes"] if not w["label"] and w["status"] in ("failed", "timeout"))
    text = next((trace for trace in map(_traceback, failed) if trace), [])
    most = max(_MIN_TRACEBACK, min(_MAX_TRACEBACK, room))
    if len(text) > most:
        text = ["… (-v shows all)", *text[len(text) - most + 1 :]]
    return [(f"  {line}", _RED) for line in text]
