"""The API process's side of the engine: starts it, hands requests over, and gives each its own tokens back."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from examples.server.engine import ENGINE_GRACE, SPAWN, end, run_engine
from examples.server.messages import CLOSED, Cancel, Failed, Ready, Submit, Token
from examples.server.options import Options


class EngineUnavailable(Exception):
    """The engine is not ready yet, or no more."""


class EngineClient:
    """The engine, for one event loop. `ready` tells whether it takes requests; `lost` says why it never will again."""

    def __init__(self, options: Options, when_lost: Callable[[], None]) -> None:
        self.options = options
        self.ready = False
        self.lost: str | None = None
        self._when_lost = when_lost
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Queue[Token | None]] = {}
        self._sender = ThreadPoolExecutor(1, "to-engine")  # a pipe that is full must not hold up the event loop
        self._process: BaseProcess | None = None
        self._connection: Connection

    def start(self) -> None:
        """Start the engine process, and listen to it on the running event loop."""
        self._connection, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=run_engine, args=(self.options, theirs), name="engine")
        with _no_ctrl_c():
            self._process.start()
        theirs.close()  # or its end would never be seen here
        asyncio.get_running_loop().add_reader(self._connection.fileno(), self._listen)

    async def generate(self, prompt: tuple[int, ...], max_tokens: int) -> AsyncGenerator[Token, None]:
        """Yield the tokens of one request as they come; whoever stops early cancels it. EngineUnavailable if lost."""
        if not self.ready:
            raise EngineUnavailable(self.lost or "the engine is starting")
        number = next(self._numbers)
        answers = self._answers[number] = asyncio.Queue()
        self._send(Submit(number, prompt, max_tokens))
        try:
            while True:
                token = await answers.get()
                if token is None:
                    raise EngineUnavailable(self.lost)
                yield token
                if token.finished:
                    return
        finally:
            if self._answers.pop(number, None) is not None:  # not finished
                self._send(Cancel(number))

    async def stop(self) -> None:
        """End the engine, and with it the ranks; returns when they are gone."""
        if self._process is None:
            return
        self.ready = False
        asyncio.get_running_loop().remove_reader(self._connection.fileno())
        self._sender.submit(self._connection.close)  # after what is on its way
        await asyncio.to_thread(end, [self._process], ENGINE_GRACE)
        self._sender.shutdown()

    def _send(self, message: Any) -> None:
        with suppress(RuntimeError):  # stopped meanwhile
            self._sender.submit(self._connection.send, message)

    def _listen(self) -> None:
        try:
            while self._connection.poll():
                self._take(self._connection.recv())
        except CLOSED:
            self._lose("the engine process is gone")

    def _take(self, message: object) -> None:
        if isinstance(message, Ready):
            self.ready = True
        elif isinstance(message, Failed):
            self._lose(message.reason)
        elif isinstance(message, Token) and message.request in self._answers:
            queue = self._answers.pop(message.request) if message.finished else self._answers[message.request]
            queue.put_nowait(message)

    def _lose(self, reason: str) -> None:
        asyncio.get_running_loop().remove_reader(self._connection.fileno())
        self.ready, self.lost = False, self.lost or reason
        for queue in self._answers.values():
            queue.put_nowait(None)
        self._answers.clear()
        self._when_lost()


@contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """Let the children that are started inside the block ignore SIGINT from their first instruction on.

    Ctrl-C reaches the whole process group, but the engine and its ranks are ended by this process.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
