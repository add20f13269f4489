"""Phases of a run as windows on the monotonic clock, and which of them an event began in."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

WARMING_PHASES = ("import", "collect", "warmup", "fixture")
"""What is resident through one of these is warmed for every test of the process."""


@dataclass(eq=False)
class Window:
    """A span of time with a meaning.

    `phase` is one of the warming ones, or `setup`, `serving`, `teardown`, `between` (in no test and no warming).
    `owner` is the node id of the test that it belongs to, empty for windows of the whole session; `attempt` counts
    the reruns of that test from 1. `explicit` marks a block that the test itself opened (`with jitguard.serving()`),
    `block` any block of a test's own: those of several threads or async tasks overlap without being nested. A window
    with a `scope` is a server's: its start-up, or requests that warm it up. It says nothing about other processes.
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
    block: bool = False
    scope: str = ""

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
            "scope": self.scope,
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


@dataclass
class RequestSpan:
    """A request to a server, sent by an attempt of a test; `ended` is None until it is answered."""

    id: str
    scope: str
    started: float
    owner: str = ""
    attempt: int = 0
    text: str = ""
    ended: float | None = None

    def in_flight(self, moment: float) -> bool:
        """Tell whether the request was under way at `moment` (monotonic seconds)."""
        return self.started <= moment and (self.ended is None or moment < self.ended)


class PhaseLog:
    """The windows of one process in the order in which they were opened; they nest, save for blocks (see `Window`).

    Windows of servers are kept apart: they overlap with everything. What happens in a server's process tree is placed
    by them, and by the calls of the tests that use the server.
    """

    def __init__(self) -> None:
        self.windows: list[Window] = []
        self.requests: list[RequestSpan] = []
        self._ids = itertools.count(1)
        self._of_scope: dict[str, list[Window]] = {}
        self._uses: set[tuple[str, int, str]] = set()
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
        block: bool = False,
        around: Window | None = None,
        scope: str = "",
    ) -> Window:
        """Open a window inside `around`, its caller's own block, or else inside the current phase.

        It never goes into the block of another thread or task. Owner and attempt are inherited unless given.
        """
        around = self.inside(around)
        window = Window(
            id=next(self._ids),
            phase=phase,
            label=label,
            started=now,
            owner=owner if owner is not None else (around.owner if around else ""),
            attempt=attempt if attempt is not None else (around.attempt if around else 0),
            explicit=explicit,
            allowed=allowed,
            parent=around,
            block=block,
            scope=scope,
        )
        self.add(window)
        if not scope:
            self._open.append(window)
        return window

    def add(self, window: Window) -> None:
        """Append a window that starts no earlier than those before it."""
        if window.scope:
            self._of_scope.setdefault(window.scope, []).append(window)
            return
        self.windows.append(window)
        self._starts.append(window.started)
        if window.explicit and window.phase == "serving":
            self._with_serving.add((window.owner, window.attempt))

    def close(self, window: Window, now: float) -> list[Window]:
        """Close a window, and with it whatever was left open inside; return what was closed, innermost first.

        A block closes alone: what was opened after it may belong to another thread or task, which is still inside.
        """
        if window.scope and window.ended is None:
            window.ended = now
            return [window]
        if window not in self._open:
            return []
        at = self._open.index(window)
        closed = [window] if window.block else self._open[at:][::-1]
        self._open[at:] = self._open[at + 1 :] if window.block else []
        for inner in closed:
            inner.ended = now
        return closed

    def inside(self, block: Window | None) -> Window | None:
        """Return what a new window goes into: its caller's own block if that is still open, else the current phase."""
        if block is not None and block in self._open:
            return block
        return next((window for window in reversed(self._open) if not window.block), None)

    def around(self, moment: float) -> list[Window]:
        """Return the innermost windows around a moment (monotonic seconds): several only where blocks overlap."""
        before = bisect_right(self._starts, moment)
        if not before:
            return []
        # Roots do not overlap, so whatever holds the moment was opened with or after the last root.
        root = self.windows[before - 1].ancestry()[-1]
        first = before - 1
        while self.windows[first] is not root:
            first -= 1
        holding = [window for window in self.windows[first:before] if window.contains(moment)]
        outer = {outer.id for window in holding for outer in window.ancestry()[1:]}
        return [window for window in holding if window.id not in outer]

    def has_explicit_serving(self, owner: str, attempt: int) -> bool:
        """Tell whether a test opened serving blocks itself; then only those are judged."""
        return (owner, attempt) in self._with_serving

    def use(self, owner: str, attempt: int, scope: str) -> bool:
        """Note that an attempt of a test uses a server; return whether that is news."""
        news = (owner, attempt, scope) not in self._uses
        self._uses.add((owner, attempt, scope))
        return news

    def uses(self, owner: str, attempt: int, scope: str) -> bool:
        """Tell whether an attempt of a test uses a server."""
        return (owner, attempt, scope) in self._uses

    def knows(self, scope: str) -> bool:
        """Tell whether this process started a server, or has tests that use it."""
        return scope in self._of_scope or any(used == scope for _, _, used in self._uses)

    def in_flight(self, moment: float, scope: str) -> list[RequestSpan]:
        """Return the requests to a server that were under way at a moment, as far as their driver told."""
        return [request for request in self.requests if request.scope == scope and request.in_flight(moment)]

    def place(self, moment: float, scope: str = "") -> Placed:
        """Attribute a moment: the one rule by which events get their phase, their test and their block.

        Where blocks overlap, the strictest counts: a compile holds up whoever is served at that time. In the scope of a
        server only its own warmup and the calls of the tests that use it count, and nothing else excuses a compile.
        """
        if scope and (warming := self._warming(moment, scope)):
            return Placed("warmup", warming.owner, warming.attempt, warming.label)
        windows = [window for window in self.around(moment) if not scope or self._concerns(window, moment, scope)]
        places = [self._place(window) for window in reversed(windows)]
        return max(places, key=lambda place: (place.served, not place.allowed), default=Placed("between"))

    def _warming(self, moment: float, scope: str) -> Window | None:
        return next((window for window in self._of_scope.get(scope, ()) if window.contains(moment)), None)

    def _concerns(self, window: Window, moment: float, scope: str) -> bool:
        """Tell whether a window counts for a server: a warmup that anybody asked for, or the call of one of its users.

        A call whose test has no request under way does not, if some other test has: its late answers are not its fault.
        """
        if window.phase == "warmup" and not window.attempt:
            return True
        of_call = any(around.phase == "serving" for around in window.ancestry())
        if not of_call or not self.uses(window.owner, window.attempt, scope):
            return False
        senders = {(request.owner, request.attempt) for request in self.in_flight(moment, scope)}
        return not senders or (window.owner, window.attempt) in senders

    def _place(self, window: Window) -> Placed:
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
