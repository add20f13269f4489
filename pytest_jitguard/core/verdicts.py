"""The judgement over one guarded test, as data that carries its own words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_jitguard.core.events import GUARDS, CompileEvent, process_name, server_name, topmost
from pytest_jitguard.core.explain import Background, Explanation, explain
from pytest_jitguard.core.kinds import EXPECT, deeds, words
from pytest_jitguard.core.policy import Allowance, Policy

VERDICTS = ("clean", "unguarded", "allowed", "known", "interrupted", "error", "violated")
"""From best to worst: where a test has several attempts, the worst verdict is the test's."""


def worst(verdicts: Sequence[str]) -> str:
    """Return the worst of some verdict words."""
    return max(verdicts, key=VERDICTS.index, default="unguarded")


def duration(seconds: float | None) -> str:
    """Say a duration as people do: `3.1 ms`, `0.83 s`, `12 s`."""
    if seconds is None:
        return "an unknown time"
    if seconds < 0.1:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def deed(event: CompileEvent, now: float) -> str:
    """Say what happened and how long it took: `compiled in 0.83 s`, `still compiling after 5.0 s`."""
    said = words(event.kind)
    if event.status == "running":
        return f"still {said.participle} after {max(0.0, now - event.started):.1f} s"
    if event.status == "interrupted":
        return f"began to {said.infinitive} and never came to an end"
    if event.status == "failed":
        return f"failed to {said.infinitive} (within {duration(event.seconds)})"
    return f"{said.past} in {duration(event.seconds)}"


@dataclass
class Violation:
    """One breach: an event that the policy forbids, or an expected kernel that was not reached (no event).

    `exceeded` names the limits that it exceeds together with the other violations of its test, if there are any.
    `request` says which requests were under way, as far as their driver told.
    """

    message: str
    event: CompileEvent | None = None
    explanation: Explanation = field(default_factory=lambda: Explanation(""))
    label: str = ""
    exceeded: str = ""
    request: str = ""

    @classmethod
    def of(
        cls, event: CompileEvent, explanation: Explanation, now: float, label: str = "", request: str = ""
    ) -> Violation:
        """Word a forbidden event: the whole story in one line."""
        where = f" while serving {label}" if label else " while serving"
        message = f"{event.kernel} ({event.system}) {deed(event, now)}{_elsewhere(event)}{where}: {explanation.cause}"
        return cls(message, event, explanation, label, request=request)

    def to_wire(self, phase: str = "serving") -> dict[str, Any]:
        """Return the violation in the form of the JSON report."""
        event, why = self.event, self.explanation
        return {
            "event": event.id if event else None,
            "system": event.system if event else None,
            "parent": event.parent if event else None,
            "kind": event.kind if event else EXPECT,
            "kernel": event.kernel if event else None,
            "module": event.module if event else None,
            "seconds": event.seconds if event else None,
            "pid": event.pid if event else None,
            "role": event.role if event else "",
            "rank": event.rank if event else None,
            "world": event.world if event else None,
            "scope": event.scope if event else "",
            "origin": event.origin if event else "",
            "request": self.request,
            "phase": phase,
            "label": self.label,
            "message": self.message,
            "cause": why.cause,
            "never_warmed": why.never_warmed,
            "changes": [change.to_wire() for change in why.changes],
            "launch_site": why.launch_site,
            "called_from": why.called_from,
            "cure": why.cure,
            "advice": why.advice,
        }


BY_REQUEST = (
    "or, if it is started like that in production too, send such a request as its warmup: "
    "jitguard_server(..., warmup=sweep([LENGTH]))"
)
"""How else a server can be cured. A warmup that only the tests send would hide the gap and cure nothing."""


def _elsewhere(event: CompileEvent) -> str:
    if event.role in GUARDS:
        return ""
    name = process_name(event)
    server = f" of server {server_name(event.scope)}" if event.scope else ""
    return f" {'on' if name.startswith('rank ') else 'in'} {name}{server}"


def wholes(violations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return violations in their wire form without those that are part of another one: that has them as `parts`."""
    whole = topmost(violations)
    return [{**v, "parts": [p for p in violations if v["event"] and p.get("parent") == v["event"]]} for v in whole]


def detail(violation: Mapping[str, Any]) -> list[str]:
    """Return what is told under the message of one of `wholes`, the same in every report: what, where, what within."""
    changes = violation["changes"]
    facts = [f"{c['component']}: {c.get('text') or '{warmed} → {served}'.format(**c)}" for c in changes]
    lines = [f"{'' if n else 'changed':8s} {fact}" for n, fact in enumerate(facts)]
    for name, key in (("launched", "launch_site"), ("called", "called_from")):
        if violation[key]:
            lines.append(f"{name:8s} {violation[key]}")
    if violation.get("request"):
        lines.append(f"request  {violation['request']}")
    if (violation.get("world") or 1) > 1 and violation["seconds"] and violation["role"] not in GUARDS:
        cost = duration(violation["seconds"])
        lines.append(f"stall    up to {cost} × {violation['world']} GPUs, since ranks wait for each other")
    if violation["parts"]:
        seconds = sum(part["seconds"] or 0.0 for part in violation["parts"])
        why = ", one for each config that was tried" if violation["kind"] == "autotune" else ""
        lines.append(f"within   {deeds(part['kind'] for part in violation['parts'])}, {duration(seconds)}{why}")
    return lines


def merge_entries(entries: Iterable[str]) -> str:
    """Put several warmup entries under one set of imports; an entry is imports, an empty line, and calls."""
    imports: dict[str, None] = {}
    calls: dict[str, None] = {}
    for entry in entries:
        head, _, call = entry.rpartition("\n\n")
        imports |= dict.fromkeys(head.splitlines())
        calls |= dict.fromkeys([call] if call else [])
    return "\n".join(
        [*sorted(imports, key=lambda line: (not line.startswith("import"), line)), *([""] if imports else []), *calls]
    )


@dataclass
class Verdict:
    """What became of one attempt of one test."""

    nodeid: str
    verdict: str
    mode: str = "fail"
    attempt: int = 1
    violations: list[Violation] = field(default_factory=list)
    allowed: list[dict[str, Any]] = field(default_factory=list)
    known: list[Violation] = field(default_factory=list)
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def violated(self) -> bool:
        """Whether the policy was breached, whatever the mode makes of it."""
        return self.verdict == "violated"

    @property
    def headline(self) -> str:
        """The whole story in one line."""
        told = self._wholes()
        budget = next((f"{v.exceeded} exceeded: " for v in self.violations if v.exceeded), "")
        first = str(told[0]["message"])
        if len(told) == 1:
            return f"{budget}{first}"
        seconds = [violation["seconds"] for violation in told if violation["seconds"] is not None]
        cost = f", {duration(sum(seconds))} together" if seconds else ""
        return f"{budget}{deeds((v['kind'] for v in told), 'unexpected')}{cost}, first: {first}"

    @property
    def text(self) -> str:
        """The message of the failure: headline, then every violation with its detail, then what would cure them."""
        lines, told = [self.headline], self._wholes()
        for violation in told:
            lines += ["", violation["message"]] if len(told) > 1 else [""]
            lines += [f"  {line}" for line in detail(violation)]
        entries = merge_entries(violation["cure"] for violation in told)
        if entries:
            lines += ["", "  add this to the warmup:", *(f"    {line}".rstrip() for line in entries.splitlines())]
        if any(violation["scope"] for violation in told):
            lines += ["", f"  {BY_REQUEST}"]
        # Last, since it has a price that the warmup entry has not.
        lines += [f"\n  {text}" for text in dict.fromkeys(violation["advice"] for violation in told) if text]
        return "\n".join(lines)

    def _wholes(self) -> list[dict[str, Any]]:
        return wholes([violation.to_wire() for violation in self.violations])

    def to_wire(self) -> dict[str, Any]:
        """Return the verdict as plain types, for the journal; what rides on the test report is only its headline."""
        return {
            "record": "verdict",
            "nodeid": self.nodeid,
            "attempt": self.attempt,
            "mode": self.mode,
            "verdict": self.verdict,
            "violations": [violation.to_wire() for violation in self.violations],
            "allowed": self.allowed,
            "known": [violation.to_wire() for violation in self.known],
            "evidence": self.evidence,
        }


@dataclass(frozen=True)
class Served:
    """An event of the serving phase: the label of its block, and why its block is exempt (empty if it is not).

    `request` says which requests were under way when it began.
    """

    event: CompileEvent
    label: str = ""
    exempt: str = ""
    request: str = ""


def judge(
    verdict: Verdict,
    served: Sequence[Served],
    policy: Policy,
    background: Background,
    is_known: Callable[[CompileEvent, Explanation], bool],
    now: float,
) -> Verdict:
    """Judge the serving events of a test and fill in its verdict.

    Allowances come first, then the baseline (`is_known(event, explanation)`), then the budget over what is left.
    """
    left: list[Violation] = []
    excused: dict[str, Allowance] = {}
    for item in served:
        # What is allowed is allowed with its parts: the kernels of a recompile, the tools of a build.
        allowance = policy.allowance(item.event) or excused.get(item.event.parent or "")
        if allowance:
            excused[item.event.id] = allowance
        if not policy.forbids(item.event):
            continue
        reason = item.exempt or (allowance.reason if allowance else "")
        if item.exempt or allowance:
            verdict.allowed.append(_allowed(item.event, reason, allowance.pattern if allowance else None))
            continue
        explanation = explain(item.event, background)
        violation = Violation.of(item.event, explanation, now, item.label, item.request)
        (verdict.known if is_known(item.event, explanation) else left).append(violation)
    events = [violation.event for violation in left if violation.event]
    if left and policy.within_budget(events):
        verdict.allowed += [_allowed(event, f"within budget ({policy.budget_text()})", None) for event in events]
        left = []
    for violation in left:
        violation.exceeded = policy.exceeded(events)
    verdict.violations += left
    verdict.verdict = _word(verdict)
    return verdict


def _allowed(event: CompileEvent, reason: str, pattern: str | None) -> dict[str, Any]:
    return {
        "event": event.id,
        "parent": event.parent,
        "system": event.system,
        "kind": event.kind,
        "kernel": event.kernel,
        "module": event.module,
        "seconds": event.seconds,
        "reason": reason,
        "pattern": pattern,
    }


def _word(verdict: Verdict) -> str:
    if verdict.violations:
        return "violated"
    if verdict.known:
        return "known"
    return "allowed" if verdict.allowed else "clean"
