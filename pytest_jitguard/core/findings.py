"""Findings about a whole session: what makes its green worth nothing, whatever the tests say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_jitguard.core.kinds import count, listed
from pytest_jitguard.core.stalls import Stall, over_budget


@dataclass(frozen=True)
class Finding:
    """One reason to fail a session. `name` is what `jitguard_waive` lifts it by; `remedy` says what to do.

    `severity` is `error`, or `warning` for what is told and fails nothing.
    """

    name: str
    message: str
    remedy: str = ""
    severity: str = "error"

    def __str__(self) -> str:
        return f"{self.name}: {self.message}" + (f" ({self.remedy})" if self.remedy else "")

    def to_wire(self) -> dict[str, str]:
        """Return the finding as plain types."""
        return {"name": self.name, "message": self.message, "remedy": self.remedy, "severity": self.severity}


@dataclass
class Facts:
    """What all processes of a session report together.

    `guarded` counts guarded tests whose call ran; `not_run` says why others did not. `warmups` are the warmup records.
    `warmup_events` counts events of every kind that began in warmup windows. `between` tells of what servers compiled
    outside of every guarded test, `silent` of child processes that did not report, `silent_servers` of servers of
    which no process did, `troubles` of what failed of our own in children; `children` is the setting. `longest` is the
    longest stall while serving, held against `budgets`.
    """

    guarded: int = 0
    not_run: Mapping[str, int] = field(default_factory=dict)
    tests: int = 0
    ever_armed: frozenset[str] = frozenset()
    monitors: Sequence[Mapping[str, Any]] = ()
    warmups: Sequence[Mapping[str, Any]] = ()
    warmup_events: int = 0
    lost_records: int = 0
    paid_debt: Sequence[str] = ()
    between: Sequence[str] = ()
    silent: Sequence[str] = ()
    silent_servers: Sequence[str] = ()
    unproven: Sequence[str] = ()
    troubles: Sequence[str] = ()
    children: str = "auto"
    longest: Stall | None = None
    budgets: Mapping[str, float] = field(default_factory=dict)


def findings(facts: Facts) -> list[Finding]:
    """Return every finding, the gravest first; nothing is waived here."""
    failed = _warmup_findings(facts)
    # After a failed warmup no guarded test runs: that nothing was guarded is no news.
    unguarded = [] if any(finding.name == "warmup-failed" for finding in failed) else _guard_findings(facts)
    found = [*failed, *unguarded, *_monitor_findings(facts), *_process_findings(facts)]
    if facts.lost_records:
        message = f"{count(facts.lost_records, 'record')} could not be written or read back"
        found.append(Finding("journal-incomplete", message, "see the journal folder's file system"))
    if facts.paid_debt:
        listed = ", ".join(facts.paid_debt)
        remedy = "strike it from the baseline, or run with --jitguard-update-baseline"
        found.append(Finding("paid-debt", f"known debt did not show any more: {listed}", remedy))
    return found


def _warmup_findings(facts: Facts) -> list[Finding]:
    failed = [warmup for warmup in facts.warmups if warmup["status"] in ("failed", "timeout")]
    if failed:
        return [Finding("warmup-failed", str(failed[0]["cause"]))]
    if facts.warmups and not facts.warmup_events:
        steps = sum(len(warmup["steps"]) for warmup in facts.warmups)
        message = f"the warmup ran {count(steps, 'step')} and compiled, loaded and tuned nothing"
        return [Finding("warmup-empty", message, "does it reach the kernels?")]
    return []


def _guard_findings(facts: Facts) -> list[Finding]:
    if not facts.guarded:
        why = ", ".join(f"{number} {reason}" for reason, number in facts.not_run.items() if number)
        few = {0: "no test ran", 1: "1 test ran and it was not guarded"}
        message = few.get(facts.tests, f"{facts.tests} tests ran, none of them guarded") + (f" ({why})" if why else "")
        ran = facts.tests or not any(facts.not_run.values())  # else there were tests, and marks are not what they lack
        remedy = "mark tests with @pytest.mark.jitguard, or set jitguard_guard = all" if ran else ""
        return [Finding("nothing-guarded", message, remedy)]
    if not facts.ever_armed:
        message = f"{count(facts.guarded, 'guarded test')} ran, but no monitor was ever armed in any process"
        unheard = "what a server does is seen only if its processes report"
        remedy = unheard if facts.silent_servers else "was the JIT library imported at all?"
        return [Finding("nothing-watched", message, remedy)]
    return []


def _process_findings(facts: Facts) -> list[Finding]:
    found = []
    if facts.between:
        more = len(facts.between) - _MOST
        what = "; ".join([*facts.between[:_MOST], *([f"{more} more"] if more > 0 else [])])
        remedy = "send it in the call of a guarded test that uses the server, or in its warmup"
        found.append(Finding("between", f"no guarded test answers for what was served: {what}", remedy))
    for server in facts.silent_servers:
        remedy = "is pytest-jitguard installed where it runs?"
        found.append(Finding("server-silent", f"no process of server {server} reported", remedy))
    if exceeded := over_budget(facts.longest, facts.budgets):
        message = f"{facts.longest}, over {listed(exceeded)}"
        found.append(Finding("stall-budget", message, "budgets stand in [tool.jitguard.budgets]"))
    if facts.unproven:
        what = listed(facts.unproven)
        message = f"monitors that saw nothing, in processes that ended without a last look: {what}"
        found.append(Finding("unproven", message, "let the server's warmup reach a kernel", "warning"))
    severity = "error" if facts.children == "require" else "warning"
    remedy = "is pytest-jitguard installed in their environment? A client that compiles nothing need not report"
    told = [Finding("children", silent, remedy, severity) for silent in facts.silent]
    return [*found, *told, *(Finding("children", trouble, "", severity) for trouble in facts.troubles)]


_MOST = 3
"""How many events a finding tells of by name."""


def _monitor_findings(facts: Facts) -> list[Finding]:
    blind = {str(m["name"]): str(m["detail"]) for m in facts.monitors if m["state"] == "blind"}
    return [Finding(f"blind:{name}", f"the {name} monitor went blind: {why}") for name, why in blind.items()]


def failing(found: Sequence[Finding], waived: Sequence[str]) -> list[Finding]:
    """Return the findings that nobody waived. A failed warmup cannot be waived, a warning fails nothing."""
    return [finding for finding in found if finding.name not in waived and finding.severity == "error"]
