"""The HTTP driver: sends requests to an OpenAI-compatible server and reads every answer to its end.

It needs httpx, which is imported when a run begins (`pip install pytest-jitguard[http]`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import operator
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import SplitResult, urlsplit

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.kinds import count
from pytest_jitguard.traffic.answers import Answer
from pytest_jitguard.traffic.prompts import VOCABULARY, PromptMaker, body_of, encode, salt_of
from pytest_jitguard.traffic.record import Record, Sent, TrafficError, failure
from pytest_jitguard.traffic.requests import Request, RequestError

if TYPE_CHECKING:
    import httpx
    from typing_extensions import Self, Unpack

# pytest leaves our frames out of a traceback that ends in one of these: the mistake is not ours.
__tracebackhide__ = operator.methodcaller("errisinstance", (TrafficError, RequestError))

Observer = Callable[[Sent], None]

STOPPED = "stopped before its answer was complete"
_GRACE = 10.0


class Exchange(TypedDict, total=False):
    """How requests are exchanged.

    `timeout`: seconds that one request may take in all (600). `headers`: sent with each, such as Authorization; they
    are not recorded. `observer`: called with each request when it starts and when it ends, from the thread that sends;
    what it raises ends the run. `check`: raise TrafficError at the end if a request failed (True). `keep_text`: keep
    what was answered (False).
    """

    timeout: float
    headers: Mapping[str, str] | None
    observer: Observer | None
    check: bool
    keep_text: bool


class How(Exchange, total=False):
    """How a run is driven.

    `concurrency`: the most requests in flight (1). `seed`: decides the prompts, together with the list of requests (0).
    `vocabulary`: the token ids that prompts are made of.
    """

    concurrency: int
    seed: int
    vocabulary: Sequence[int]


def drive(url: str, requests: Sequence[Request], *, model: str, **how: Unpack[How]) -> Record:
    """Send the requests in their order and return when the last one has ended.

    `url` is the server's, with or without `/v1`; `how` is told by `How`. A request is sent once fewer than
    `concurrency` are in flight and its own `at` has come; later ones wait behind it. A failed request does not keep
    the others from being sent; at the end all failures are raised as one TrafficError. RequestError for arguments that
    do not fit, ModuleNotFoundError without httpx. Requests are sent from a thread of their own, so that it works
    inside a running event loop too; a server in that same loop needs `adrive`.
    """
    with start_drive(url, requests, model=model, **how) as driving:
        return driving.wait()


async def adrive(url: str, requests: Sequence[Request], *, model: str, **how: Unpack[How]) -> Record:
    """Do what `drive` does, in the running event loop of asyncio."""
    run = _planned(url, requests, model, **how)
    await run.go()
    return run.result()


def start_drive(url: str, requests: Sequence[Request], *, model: str, **how: Unpack[How]) -> Driving:
    """Begin what `drive` does and return at once."""
    return Driving(_planned(url, requests, model, **how))


def replay(record: Record, url: str, **how: Unpack[Exchange]) -> Record:
    """Send the bodies of a record again, to the byte, each as long after the start as it was sent then.

    No more are in flight than were allowed then. The rest is as with `drive`.
    """
    jobs = [_Job(sent.number, sent.request, sent.body, max(0.0, sent.started - record.began)) for sent in record.sent]
    run = _Run(_base(url), jobs, record.model, record.seed, record.concurrency, **how)
    with Driving(run) as driving:
        return driving.wait()


class Driving:
    """A run in the background. As a context manager it waits at the end of the block, and stops if the block raises."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._failure: BaseException | None = None
        self._was_heard = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._ready, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="jitguard traffic", daemon=True)
        self._thread.start()
        self._ready.wait()

    @property
    def in_flight(self) -> int:
        """How many requests are being answered now."""
        return self._run.in_flight

    @property
    def done(self) -> bool:
        """Whether the run is over."""
        return self._over.is_set()

    def wait(self, timeout: float | None = None) -> Record:
        """Wait for the last request and return the record.

        TrafficError if requests failed (unless `check=False`), or if the run takes longer than `timeout` seconds; it
        goes on then.
        """
        # Not join(): when Ctrl-C breaks it off, Python (3.11 is one) takes the thread for dead.
        if not self._over.wait(timeout):
            ended, planned = self._run.ended, len(self._run.jobs)
            message = f"{planned - ended} of {count(planned, 'request')} not ended after {timeout:g} s"
            raise TrafficError(f"{message}, {self.in_flight} of them in flight", self._run.record())
        self._was_heard = True
        if self._failure is not None:
            raise self._failure
        return self._run.result()

    def stop(self) -> Record:
        """Break off what is in flight, send nothing more, and return the record of what was sent."""
        if not self.done and self._loop is not None and self._task is not None:
            try:
                self._loop.call_soon_threadsafe(self._task.cancel)
            except RuntimeError:  # the loop was closed just now
                pass
            self._over.wait(_GRACE)
        self._was_heard = True
        return self._run.record()

    def settle(self, timeout: float) -> None:
        """Wait for the last request, at most `timeout` seconds, whatever became of it."""
        self._over.wait(timeout)

    def unheard_failure(self) -> Exception | None:
        """Return why the run failed, if it is over and neither `wait` nor `stop` has told anybody yet."""
        if not self.done or self._was_heard:
            return None
        try:
            self.wait()
        except Exception as error:  # noqa: BLE001 - handed over instead
            return error
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        else:
            self.stop()

    def _work(self) -> None:
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            pass
        except BaseException as failure:  # noqa: BLE001 - raised again by wait()
            self._failure = failure
        finally:
            self._over.set()
            self._ready.set()

    async def _main(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._ready.set()
        await self._run.go()


@dataclass(frozen=True)
class _Job:
    """One request with the bytes that it sends; `at` in seconds after the start of the run."""

    number: int
    request: Request
    body: bytes = field(repr=False)
    at: float


@dataclass
class _Run:
    """The state of one run; changed by one thread only, read by others."""

    base: SplitResult
    jobs: Sequence[_Job]
    model: str
    seed: int
    concurrency: int
    timeout: float = 600.0
    headers: Mapping[str, str] | None = None
    observer: Observer | None = None
    check: bool = True
    keep_text: bool = False

    def __post_init__(self) -> None:
        _check(self)
        _httpx()
        self.name = secrets.token_hex(4)
        self.began = monotonic()
        self.sent: dict[int, Sent] = {}

    @property
    def url(self) -> str:
        """The server's address without the user's password, for messages and the record."""
        return self.base._replace(netloc=self.base.netloc.rpartition("@")[2]).geturl()

    @property
    def in_flight(self) -> int:
        return sum(sent.ended is None for sent in list(self.sent.values()))

    @property
    def ended(self) -> int:
        return sum(sent.ended is not None for sent in list(self.sent.values()))

    def record(self) -> Record:
        sent = sorted(self.sent.values(), key=lambda sent: sent.number)
        return Record(self.url, self.model, self.seed, self.concurrency, self.began, sent)

    def result(self) -> Record:
        record = self.record()
        error = failure(record, len(self.jobs)) if self.check else None
        if error is not None:
            raise error
        return record

    async def go(self) -> None:
        """Send everything; cancelling it breaks off what is in flight."""
        tasks: list[asyncio.Task[None]] = []
        async with _client(self.base, self.headers) as client:
            self.began = monotonic()
            try:
                await self._send_all(client, tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_all(self, client: httpx.AsyncClient, tasks: list[asyncio.Task[None]]) -> None:
        free = asyncio.Semaphore(self.concurrency)
        for job in self.jobs:
            await self._until(self.began + job.at)
            await free.acquire()
            task = asyncio.create_task(self._send(client, job))
            task.add_done_callback(lambda _: free.release())
            tasks.append(task)
        await asyncio.gather(*tasks)

    async def _until(self, moment: float) -> None:
        while (left := moment - monotonic()) > 0:
            await asyncio.sleep(left)

    async def _send(self, client: httpx.AsyncClient, job: _Job) -> None:
        sent = Sent(f"{self.name}-{job.number}", job.number, job.request, job.body, monotonic())
        answer = Answer(job.request.stream, self.keep_text)
        self._tell(sent)
        try:
            answer.error = await self._exchanged(client, sent, answer) or answer.error
        except asyncio.CancelledError:
            answer.error = STOPPED
            raise
        finally:
            came = {name: getattr(answer, name) for name in ("first", "status", "tokens", "error", "text")}
            self._tell(replace(sent, ended=monotonic(), **came))

    def _tell(self, sent: Sent) -> None:
        self.sent[sent.number] = sent
        if self.observer is not None:
            self.observer(sent)

    async def _exchanged(self, client: httpx.AsyncClient, sent: Sent, answer: Answer) -> str:
        """Send one request and read its answer; return what went wrong on the way."""
        import httpx

        try:
            await asyncio.wait_for(_exchange(client, sent, answer), self.timeout)
        except asyncio.TimeoutError:
            return f"no complete answer within {self.timeout:g} s (given up {answer.progress})"
        except httpx.ConnectError as error:
            return f"no connection to {self.url}: {error} (is the server running?)"
        except httpx.HTTPError as error:
            why = f"{type(error).__name__}: {error}".removesuffix(": ")
            return f"the connection broke {answer.progress} ({why})"
        return ""


async def _exchange(client: httpx.AsyncClient, sent: Sent, answer: Answer) -> None:
    headers = {} if "x-request-id" in client.headers else {"X-Request-Id": sent.id}
    async with client.stream("POST", sent.request.path, content=sent.body, headers=headers) as response:
        answer.status = response.status_code
        async for piece in response.aiter_bytes():
            answer.take(piece, monotonic())
        answer.finish(monotonic(), response.headers.get("content-type", ""))


def _planned(
    url: str,
    requests: Sequence[Request],
    model: str,
    *,
    concurrency: int = 1,
    seed: int = 0,
    vocabulary: Sequence[int] = VOCABULARY,
    **how: Unpack[Exchange],
) -> _Run:
    for given in requests:
        if not isinstance(given, Request):
            raise RequestError(f"requests must be a list of Request, not of {given!r}")
    prompts = PromptMaker(seed, vocabulary=vocabulary, salt=salt_of(requests))
    bodies = [encode(body_of(request, index, model, prompts)) for index, request in enumerate(requests)]
    pairs = enumerate(zip(requests, bodies, strict=True), 1)
    jobs = [_Job(number, request, body, request.at) for number, (request, body) in pairs]
    return _Run(_base(url), jobs, model, seed, concurrency, **how)


def _base(url: str) -> SplitResult:
    """Return the address below which the endpoints are, ending with `/v1`."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        _ = parts.port  # a port that is none raises
    except (ValueError, AttributeError, TypeError):
        fits = False
    if not fits:
        raise RequestError(f"url must be a server's address like 'http://127.0.0.1:8000', not {url!r}")
    path = parts.path.rstrip("/")
    return parts._replace(path=path if path.endswith("/v1") else f"{path}/v1")


def _check(run: _Run) -> None:
    if not isinstance(run.model, str) or not run.model:
        raise RequestError(f"model must be the name under which the server serves its model, not {run.model!r}")
    if isinstance(run.concurrency, bool) or not isinstance(run.concurrency, int) or run.concurrency < 1:
        raise RequestError(f"concurrency must be a whole number of at least 1, not {run.concurrency!r}")
    if not isinstance(run.timeout, (int, float)) or not math.isfinite(run.timeout) or run.timeout <= 0:
        raise RequestError(f"timeout must be seconds, more than 0, not {run.timeout!r}")


def _httpx() -> Any:
    try:
        import httpx
    except ModuleNotFoundError as error:
        message = f"driving HTTP traffic needs httpx ({error}): pip install 'pytest-jitguard[http]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    return httpx


def _client(base: SplitResult, headers: Mapping[str, str] | None) -> httpx.AsyncClient:
    """Return a client that holds nothing back: no pool limit, no timeouts besides ours, each request its connection.

    A kept connection that the server closes in the moment of the next request would fail that request for no reason.
    """
    import httpx

    return httpx.AsyncClient(
        base_url=base.geturl(),
        headers={"Content-Type": "application/json", "Accept-Encoding": "identity", **(headers or {})},
        timeout=None,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        trust_env=not _is_here(base.hostname or ""),
    )


def _is_here(host: str) -> bool:
    """Tell whether a host is this machine, which no proxy of the environment reaches."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
