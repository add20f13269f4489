"""The `jitguard_server` fixture: servers under test, with the guard's phases around them if there is a guard."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import operator
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.phases import RequestSpan
from pytest_jitguard.guarding import GUARDING_KEY, Guarding
from pytest_jitguard.processes.census import is_python
from pytest_jitguard.processes.journal import shown_argv
from pytest_jitguard.scopes import Scope
from pytest_jitguard.servers.command import ServerCommand
from pytest_jitguard.servers.server import HowItEnded, Observer, Server, ServerError, wait_idle
from pytest_jitguard.sharing import AttachedServer, Meeting
from pytest_jitguard.traffic.http import Driving, drive, replay, start_drive
from pytest_jitguard.traffic.record import TrafficError

if TYPE_CHECKING:
    from typing_extensions import Self

    from pytest_jitguard.session import GuardSession
    from pytest_jitguard.traffic.record import Record, Sent
    from pytest_jitguard.traffic.requests import Request

# pytest leaves our frames out of a traceback that ends in one of these: the mistake is the caller's.
__tracebackhide__ = operator.methodcaller("errisinstance", (ServerError, TrafficError, TypeError, ValueError))

Warmup = Callable[["GuardedServer"], object]
Traffic = Sequence["Request"]


class GuardedServer:
    """A server under test. Whoever sends it requests, by `drive` or by any client at `url`, is judged for them.

    Its start and its warmup are warmup; after that, what its process tree compiles belongs to the guarded test whose
    call is open and that uses the server: through the fixture that started it, or by `use`.
    """

    def __init__(
        self,
        command: ServerCommand,
        guarding: Guarding | None,
        log: Path,
        *,
        model: str,
        drain: float,
        warm: Warmup | None,
    ) -> None:
        self.model = model
        self._guarding = guarding
        self._drain_limit = drain
        self._driving: list[Driving] = []
        self._runs: Counter[str] = Counter()
        number = next(guarding.numbers) if guarding else 1
        self._scope = Scope(f"server:{command.name}#{_unique(number)}", command.name, drain=self.drain)
        self._server: Server | AttachedServer = Server(
            command,
            self._scope.id,
            log,
            Observer(self._starting, self._ready, self._warmed, self._stopped) if guarding else None,
            (lambda _: warm(self)) if warm else None,
            self._variables(),
        )

    def _variables(self) -> Mapping[str, str]:
        inherited = self._guarding.inherited if self._guarding else None
        return inherited._replace(scope=self._scope.id).variables() if inherited else {}

    # -- what a test sees ----------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Its name, by default what its command runs."""
        return self._server.name

    @property
    def url(self) -> str:
        """Where it serves, without a slash at the end."""
        return self._server.url

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.port

    @property
    def pid(self) -> int:
        """Its first process."""
        return self._server.pid

    @property
    def log(self) -> Path:
        """The file with what it wrote to standard output and error."""
        return self._server.log

    def tail(self, lines: int = 30) -> str:
        """Return the last lines of its log."""
        return self._server.tail(lines)

    def use(self) -> None:
        """Say that the running test uses this server, though not through the fixture that started it."""
        if self._guarding:
            self._guarding.session.use_scope(self._scope)

    @contextlib.contextmanager
    def warmup(self, label: str = "") -> Iterator[None]:
        """Take what the server compiles meanwhile as its warmup."""
        if self._guarding is None:
            yield
            return
        with self._guarding.session.scopes.warming(self._scope, label or f"warmup of {self.name}"):
            yield

    def drive(self, requests: Traffic, *, model: str = "", **how: Any) -> Record:
        """Send requests and wait for the answers, as `traffic.http.drive` does. The running test uses the server."""
        self.use()
        with self._telling_its_log():
            return drive(self.url, requests, model=self._model(model), **self._observed(self._seeded(how)))

    def start_drive(self, requests: Traffic, *, model: str = "", **how: Any) -> Driving:
        """Begin to send requests and return at once; what is not answered when the test ends is waited for then."""
        self.use()
        driving = start_drive(self.url, requests, model=self._model(model), **self._observed(self._seeded(how)))
        self._driving.append(driving)
        return driving

    def replay(self, record: Record, **how: Any) -> Record:
        """Send the requests of a record again, to the byte and at their times, as `traffic.http.replay` does."""
        self.use()
        with self._telling_its_log():
            return replay(record, self.url, **self._observed(how))

    @contextlib.contextmanager
    def _telling_its_log(self) -> Iterator[None]:
        """Add to what requests failed of what the server said: the reason mostly stands there only."""
        try:
            yield
        except TrafficError as error:
            raise TrafficError(f"{error}\n{self.log} ends with:\n{self.tail()}", error.record) from None

    def _model(self, model: str) -> str:
        if not (model or self.model):
            raise ValueError(f"server {self.name!r}: which model? Give model= to jitguard_server or to this call")
        return model or self.model

    def _seeded(self, how: dict[str, Any]) -> dict[str, Any]:
        """Give each run in each test a seed of its own, the same every time: equal prompts would be cached prefixes."""
        attempt = self._guarding.session.attempt if self._guarding else None
        owner = attempt.nodeid if attempt else ""
        self._runs[owner] += 1
        return {"seed": zlib.crc32(f"{owner} {self._runs[owner]}".encode()), **how}

    def _observed(self, how: dict[str, Any]) -> dict[str, Any]:
        if self._guarding is None:
            return how
        theirs = how.get("observer")
        return {**how, "observer": _RequestLog(self._guarding.session, self._scope, theirs)}

    def drain(self) -> list[Exception]:
        """Wait until what was sent is answered, at most `drain` seconds: it belongs to the test that sent it.

        Returns why runs in the background failed that nobody waited for: a test whose requests failed proves nothing.
        """
        until = monotonic() + self._drain_limit
        for driving in self._driving:
            driving.settle(max(0.0, until - monotonic()))
        failures = [failure for driving in self._driving if (failure := driving.unheard_failure())]
        self._driving = [driving for driving in self._driving if not driving.done]
        if self.is_running and self._server.warmed_at is not None:
            wait_idle(self._server.command.adapter, self.url, max(0.0, until - monotonic()))
        return failures

    def stop(self) -> HowItEnded:
        """End the server and all of its processes; returns how it ended."""
        self._note_lost()
        return self._server.stop()

    def _note_lost(self) -> None:
        """Note which of its processes are gone already: from now on it is no wonder."""
        if self._guarding is not None and (relatives := self._guarding.session.relatives) and self.is_running:
            self._guarding.session.hear()
            self._scope.told["lost"] = [process.pid for process in relatives.lost(self._scope.id)]

    def start(self) -> GuardedServer:
        """Start it and wait until it is warmed; ServerError with the end of its log if that does not come."""
        assert isinstance(self._server, Server)
        self._server.start()
        self._count_its_process()
        try:
            self._server.wait_ready()
        except BaseException:
            self._server.stop()
            raise
        return self

    def start_or_attach(self, meeting: Meeting) -> GuardedServer:
        """Start it, unless another worker of this run has: then use that one."""
        told = meeting.enter(self._started_for_all)
        if told is not None and self._guarding is not None:
            self._server = attached = AttachedServer.of(self._server.command, told)
            self._scope.id = attached.scope
            self._guarding.session.attach_scope(self._scope, attached.started, attached.warmed_at)
        return self

    def _started_for_all(self) -> dict[str, Any]:
        server = self.start()._server
        return {
            **{"scope": self._scope.id, "url": server.url, "port": server.port, "pid": server.pid},
            **{"log": str(server.log), "started": server.started, "warmed_at": server.warmed_at},
        }

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped by us."""
        return self._server.started is not None and self._server.stopped_at is None

    @property
    def is_attached(self) -> bool:
        """Whether another worker of this run started it."""
        return isinstance(self._server, AttachedServer)

    def __enter__(self) -> Self:
        """Return the server, which runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    # -- what the guard hears ------------------------------------------------------------------------------------------

    def _count_its_process(self) -> None:
        """Note its first process, so that the census names it if it does not report: nobody else starts it."""
        if self._guarding is None or self._guarding.inherited is None:
            return
        assert isinstance(self._server, Server)
        argv = shown_argv(list(self._server.argv))
        facts = {"pid": self.pid, "how": "server", "argv": argv, "python": is_python(argv)}
        self._note({"record": "child", **facts, "started": self._server.started})

    def _note(self, record: Mapping[str, Any]) -> None:
        if self._guarding:
            self._guarding.session.recorder.note(record)

    def _starting(self, server: Server) -> None:
        assert self._guarding is not None
        self._guarding.session.begin_scope(self._scope)
        facts: dict[str, Any] = {"argv": list(server.argv), "url": server.url, "log": str(server.log)}
        self._guarding.session.scopes.tell(self._scope, "starting", **facts)

    def _ready(self, server: Server, at: float) -> None:
        assert self._guarding is not None
        self._guarding.session.scopes.tell(self._scope, "ready", pid=server.pid)

    def _warmed(self, server: Server, at: float) -> None:
        assert self._guarding is not None
        session = self._guarding.session
        session.hear()
        stamps = session.relatives.stamps(self._scope.id, "warmed") if session.relatives else []
        end = max([at, *stamps])
        session.scopes.warmed(self._scope, end)
        session.scopes.tell(self._scope, "warmed", start_up_seconds=end - (server.started or end))

    def _stopped(self, server: Server, how: HowItEnded) -> None:
        assert self._guarding is not None
        session = self._guarding.session
        session.scopes.warmed(self._scope, monotonic())  # if it never came so far
        session.hear()
        state = "stopped" if server.warmed_at is not None else "failed"
        session.scopes.tell(self._scope, state, ended=how.text)


def _unique(number: int) -> str:
    """Return a number that no other server of the run has: workers count each for itself."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    return f"{worker}.{number}" if worker else str(number)


class _RequestLog:
    """Writes down which requests are under way, and for which test; then tells the test's own observer."""

    def __init__(self, session: GuardSession, scope: Scope, theirs: Callable[[Sent], None] | None) -> None:
        self._session = session
        self._scope = scope
        self._theirs = theirs
        attempt = session.attempt
        self._owner = (attempt.nodeid, attempt.number) if attempt else ("", 0)
        self._spans: dict[str, RequestSpan] = {}

    def __call__(self, sent: Sent) -> None:
        scopes = self._session.scopes
        if sent.ended is None:
            text = f"{sent} of {_short(self._owner[0])}" if self._owner[0] else str(sent)
            self._spans[sent.id] = scopes.sent(self._scope, text, *self._owner, sent.started)
        elif sent.id in self._spans:
            scopes.answered(self._spans.pop(sent.id), sent.ended)
        if self._theirs is not None:
            self._theirs(sent)


def _short(nodeid: str) -> str:
    return nodeid.rpartition("::")[2]


class ServerFactory:
    """What the fixture `jitguard_server` gives: call it with a command to get a server that is ready and warm."""

    def __init__(self, guarding: Guarding | None) -> None:
        self._guarding = guarding
        self._servers: list[GuardedServer] = []
        self._folder = guarding.folder if guarding else Path(tempfile.mkdtemp(prefix="jitguard-servers-"))

    def __call__(
        self,
        command: Sequence[str],
        *,
        model: str = "",
        warmup: Warmup | Traffic | None = None,
        drain: float = 10.0,
        shared: bool = False,
        log: str | os.PathLike[str] | None = None,
        **how: Any,
    ) -> GuardedServer:
        """Start a command as a server under test and return it when it is ready and warm.

        `how` are the fields of `ServerCommand`: name, url, ready, ready_status, timeout, grace, environment, cwd, kind,
        port. `warmup` is a callable that gets the server, or requests for `drive`. `drain` is how many seconds the end
        of a test waits for its requests to be answered. It ends with the session, by `stop`, or as a context manager.

        With `shared`, the workers of pytest-xdist use one server of this name together: the first one starts it. What
        it compiles is charged to every test that is served at that moment.
        """
        _check_names(how)
        server_command = ServerCommand(tuple(command), **how)
        path = Path(log) if log else self._folder / f"{_file_name(server_command.name)}-{len(self._servers) + 1}.log"
        warm = warmup if warmup is None or callable(warmup) else _driven(warmup)
        server = GuardedServer(server_command, self._guarding, path, model=model, drain=drain, warm=warm)
        if shared and self._guarding is not None:
            meeting = Meeting(self._folder / "servers", _file_name(server.name))
            server.start_or_attach(meeting)
            self._guarding.shared.append((server, meeting))
            return server
        self._servers.append(server)
        return server.start()

    def close(self) -> None:
        """Stop every server that is still running, the last started first."""
        for server in reversed(self._servers):
            if server.is_running:
                server.stop()


def _check_names(how: Mapping[str, Any]) -> None:
    own = inspect.signature(ServerFactory.__call__).parameters.values()
    named = [parameter.name for parameter in own if parameter.kind is parameter.KEYWORD_ONLY]
    known = [*named, *(field.name for field in dataclasses.fields(ServerCommand) if field.name != "command")]
    for name in how:
        if name not in known:
            like = difflib.get_close_matches(name, known, 1, 0.4)
            hint = f" (did you mean {like[0]!r}?)" if like else f"; expected one of {', '.join(known)}"
            raise TypeError(f"jitguard_server() has no argument {name!r}{hint}")


def _driven(requests: Traffic) -> Warmup:
    return lambda server: server.drive(requests)


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def make(config: pytest.Config) -> Iterator[ServerFactory]:
    """Return the fixture's value for a session, and stop its servers at the end."""
    factory = ServerFactory(config.stash.get(GUARDING_KEY, None))
    try:
        yield factory
    finally:
        factory.close()
