"""The servers of one guard: when each was warming up, which tests use it, and which requests are under way."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.phases import PhaseLog, RequestSpan, Window

Note = Callable[[Mapping[str, Any]], None]


@dataclass
class Scope:
    """A server as the guard knows it. `group` is who started it: its users use the server too.

    `drain` waits until the requests that it was sent are answered, for a while, and returns what nobody was told of:
    why requests failed that were sent in the background.
    """

    id: str
    name: str
    group: str = ""
    drain: Callable[[], list[Exception]] = list
    start_up: Window | None = None
    told: dict[str, Any] = field(default_factory=dict)


class Scopes:
    """Every server that this guard started or attached to. Its methods may be called from any thread."""

    def __init__(self, phases: PhaseLog, note: Note) -> None:
        self._phases = phases
        self._note = note
        self._lock = threading.Lock()
        self._known: dict[str, Scope] = {}
        self._requests = itertools.count(1)

    def __iter__(self) -> Iterator[Scope]:
        return iter(list(self._known.values()))

    def __contains__(self, scope: str) -> bool:
        return scope in self._known

    def begin(self, scope: Scope, owner: str = "", attempt: int = 0) -> None:
        """Note that a server is about to be started: from now on it is starting up."""
        self._known[scope.id] = scope
        scope.start_up = self._open(scope, f"start-up of {scope.name}", owner, attempt)

    def attach(self, scope: Scope, started: float, warmed: float) -> None:
        """Note that a server of another process is used here; times are monotonic seconds."""
        self._known[scope.id] = scope
        window = self._open(scope, f"start-up of {scope.name}", "", 0, started)
        self._close(window, warmed)

    def warmed(self, scope: Scope, at: float) -> None:
        """Note when a server's warmup ended: at readiness, or when it said so itself."""
        if scope.start_up is not None:
            self._close(scope.start_up, at)
            scope.start_up = None

    @contextlib.contextmanager
    def warming(self, scope: Scope, label: str) -> Iterator[None]:
        """Take what a server does meanwhile as its warmup."""
        window = self._open(scope, label, "", 0)
        try:
            yield
        finally:
            self._close(window, monotonic())

    def _open(self, scope: Scope, label: str, owner: str, attempt: int, at: float | None = None) -> Window:
        moment = monotonic() if at is None else at
        with self._lock:
            window = self._phases.open("warmup", label, moment, owner=owner, attempt=attempt, scope=scope.id)
        self._note(window.open_record())
        return window

    def _close(self, window: Window, at: float) -> None:
        for closed in self._phases.close(window, at):
            self._note(closed.close_record())

    def tell(self, scope: Scope, state: str, **facts: Any) -> None:
        """Write down how a server stands."""
        scope.told.update(facts)
        record = {"record": "server", "scope": scope.id, "name": scope.name, "state": state, "at": monotonic()}
        self._note({**record, **scope.told})

    # -- who uses it ---------------------------------------------------------------------------------------------------

    def of_group(self, group: str) -> list[Scope]:
        """Return the servers that were started in the set-up of a fixture."""
        return [scope for scope in self if group and scope.group == group]

    def use(self, scope: Scope, owner: str, attempt: int) -> None:
        """Note that an attempt of a test uses a server."""
        if self._phases.use(owner, attempt, scope.id):
            self._note({"record": "use", "scope": scope.id, "owner": owner, "attempt": attempt})

    def used_by(self, owner: str, attempt: int) -> list[Scope]:
        """Return the servers that an attempt of a test uses."""
        return [scope for scope in self if self._phases.uses(owner, attempt, scope.id)]

    # -- requests ------------------------------------------------------------------------------------------------------

    def sent(self, scope: Scope, text: str, owner: str, attempt: int, at: float | None = None) -> RequestSpan:
        """Note that a request goes out."""
        started = monotonic() if at is None else at
        with self._lock:
            span = RequestSpan(f"r{next(self._requests)}", scope.id, started, owner, attempt, text)
            self._phases.requests.append(span)
        self._note(_request_record(span))
        return span

    def answered(self, span: RequestSpan, at: float | None = None) -> None:
        """Note that a request is over."""
        span.ended = monotonic() if at is None else at
        self._note(_request_record(span))

    def drain(self, owner: str, attempt: int) -> list[Exception]:
        """Wait until what a test sent is answered: it is the test's own, not the next one's. Return what failed."""
        return [failure for scope in self.used_by(owner, attempt) for failure in scope.drain()]


def _request_record(span: RequestSpan) -> dict[str, Any]:
    return {
        "record": "request",
        "id": span.id,
        "scope": span.scope,
        "started": span.started,
        "ended": span.ended,
        "owner": span.owner,
        "attempt": span.attempt,
        "text": span.text,
    }
