"""What a test tolerates: kinds that fail, allowances, budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pytest_jitguard.core.events import CompileEvent, topmost
from pytest_jitguard.core.kinds import FAILING_KINDS


@dataclass(frozen=True)
class Allowance:
    """Kernels that may compile while serving, and why.

    `pattern` is a glob on `system:kernel` or `system:module.kernel`; without a colon it holds for any system.
    """

    pattern: str
    reason: str

    def covers(self, event: CompileEvent) -> bool:
        """Tell whether the event's kernel matches the pattern."""
        return matches(self.pattern, event.system, event.kernel, event.module)


def matches(pattern: str, system: str, kernel: str, module: str) -> bool:
    """Match a kernel glob: `kernel`, `module.kernel`, `system:kernel` or `system:module.kernel`."""
    wanted, colon, name = pattern.partition(":")
    if not colon:
        wanted, name = "*", pattern
    full = f"{module}.{kernel}" if module else kernel
    return fnmatchcase(system, wanted) and (fnmatchcase(kernel, name) or fnmatchcase(full, name))


@dataclass(frozen=True)
class Policy:
    """The rules for one guarded test.

    `max_events` tolerates that many failing events, `max_seconds` that much time in them; a limit that is None does
    not count. Without either nothing is tolerated. `expect` lists kernel globs that the call must have reached.
    `monitors` limits judgement to these systems; None means all.
    """

    mode: str = "fail"
    fail_on: frozenset[str] = frozenset(FAILING_KINDS)
    max_events: int | None = None
    max_seconds: float | None = None
    monitors: frozenset[str] | None = None
    expect: tuple[str, ...] = ()
    allowances: tuple[Allowance, ...] = ()

    def forbids(self, event: CompileEvent) -> bool:
        """Tell whether an event of this system and kind fails a serving phase.

        A load of what the same server's warmup built in another process fails only as `cache_load:warmup`.
        """
        kind = f"{event.kind}:{event.origin}" if event.origin else event.kind
        return kind in self.fail_on and (self.monitors is None or event.system in self.monitors)

    def allowance(self, event: CompileEvent) -> Allowance | None:
        """Return the first allowance that covers the event."""
        return next((allowance for allowance in self.allowances if allowance.covers(event)), None)

    def within_budget(self, events: Sequence[CompileEvent]) -> bool:
        """Tell whether these events stay within every limit that is set; an event without an end never does."""
        if self.max_events is None and self.max_seconds is None:
            return not events
        return not self.exceeded(events)

    def exceeded(self, events: Sequence[CompileEvent]) -> str:
        """Name the limits that these events exceed, empty if none; parts of an event count with it."""
        whole = topmost(events)
        limits = []
        if self.max_events is not None and len(whole) > self.max_events:
            limits.append(f"max_events={self.max_events}")
        if self.max_seconds is not None:
            seconds = [float("inf") if event.seconds is None else event.seconds for event in whole]
            limits += [f"max_seconds={self.max_seconds:g}"] if sum(seconds) > self.max_seconds else []
        return " and ".join(limits)

    def budget_text(self) -> str:
        """Say the budget in words, empty if there is none."""
        parts = []
        if self.max_events is not None:
            parts.append(f"max_events={self.max_events}")
        if self.max_seconds is not None:
            parts.append(f"max_seconds={self.max_seconds:g}")
        return ", ".join(parts)
