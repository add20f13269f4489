"""Phases of a run as windows on the monotonic clock, and which of them an event began in."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

PHASES = ("import", "collect", "warmup", "fixture", "setup", "serving", "teardown", "between")

WARMING_PHASES = ("import", "collect", "warmup", "fixture")
"""What is resident through one of these is warmed for every test of the process."""


@dataclass
class Window:
    """A span of time with a meaning.

    `owner` is the node id of the test that it belongs to, empty for windows of the whole session; `attempt` counts
    the reruns of that test from 1. `explicit` marks a block that the test itself opened (`with jitguard.serving()`).
    """

    id: int
    phase: str
    label: str
    started: float
    owner: str = ""
    attempt: int = 0
    explicit: bool = False
    allowed: str = ""
    ended: float | None = None
    parent: Window | None = None

    def contains(self, moment: float) -> bool:
        """Tell whether `moment` (monotonic seconds) lies in the window; an open window has no end yet."""
        return self.started <= moment and (self.ended is None or moment < self.ended)

    def ancestry(self) -> list[Window]:
        """Return this window and those around it, innermost first."""
        return [self, *(self.parent.ancestry() if self.parent else ())]

    def open_record(self) -> dict[str, Any]:
        """Return the opening as the journal keeps it."""
        return {
            "record": "open",
            "window": self.id,
            "phase": self.phase,
            "label": self.label,
            "started": self.started,
            "owner": self.owner,
            "attempt": self.attempt,
            "explicit": self.explicit,
            "allowed": self.allowed,
            "parent": None if self.parent is None else self.parent.id,
        }

    def close_record(self) -> dict[str, Any]:
        """Return the closing as the journal keeps it."""
        return {"record": "close", "window": self.id, "ended": self.ended}


@dataclass(frozen=True)
class Placed:
    """Where an event began: the phase, whose test it was, and whether it counts as served."""

    phase: str
    owner: str = ""
    attempt: int = 0
    label: str = ""
    allowed: str = ""
    served: bool = False


class PhaseLog:
    """The windows of one process, properly nested, in the order in which they were opened."""

    def __init__(self) -> None:
        self.windows: list[Window] = []
        self._starts: list[float] = []
        self._open: list[Window] = []
        self._with_serving: set[tuple[str, int]] = set()

    def open(
        self,
        phase: str,
        label: str,
        now: float,
        *,
        owner: str | None = None,
        attempt: int | None = None,
        explicit: bool = False,
        allowed: str = "",
    ) -> Window:
        """Open a window inside the current one; owner and attempt are inherited unless given."""
        around = self.current
        window = Window(
            id=len(self.windows) + 1,
            phase=phase,
            label=label,
            started=now,
            owner=owner if owner is not None else (around.owner if around else ""),
            attempt=attempt if attempt is not None else (around.attempt if around else 0),
            explicit=explicit,
            allowed=allowed,
            parent=around,
        )
        self.add(window)
        self._open.append(window)
        return window

    def add(self, window: Window) -> None:
        """Append a window that starts no earlier than those before it."""
        self.windows.append(window)
        self._starts.append(window.started)
        if window.explicit and window.phase == "serving":
            self._with_serving.add((window.owner, window.attempt))

    def close(self, window: Window, now: float) -> list[Window]:
        """Close a window, and with it whatever was left open inside; return what was closed, innermost first."""
        closed = []
        while window in self._open:
            inner = self._open.pop()
            inner.ended = now
            closed.append(inner)
        return closed

    @property
    def current(self) -> Window | None:
        """The innermost open window."""
        return self._open[-1] if self._open else None

    def at(self, moment: float) -> Window | None:
        """Return the innermost window around a moment (monotonic seconds), None for a moment between windows."""
        before = bisect_right(self._starts, moment)
        if not before:
            return None
        # Windows nest, so the last one opened before the moment holds it, or one around that one does, or none.
        return next((w for w in self.windows[before - 1].ancestry() if w.contains(moment)), None)

    def has_explicit_serving(self, owner: str, attempt: int) -> bool:
        """Tell whether a test opened serving blocks itself; then only those are judged."""
        return (owner, attempt) in self._with_serving

    def place(self, moment: float) -> Placed:
        """Attribute a moment: the one rule by which events get their phase, their test and their block."""
        window = self.at(moment)
        if window is None:
            return Placed("between")
        around = window.ancestry()
        explicit = next((w for w in around if w.explicit and w.phase == "serving"), None)
        only_explicit = self.has_explicit_serving(window.owner, window.attempt)
        served = window.phase == "serving" and (explicit is not None or not only_explicit)
        return Placed(
            # What a test does beside its own serving blocks is preparation.
            phase="setup" if window.phase == "serving" and not served else window.phase,
            owner=window.owner,
            attempt=window.attempt,
            label=explicit.label if explicit else "",
            allowed=next((w.allowed for w in around if w.allowed), ""),
            served=served,
        )
