"""The judgement over one guarded test, as data that carries its own words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.explain import Background, Explanation, explain
from pytest_jitguard.core.policy import Policy

VERDICTS = ("clean", "unguarded", "allowed", "known", "interrupted", "error", "violated")
"""From best to worst: where a test has several attempts, the worst verdict is the test's."""

_NOUNS = {
    "compile": "compile",
    "cache_load": "load from the disk cache",
    "autotune": "autotune run",
    "fallback": "fallback to uncompiled code",
    "download": "download",
}

_DONE = {
    "compile": "compiled",
    "cache_load": "loaded from the disk cache",
    "autotune": "autotuned",
    "fallback": "fell back to uncompiled code",
    "download": "downloaded",
    "graph_capture": "captured a graph",
    "device_load": "loaded onto the device",
    "lock_wait": "waited for another process's lock",
}


def worst(verdicts: Sequence[str]) -> str:
    """Return the worst of some verdict words."""
    return max(verdicts, key=VERDICTS.index, default="unguarded")


def duration(seconds: float | None) -> str:
    """Say a duration as people do: `3.1 ms`, `0.83 s`, `12 s`."""
    if seconds is None:
        return "unknown time"
    if seconds < 0.1:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def deed(event: CompileEvent, now: float) -> str:
    """Say what happened and how long it took: `compiled in 0.83 s`, `still compiling after 5.0 s`."""
    if event.status == "running":
        return f"still compiling after {max(0.0, now - event.started):.1f} s"
    if event.status == "interrupted":
        return "began to compile and never came to an end"
    if event.status == "failed":
        return f"failed to compile (within {duration(event.seconds)})"
    return f"{_DONE.get(event.kind, event.kind)} in {duration(event.seconds)}"


@dataclass
class Violation:
    """One breach: an event that the policy forbids, or an expected kernel that was not reached (no event)."""

    message: str
    event: CompileEvent | None = None
    explanation: Explanation = field(default_factory=lambda: Explanation(""))
    label: str = ""

    @classmethod
    def of(cls, event: CompileEvent, explanation: Explanation, now: float, label: str = "") -> Violation:
        """Word a forbidden event: the whole story in one line."""
        where = f" while serving {label}" if label else " while serving"
        message = f"{event.kernel} ({event.system}) {deed(event, now)}{where}: {explanation.cause}"
        return cls(message, event, explanation, label)

    def lines(self) -> list[str]:
        """Return the detail under the message."""
        why = self.explanation
        facts = [f"{change.component}: {change.transition()}" for change in why.changes]
        lines = [f"  {'changed' if n == 0 else '       '}  {fact}" for n, fact in enumerate(facts)]
        for name, text in (("launched", why.launch_site), ("called", why.called_from)):
            if text:
                lines.append(f"  {name:8s} {text}")
        return lines

    def to_wire(self, phase: str = "serving") -> dict[str, Any]:
        """Return the violation in the form of the JSON report."""
        event, why = self.event, self.explanation
        return {
            "event": event.id if event else None,
            "system": event.system if event else None,
            "kind": event.kind if event else "expect",
            "kernel": event.kernel if event else None,
            "module": event.module if event else None,
            "seconds": event.seconds if event else None,
            "pid": event.pid if event else None,
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


def _count(events: Sequence[CompileEvent | None]) -> str:
    """Count violations by what they are: `2 unexpected compiles and 1 unexpected load from the disk cache`."""
    nouns = Counter("kernel that was not reached" if e is None else _NOUNS.get(e.kind, e.kind) for e in events)
    parts = [f"{n} unexpected {noun if n == 1 else _plural(noun)}" for noun, n in nouns.most_common()]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _plural(noun: str) -> str:
    head, space, rest = noun.partition(" ")
    return f"{noun}s" if noun == "autotune run" else f"{head}s{space}{rest}"


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
        first = self.violations[0].message
        if len(self.violations) == 1:
            return first
        # The compiles of an autotune run are part of its time.
        seconds = sum(v.event.seconds or 0.0 for v in self._topmost() if v.event)
        return f"{_count([v.event for v in self.violations])}, {duration(seconds)} together, first: {first}"

    @property
    def text(self) -> str:
        """The message of the failure: headline, then every violation with its detail, then what would cure them."""
        lines = [self.headline]
        for violation in self._topmost():
            lines += ["", violation.message] if len(self.violations) > 1 else [""]
            lines += violation.lines()
            lines += self._parts_of(violation)
        entries = merge_entries([violation.explanation.cure for violation in self.violations])
        if entries:
            lines += ["", "  add this to the warmup:", *(f"    {line}".rstrip() for line in entries.splitlines())]
        # Last, since it has a price that the warmup entry has not.
        lines += [f"\n  {text}" for text in dict.fromkeys(v.explanation.advice for v in self.violations) if text]
        return "\n".join(lines)

    def _topmost(self) -> list[Violation]:
        """Return the violations that are not part of another one."""
        ids = {violation.event.id for violation in self.violations if violation.event}
        return [v for v in self.violations if v.event is None or v.event.parent not in ids]

    def _parts_of(self, whole: Violation) -> list[str]:
        parts = [v.event for v in self.violations if whole.event and v.event and v.event.parent == whole.event.id]
        if not parts:
            return []
        seconds = sum(event.seconds or 0.0 for event in parts)
        return [f"  within   {_count(list(parts))}, {duration(seconds)}, one for each config that was tried"]

    def to_wire(self) -> dict[str, Any]:
        """Return the verdict as plain types, for the journal and for the report that crosses xdist."""
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
    """An event of the serving phase: the label of its block, and why its block is exempt (empty if it is not)."""

    event: CompileEvent
    label: str = ""
    exempt: str = ""


def judge(
    verdict: Verdict,
    served: Sequence[Served],
    policy: Policy,
    background: Background,
    is_known: Any,
    now: float,
) -> Verdict:
    """Judge the serving events of a test and fill in its verdict.

    Allowances come first, then the baseline (`is_known(event, explanation)`), then the budget over what is left.
    """
    left: list[Violation] = []
    for item in served:
        if not policy.forbids(item.event):
            continue
        allowance = policy.allowance(item.event)
        reason = item.exempt or (allowance.reason if allowance else "")
        if item.exempt or allowance:
            verdict.allowed.append(_allowed(item.event, reason, allowance.pattern if allowance else None))
            continue
        explanation = explain(item.event, background)
        violation = Violation.of(item.event, explanation, now, item.label)
        (verdict.known if is_known(item.event, explanation) else left).append(violation)
    if left and policy.within_budget([v.event for v in left if v.event]):
        verdict.allowed += [_allowed(v.event, f"within budget ({policy.budget_text()})", None) for v in left if v.event]
        left = []
    verdict.violations += left
    verdict.verdict = _word(verdict)
    return verdict


def _allowed(event: CompileEvent, reason: str, pattern: str | None) -> dict[str, Any]:
    return {
        "event": event.id,
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
