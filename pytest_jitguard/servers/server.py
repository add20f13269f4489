"""A server under test: started, waited for, warmed, stopped; whoever wants to know is told."""

from __future__ import annotations

import operator
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NoReturn, final

from pytest_jitguard.core.clock import monotonic, pause
from pytest_jitguard.servers.adapters import ADAPTERS, running_requests
from pytest_jitguard.servers.asking import NoAnswer, status_of
from pytest_jitguard.servers.command import ServerCommand
from pytest_jitguard.servers.leash import HowItEnded, Leash, ServerError
from pytest_jitguard.servers.logs import Mark, tail
from pytest_jitguard.servers.ports import free_port, is_taken, stranger_on

__all__ = ["HowItEnded", "Observer", "Server", "ServerCommand", "ServerError", "wait_idle"]

# pytest leaves our frames out of a traceback that ends in one of these: the mistake is the caller's.
__tracebackhide__ = operator.methodcaller("errisinstance", (ServerError, ValueError))

_ASK_LIMIT = 5.0
_STEP = 0.05
_LONGEST_STEP = 0.5
_TAIL = 30
_NOT_STARTED = 127


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Observer:
    """Who is told what happens to a server, in this order; times are monotonic seconds.

    `starting` comes before the process exists, `stopped` once, also if the start failed (with
    code 127, as from a shell).
    """

    starting: Callable[[Server], None] = _ignore
    ready: Callable[[Server, float], None] = _ignore
    warmed: Callable[[Server, float], None] = _ignore
    stopped: Callable[[Server, HowItEnded], None] = _ignore


@final
class Server:
    """One server: `start`, `wait_ready`, `stop`; as a context manager all three.

    `scope` is the caller's name for it. The server appends to `log` what it says on standard output and error.
    `environment` is added to that of the command. `warm` sends the caller's own warmup requests; it runs when the
    server is ready and its own warmup is over, as far as its log tells. `started`, `ready_at`, `warmed_at` and
    `stopped_at` are monotonic seconds, None before it is so far.
    """

    def __init__(
        self,
        command: ServerCommand,
        scope: str,
        log: Path,
        observer: Observer | None = None,
        warm: Callable[[Server], object] | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.command = command
        self.name = command.name
        self.scope = scope
        self.log = log
        self.port = command.port or 0
        self.pid = 0
        self.started: float | None = None
        self.ready_at: float | None = None
        self.warmed_at: float | None = None
        self.stopped_at: float | None = None
        self._observer = observer or Observer()
        self._warm = warm
        self._environment = dict(environment)
        self._leash: Leash | None = None
        self._how: HowItEnded | None = None
        self._log_start = 0
        self._owner = os.getpid()

    @property
    def url(self) -> str:
        """Where it serves, without a slash at the end; known once it was started."""
        return self.command.base_url(self.port)

    @property
    def argv(self) -> tuple[str, ...]:
        """The command with its port; known once it was started."""
        return self.command.arguments(self.port)

    @property
    def keeper_pid(self) -> int:
        """The process that keeps the server; 0 before the start."""
        return 0 if self._leash is None else self._leash.keeper_pid

    @property
    def ended(self) -> HowItEnded | None:
        """How its first process ended, None as long as it runs; `stop` is needed in any case."""
        if self._how is not None or self._leash is None:
            return self._how
        return self._leash.over()

    def start(self) -> None:
        """Start the process; raises ValueError for what is wrong with the command, ServerError for the rest."""
        if self.started is not None:
            raise ServerError(f"server {self.name!r} was started before: make another Server to start it again")
        self.command.check_program()
        self.port = self.port or free_port(self.command.host)
        self._check_port()
        self.started = monotonic()
        self._observer.starting(self)
        try:
            self._leash = self._leashed()
        except (ServerError, OSError) as error:
            self._set_stopped(HowItEnded(code=_NOT_STARTED))
            raise ServerError(f"server {self.name!r} could not be started: {error}; command: {self._shown()}") from None
        except BaseException:
            self._set_stopped(HowItEnded(code=_NOT_STARTED))
            raise
        self.pid = self._leash.pid

    def _check_port(self) -> None:
        if is_taken(self.command.host, self.port):
            raise ServerError(
                f"port {self.port} is already in use, so server {self.name!r} was not started: end what listens there, "
                "or leave the port out of the command and say {port} instead, so that a free one is found"
            )

    def _leashed(self) -> Leash:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._log_start = os.fstat(log).st_size
            cwd = None if self.command.cwd is None else os.fspath(self.command.cwd)
            variables = {**self.command.variables(), **self._environment}
            return Leash(self.argv, self.name, variables, cwd, log, self.command.grace)
        finally:
            os.close(log)

    def wait_ready(self) -> None:
        """Wait until the server is ready and warmed, and warm it; ServerError, and the server stopped, if that fails.

        The timeout of the command holds from the start to the end of the server's own warmup. What `warm` raises goes
        through, and leaves the server running.
        """
        if self._leash is None or self.started is None:
            raise ServerError(f"server {self.name!r} was not started: call start() before wait_ready()")
        last = self.started + self.command.timeout
        self._await_readiness(self._leash, last)
        self.ready_at = monotonic()
        self._observer.ready(self, self.ready_at)
        self._await_mark(self._leash, last)
        if self._warm is not None:
            self._warm(self)
        self.warmed_at = monotonic() if self._warm or ADAPTERS[self.command.adapter].awaited else self.ready_at
        self._observer.warmed(self, self.warmed_at)

    def _await_readiness(self, leash: Leash, last: float) -> None:
        url, step = self.command.ready_url(self.port), _STEP
        while (answer := self._ask(url, last)) != f"status {self.command.ready_status}":
            self._go_on(leash, last, step, f"{url} last said: {answer}")
            step = min(2 * step, _LONGEST_STEP)
        self._check_alive(leash)
        if (stranger := stranger_on(self.port, self.pid)) is not None:
            self._fail(f"cannot be tested: port {self.port} is served by process {stranger}, which was there before it")

    def _ask(self, url: str, last: float) -> str:
        try:
            return f"status {status_of(url, max(0.1, min(_ASK_LIMIT, last - monotonic())))}"
        except NoAnswer as error:
            return str(error)

    def _await_mark(self, leash: Leash, last: float) -> None:
        """Wait until the server's log says that its own warmup is over, where it is known to say so."""
        adapter = ADAPTERS[self.command.adapter]
        mark = Mark(self.log, adapter.mark, self._log_start)
        while adapter.awaited and not mark.look():
            why = (
                f"it answered, but its log never said {adapter.mark!r}, the end of {adapter.name}'s own warmup "
                f"(if {adapter.silenced_by} silences that, say kind='none')"
            )
            self._go_on(leash, last, _STEP, why)

    def _go_on(self, leash: Leash, last: float, step: float, why: str) -> None:
        """Wait a step, unless it died or the time is over."""
        left = last - monotonic()
        leash.over(max(0.0, min(step, left)))
        self._check_alive(leash)
        if left <= 0:
            self._fail(f"was not ready within {self.command.timeout:g} s: {why}{self._hint(why)}")

    def _hint(self, why: str) -> str:
        adapter = ADAPTERS[self.command.adapter]
        if adapter.mark and not adapter.awaited and Mark(self.log, adapter.mark, self._log_start).look():
            return f"; its log says {adapter.mark!r}, so look at url= and ready="
        # Who is still starting says 503, or nothing.
        answers = "last said: status " in why and "last said: status 5" not in why
        return "; say which path tells that it is ready (ready=), or by which status (ready_status=)" if answers else ""

    def _check_alive(self, leash: Leash) -> None:
        if (how := leash.over()) is not None:
            after = monotonic() - (self.started or 0.0)
            stay = " (a server must stay in the foreground)" if how.code == 0 else ""
            self._fail(f"{how.text} before it was ready, after {after:.1f} s{stay}")

    def _fail(self, what: str) -> NoReturn:
        self.stop()
        raise ServerError(self._with_tail(f"server {self.name!r} {what}"))

    def _with_tail(self, message: str) -> str:
        said = self.tail(_TAIL)
        log = f"{self.log} ends with:\n{said}" if said else f"{self.log} is empty"
        return f"{message}\ncommand: {self._shown()}\n{log}"

    def _shown(self) -> str:
        return shlex.join(self.argv)

    def stop(self) -> HowItEnded:
        """End the whole process tree, politely and then by force; returns how it ended, as often as it is asked.

        Takes at most the command's grace and some seconds more.
        """
        if self._how is None:
            if self._leash is None:
                raise ServerError(f"server {self.name!r} was not started: there is nothing to stop")
            if os.getpid() != self._owner:
                raise ServerError(f"server {self.name!r} belongs to process {self._owner}: only that may stop it")
            self._set_stopped(self._leash.end())
        assert self._how is not None
        return self._how

    def _set_stopped(self, how: HowItEnded) -> None:
        self._how = how
        self.stopped_at = monotonic()
        self._observer.stopped(self, how)

    def tail(self, lines: int = _TAIL) -> str:
        """Return the last lines of its log since the start, without colours and control characters."""
        return tail(self.log, lines, self._log_start)

    def __enter__(self) -> Server:
        """Start it and wait until it is warmed."""
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Stop it, unless this is a forked child that leaves its parent's block."""
        if os.getpid() == self._owner:
            self.stop()


def wait_idle(adapter: str, url: str, limit: float) -> int | None:
    """Wait up to `limit` seconds until a server has no request in flight, as far as `running_requests` can tell.

    Returns the last number: 0 when idle, None if it cannot be told, more if the limit was over first.
    """
    last, step = monotonic() + limit, _STEP
    while (number := running_requests(adapter, url)) and monotonic() < last:
        pause(max(0.0, min(step, last - monotonic())))
        step = min(2 * step, _LONGEST_STEP)
    return number
