"""A thread that looks again and again at what runs below this process, while something does that may compile."""

from __future__ import annotations

import os
import signal
import weakref
from _thread import LockType, allocate_lock, start_new_thread
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import RLock
from typing import Final

from pytest_jitguard.core.clock import monotonic

_PAUSES: Final = ((2.0, 0.005), (10.0, 0.05), (float("inf"), 0.25))
"""Seconds from one look to the next, while the last news is not older than so many seconds.

A compiler needs 15 ms and more for the smallest of files. What is quiet for long costs next to nothing.
"""

_LITTLE_NEWS = 1.0
"""For how many seconds the short pauses come back when a program below a quiet one starts others."""

_ENDS_SOON = 2.0
"""How long a fork waits for a look to be over, in seconds. A look takes milliseconds."""


_FAULTS: Final = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
_PROGRAMS: Final = signal.valid_signals() - _FAULTS
"""Signals that are the program's to take: all but those that a thread's own fault raises."""


def pause(quiet: float) -> float:
    """Return the seconds until the next look when nothing has happened for `quiet` seconds."""
    return next(seconds for until, seconds in _PAUSES if quiet < until)


class Watch:
    """Calls `look` from a thread of its own, at once and then again, until nothing is left to be seen.

    `look` tells whether there is something to watch and whether something has happened; `forked` is called when this
    process has forked, on the thread that did. They must not raise.

    The thread is not one of `threading`'s: it keeps no process from ending, and whoever counts threads counts the
    program's. None runs while this process forks: Python 3.12 warns of threads that the child would not have.
    """

    def __init__(self, look: Callable[[], tuple[bool, bool]], forked: Callable[[], None]) -> None:
        self._look, self.forked = look, forked
        self.renew()
        _watches.add(self)

    def renew(self) -> None:
        """Start anew in a forked child, which has no thread of ours: what it forks in turn is watched, too."""
        self._state = RLock()  # a signal's handler may start a program while we are in here
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._done: LockType | None = None
        self._holds, self._is_needed = 0, False
        self._until = self._news = 0.0

    @property
    def is_on(self) -> bool:
        """Whether the thread runs."""
        return self._done is not None

    def expect(self, seconds: float) -> None:
        """Look, and go on for so long even if there is nothing to be seen yet."""
        with self._state:
            self._news = monotonic()
            self._until = max(self._until, self._news + seconds)
            self._begin()
        self._wake.put(None)

    def hold(self) -> None:
        """End the thread, and start none until `release`."""
        with self._state:
            self._holds += 1
            done = self._done
        self._wake.put(None)
        if done is not None and done.acquire(timeout=_ENDS_SOON):
            done.release()

    def release(self) -> None:
        """Go on where `hold` has ended it."""
        with self._state:
            self._holds -= 1
            if monotonic() < self._until or self._is_needed:
                self._begin()

    def close(self) -> None:
        """End the thread for good."""
        _watches.discard(self)
        self.hold()

    def _begin(self) -> None:
        if self._done is not None or self._holds:
            return
        self._done = done = allocate_lock()
        done.acquire()
        is_started = False
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            # A thread has the mask of who starts it: this one must take no signal that the program waits for.
            signal.pthread_sigmask(signal.SIG_BLOCK, _PROGRAMS)
            start_new_thread(self._run, (done,))
            is_started = True
        except RuntimeError:  # the interpreter is about to end
            return
        finally:
            self._done = done if is_started else None
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _run(self, done: LockType) -> None:
        try:
            while self._goes_on(*self._look()):
                self._rest(pause(monotonic() - self._news))
        finally:
            with self._state:
                self._done = None if self._done is done else self._done
            done.release()

    def _goes_on(self, watches: bool, has_news: bool) -> bool:
        with self._state:
            now = monotonic()
            if has_news:
                self._news = max(self._news, now - _PAUSES[0][0] + _LITTLE_NEWS)
            goes_on = watches or now < self._until
            self._is_needed = goes_on
            if goes_on and not self._holds:
                return True
            self._done = None
            return False

    def _rest(self, seconds: float) -> None:
        try:
            self._wake.get(timeout=seconds)
        except Empty:
            return


_watches: weakref.WeakSet[Watch] = weakref.WeakSet()


class _Fork:
    """How this process came to be: the process that forked it and watches, 0 if none does, and when."""

    parent = 0
    moment = 0.0


_FRESH: Final = 0.5
"""Seconds in which a forked process that becomes a compiler is sure to be watched by its parent."""

AFTER_FORK: Final = 2 * _FRESH
"""For how long it watches."""


def is_watched_by_parent() -> bool:
    """Tell whether this process is a young fork, and its parent sees what it becomes."""
    return _Fork.parent == os.getppid() and monotonic() - _Fork.moment < _FRESH


def _hold() -> None:
    for watch in tuple(_watches):
        watch.hold()


def _release() -> None:
    for watch in tuple(_watches):
        watch.release()
        watch.forked()


def _forget() -> None:
    _Fork.parent, _Fork.moment = os.getppid() if _watches else 0, monotonic()
    for watch in tuple(_watches):
        watch.renew()


os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget)
