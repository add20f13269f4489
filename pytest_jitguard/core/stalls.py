"""How long compiles held up whoever waited for them, and what that can mean for a group of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pytest_jitguard.core.events import CompileEvent, process_name, topmost
from pytest_jitguard.core.kinds import count
from pytest_jitguard.core.verdicts import duration

GAP = 0.1
"""Seconds between two events of one process that make them one stall: the second GEMM of a layer compiles right after
the first, and whoever waits for the layer waits for both."""


@dataclass(frozen=True)
class Stall:
    """A span in which one process compiled, without a pause worth the name; times in seconds."""

    first: CompileEvent
    seconds: float
    events: int

    @property
    def ranks(self) -> int:
        """How many processes of the group can have waited: collectives wait for the slowest."""
        return self.first.world or 1

    def __str__(self) -> str:
        what = self.first.kernel if self.events == 1 else f"{count(self.events, 'event')}, first {self.first.kernel}"
        cost = f": up to {duration(self.seconds)} × {self.ranks} GPUs" if self.ranks > 1 else ""
        return f"{process_name(self.first)} stood still for {duration(self.seconds)} ({what}){cost}"


def stalls(events: Iterable[CompileEvent]) -> list[Stall]:
    """Return the stalls that these events made, process by process, the longest first.

    An event that never came to an end makes no stall of its own: how long it would have taken is not known.
    """
    found: list[Stall] = []
    ended = [event for event in topmost(list(events)) if event.ended is not None]
    for event in sorted(ended, key=lambda event: (event.host, event.pid, event.started)):
        last = found[-1] if found else None
        if last is not None and _goes_on(last, event):
            seconds = max(last.seconds, (event.ended or event.started) - last.first.started)
            found[-1] = Stall(last.first, seconds, last.events + 1)
        else:
            found.append(Stall(event, event.seconds or 0.0, 1))
    return sorted(found, key=lambda stall: -stall.seconds)


def _goes_on(stall: Stall, event: CompileEvent) -> bool:
    same = (stall.first.host, stall.first.pid) == (event.host, event.pid)
    return same and event.started <= stall.first.started + stall.seconds + GAP


def over_budget(longest: Stall | None, budgets: Mapping[str, float]) -> list[str]:
    """Say which budgets the longest stall exceeds: `liveness_probe (10 s)`, the tightest first."""
    seconds = longest.seconds if longest else 0.0
    exceeded = sorted((limit, name) for name, limit in budgets.items() if seconds > limit)
    return [f"{name} ({duration(limit)})" for limit, name in exceeded]
