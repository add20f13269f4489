"""The `jitguard` fixture: blocks that say what is warmup and what is serving; harmless when the guard is off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_jitguard.core.events import CompileEvent
    from pytest_jitguard.session import GuardSession

SESSION_KEY = pytest.StashKey["GuardSession"]()


class JitGuard:
    """What a test sees of the guard. With the guard off, every block is empty and `events` has nothing."""

    enabled = False

    @contextlib.contextmanager
    def warmup(self) -> Iterator[None]:
        """Take what is compiled inside as warmup of this test."""
        yield

    @contextlib.contextmanager
    def serving(self, label: str = "") -> Iterator[None]:
        """Judge what is compiled inside. A test that uses this is guarded, and only these blocks are judged."""
        yield

    @contextlib.contextmanager
    def allow(self, reason: str) -> Iterator[None]:
        """Let anything compile inside, and record why."""
        _check_reason(reason)
        yield

    @property
    def events(self) -> Sequence[CompileEvent]:
        """The events that began in this test so far, oldest first."""
        return ()


class ActiveJitGuard(JitGuard):
    """The fixture's value while the guard is on."""

    enabled = True

    def __init__(self, session: GuardSession) -> None:
        self._session = session

    @contextlib.contextmanager
    def warmup(self) -> Iterator[None]:
        """Open a warmup window inside the test."""
        with self._session.block("warmup"):
            yield

    @contextlib.contextmanager
    def serving(self, label: str = "") -> Iterator[None]:
        """Open a judged window inside the test."""
        with self._session.block("serving", label):
            yield

    @contextlib.contextmanager
    def allow(self, reason: str) -> Iterator[None]:
        """Open a window of the same phase whose events are exempt."""
        _check_reason(reason)
        with self._session.block(allowed=reason):
            yield

    @property
    def events(self) -> Sequence[CompileEvent]:
        """The events that began in this attempt so far."""
        attempt = self._session.attempt
        if attempt is None:
            return ()
        self._session.monitors.settle()
        self._session.hear()
        return [event for event, _ in self._session.judging.events_of(attempt)]


def _check_reason(reason: Any) -> None:
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError(f"jitguard.allow() needs a reason as text, not {reason!r}")


def make(config: pytest.Config) -> JitGuard:
    """Return the fixture's value for a session."""
    session: GuardSession | None = config.stash.get(SESSION_KEY, None)
    return JitGuard() if session is None else ActiveJitGuard(session)
