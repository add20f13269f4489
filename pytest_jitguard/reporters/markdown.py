"""The report as GitHub-flavoured Markdown, small enough for a step summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_jitguard.core.events import topmost
from pytest_jitguard.core.kinds import count, deeds
from pytest_jitguard.core.verdicts import detail
from pytest_jitguard.reporters.groups import KernelGroup, cause_of, group_violations, one_line
from pytest_jitguard.reporters.model import RunReport

LIMIT = 1024 * 1024 - 4096
"""GitHub drops a step summary of more than 1 MiB as a whole."""

_MAX_ROWS, _MAX_CELL, _MAX_ITEMS, _MAX_SHOWN = 200, 300, 50, 20


def render(report: RunReport, limit: int = LIMIT) -> str:
    """Return the report as text of at most `limit` bytes; what did not fit is counted at the end."""
    document = report.document
    groups = group_violations(document["tests"])
    head = [f"## jitguard: {document['verdict']}", _summary_line(document), *_findings(document)]
    head += [*_table(groups), *_footnotes(document)]
    text = "\n\n".join(head) + "\n"
    reserve = 200
    if _size(text) > limit - reserve:
        text = text.encode("utf-8", "replace")[: max(0, limit - reserve)].decode("utf-8", "ignore")
        return f"{text}\n\n*Cut off here: the report is longer than fits.*\n"
    left_out = 0
    for group in groups:
        detail = f"\n{_details(group)}\n"
        if _size(text) + _size(detail) > limit - reserve:
            left_out += 1
        else:
            text += detail
    if left_out:
        text += f"\n*The details of {count(left_out, 'kernel')} are left out: the report would not fit.*\n"
    return text


def append(path: Path, text: str) -> None:
    """Append a report to a file, after a blank line if something is there already. OSError if it cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", errors="replace") as file:
        file.write(f"\n{text}" if path.is_file() and path.stat().st_size else text)


def room_in(path: Path) -> int:
    """Return how many bytes may be appended to a step summary; what others wrote into it counts as well."""
    return max(0, LIMIT - path.stat().st_size) if path.is_file() else LIMIT


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


# -- head --------------------------------------------------------------------------------------------------------------


def _summary_line(document: Mapping[str, Any]) -> str:
    tests = document["tests"]
    words = ("violated", "error", "interrupted", "known", "allowed", "clean", "unguarded")
    counted = ((word, sum(test["verdict"] == word for test in tests)) for word in words)
    verdicts = ", ".join(f"{number} {word}" for word, number in counted if number)
    warmup = document["warmup"]
    did = f"{warmup['compiled']} compiled, {warmup['cache_loaded']} loaded from disk, {warmup['autotuned']} autotuned"
    warmed = "no warmup" if warmup["status"] == "none" else f"warmup {warmup['status']}, {did}"
    return f"{count(len(tests), 'test')}{f': {verdicts}' if verdicts else ''}. {warmed.capitalize()}."


def _findings(document: Mapping[str, Any]) -> list[str]:
    told = [_finding(finding) for finding in document["findings"]]
    told += [f"- {_escape(reason)}" for reason in document["reasons"] if "ended without a goodbye" in reason]
    told += [f"- never came to an end: {_code(test['nodeid'])}" for test in _of_verdict(document, "interrupted")]
    told += [
        f"- not judged, since its setup failed: {_code(test['nodeid'])}" for test in _of_verdict(document, "error")
    ]
    return [_listed(told)] if told else []


def _of_verdict(document: Mapping[str, Any], word: str) -> list[Mapping[str, Any]]:
    return [test for test in document["tests"] if test["verdict"] == word]


def _finding(finding: Mapping[str, Any]) -> str:
    remedy = f" ({finding['remedy']})" if finding["remedy"] else ""
    name = f"{_code(finding['name'])}{' (waived)' if finding['waived'] else ''}"
    return f"- {name}: {_escape(finding['message'])}{_escape(remedy)}"


def _listed(lines: Sequence[str]) -> str:
    rest = len(lines) - _MAX_ITEMS
    return "\n".join([*lines[:_MAX_ITEMS], *([f"- … and {rest} more"] if rest > 0 else [])])


def _table(groups: Sequence[KernelGroup]) -> list[str]:
    if not groups:
        return []
    head = ["| kernel | system | what happened | tests | time | why | launched at |", "|---|---|---|--:|--:|---|---|"]
    rows = [_row(group) for group in groups[:_MAX_ROWS]]
    left_out = len(groups) - len(rows)
    table = "\n".join([*head, *rows])
    return [table, f"*… and {count(left_out, 'more kernel')}.*"] if left_out else [table]


def _row(group: KernelGroup) -> str:
    if group.message:
        cells = ["", "", "not reached", str(len(group.tests)), "", _escape(group.message, _MAX_CELL), ""]
    else:
        why = _escape(cause_of(group.worst), _MAX_CELL)
        site = _code_in_table(group.site) if group.site else ""
        tests = str(len(group.tests))
        cells = [_code_in_table(group.name), _escape(group.system), group.happened, tests, group.cost, why, site]
    return f"| {' | '.join(cells)} |"


def _footnotes(document: Mapping[str, Any]) -> list[str]:
    notes = []
    for name in ("allowed", "known"):
        items = [item for test in document["tests"] for item in topmost(test[name])]
        kernels = sorted({_code(str(item["kernel"])) for item in items})
        if items:
            word = "allowed" if name == "allowed" else "known debt"
            notes.append(f"- {word}: {deeds(item['kind'] for item in items)} of {', '.join(kernels[:_MAX_SHOWN])}")
    for monitor in document["monitors"]:
        detail = f": {_escape(monitor['detail'])}" if monitor["detail"] else ""
        version = f" {_escape(monitor['version'])}" if monitor["version"] else ""
        notes.append(f"- monitor {_code(monitor['name'])}{version} {monitor['state']}{detail}")
    if document["order_dependent"]:
        notes.append("- order dependent: variants stayed resident between tests")
    notes.append(f"- compile caches: {_escape(document['cache'])}")
    return [_listed(notes)]


# -- details -----------------------------------------------------------------------------------------------------------


def _details(group: KernelGroup) -> str:
    parts = [f"<details><summary>{_html(group.line)}</summary>"]
    if group.cures:
        parts += ["Add this to the warmup:", _fenced(group.entries(_MAX_ITEMS), "python")]
        if len(group.cures) > _MAX_ITEMS:
            parts.append(f"*… and {count(len(group.cures) - _MAX_ITEMS, 'more warmup entry', 'more warmup entries')}.*")
    shown = group.worst_first[:_MAX_SHOWN]
    told = [line for violation in shown for line in (*_told(violation), "")]
    parts.append(_fenced("\n".join(told).rstrip(), "text"))
    if len(group.violations) > len(shown):
        parts.append(f"*… and {count(len(group.violations) - len(shown), 'more violation')}.*")
    parts += [_escape(advice) for advice in group.advice]
    return "\n\n".join([*parts, "</details>"])


def _told(violation: Mapping[str, Any]) -> list[str]:
    """Return a violation with its detail, without the cure and the advice, which are told once for all."""
    return [f"{violation['nodeid']}:", f"  {one_line(violation['message'])}", *(f"    {t}" for t in detail(violation))]


def _fenced(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _html(text: str) -> str:
    return one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _escape(text: str, most: int = 4000) -> str:
    """Keep a text from being read as markup, in a table as elsewhere."""
    short = one_line(str(text))
    short = short if len(short) <= most else f"{short[: most - 1]}…"
    for mark in "\\`*_|~[]#":
        short = short.replace(mark, f"\\{mark}")
    return short.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _code(text: str) -> str:
    """Show a name as code, whatever backticks are in it."""
    name = one_line(str(text))
    return f"`` {name} ``" if "`" in name else f"`{name}`"


def _code_in_table(text: str) -> str:
    """Show a name as code in a table, where a bare pipe would end the cell even in code."""
    return _code(text).replace("|", "\\|")
