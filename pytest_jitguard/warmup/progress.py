"""What a warmup shows on a terminal while it runs: one line, rewritten."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.kinds import count, words

_VARIANTS = ("compile", "cache_load")


class Progress:
    """Rewrites one line through `write`, as `begin` and `end` are told of events and `message` of texts.

    `write` gets the whole line, without line ends, and the empty line at last; fitting it to the terminal is its own
    business. Nothing here raises, and any thread may call: compile hooks do. There is no thread of its own, so a line
    is as old as the last event; what is being compiled is therefore never held back, only the counts between.
    """

    def __init__(
        self, write: Callable[[str], None], interval: float = 0.1, clock: Callable[[], float] = monotonic
    ) -> None:
        self._write = write
        self._interval = interval
        self._clock = clock
        self._started = clock()
        self._drawn_at: float | None = None
        self._drawn = ""
        self._text = ""
        # A dict and a set rather than counters: their single operations need no lock.
        self._running: dict[str, CompileEvent] = {}
        self._variants: set[str] = set()

    def begin(self, event: CompileEvent) -> None:
        """Take notice of an event that begins (`Recorder.on_begin`)."""
        self._running[event.id] = event
        self._draw()

    def end(self, event: CompileEvent) -> None:
        """Take notice of an event that is over (`Recorder.on_end`)."""
        self._running.pop(event.id, None)
        if event.kind in _VARIANTS and event.status == "ok":
            self._variants.add(event.id)
        self._draw()

    def message(self, text: str) -> None:
        """Show a text of the warmup itself while nothing compiles."""
        self._text = " ".join(text.split())
        self._draw()

    def done(self) -> None:
        """Clear the line."""
        if self._drawn_at is not None:
            self._put("")
            self._drawn_at = None

    def _draw(self) -> None:
        now, doing = self._clock(), self._doing()
        # After an end nothing runs for a moment: no news. A name or a text that was not shown yet is.
        news = bool(doing) and doing != self._drawn
        if news or self._drawn_at is None or now - self._drawn_at >= self._interval:
            self._drawn, self._drawn_at = doing, now
            parts = [count(len(self._variants), "variant"), *([doing] if doing else [])]
            self._put(f"jitguard warmup: {', '.join(parts)} ({now - self._started:.1f} s)")

    def _doing(self) -> str:
        running = list(self._running.values())
        if not running:
            return self._text
        return f"{running[-1].kernel}: {words(running[-1].kind).participle}"

    def _put(self, line: str) -> None:
        # A closed or broken terminal must not reach the compile.
        with contextlib.suppress(OSError, ValueError):
            self._write(line)
