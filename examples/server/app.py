"""The ASGI application: health, models, completions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any

from examples.server import protocol
from examples.server.client import EngineClient, EngineUnavailable
from examples.server.protocol import Answer, Completion, RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

METHODS = {"/health": "GET", "/v1/models": "GET", "/v1/completions": "POST"}


class Disconnected(Exception):
    """The client has gone away before its request was complete."""


class App:
    """The API in front of one engine, which it starts and ends with the server."""

    def __init__(self, engine: EngineClient) -> None:
        self.engine = engine

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request, or the server's own beginning and end."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self.engine.start()
        # Not when the engine is ready: until then, /health answers 503.
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.engine.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            await self._route(scope["method"], scope["path"], receive, send)
        except RequestError as error:
            await _send_json(send, error.status, protocol.error(str(error), error.status, error.param, error.code))
        except EngineUnavailable as error:
            await _send_json(send, 503, protocol.error(str(error), 503))
        except Disconnected:
            pass  # nobody is left to be answered

    async def _route(self, method: str, path: str, receive: Receive, send: Send) -> None:
        if path not in METHODS:
            raise RequestError(f"there is nothing at {path}", status=404)
        if method != METHODS[path]:
            raise RequestError(f"{path} takes {METHODS[path]}, not {method}", status=405)
        if path == "/health":
            await self._health(send)
        elif path == "/v1/models":
            await _send_json(send, 200, protocol.models())
        else:
            await self._complete(receive, send)

    async def _health(self, send: Send) -> None:
        if not self.engine.ready:
            raise EngineUnavailable(self.engine.lost or "the engine is starting")
        await _send_json(send, 200, {})

    async def _complete(self, receive: Receive, send: Send) -> None:
        request = protocol.parse(await _body(receive), self.engine.options.max_model_len)
        if not self.engine.ready:
            raise EngineUnavailable(self.engine.lost or "the engine is starting")
        answering = asyncio.ensure_future((self._stream if request.stream else self._whole)(request, send))
        leaving = asyncio.ensure_future(_until_disconnected(receive))
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        for task in (leaving, answering):
            task.cancel()  # does nothing to a task that is done
        await asyncio.wait({answering, leaving})
        if not answering.cancelled():
            answering.result()

    async def _whole(self, request: Completion, send: Send) -> None:
        async with aclosing(self.engine.generate(request.prompt, request.max_tokens)) as tokens:
            generated = [token.token async for token in tokens]
        await _send_json(send, 200, Answer(request).whole(generated))

    async def _stream(self, request: Completion, send: Send) -> None:
        answer = Answer(request)
        await send(_start(200, "text/event-stream"))
        try:
            async with aclosing(self.engine.generate(request.prompt, request.max_tokens)) as tokens:
                async for token in tokens:
                    await _send_event(send, answer.chunk(token.token, finished=token.finished))
            if request.include_usage:
                await _send_event(send, answer.usage_chunk())
        except EngineUnavailable as error:  # too late for a status
            await _send_event(send, protocol.error(str(error), 503))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_json(send: Send, status: int, content: dict[str, Any]) -> None:
    await send(_start(status, "application/json"))
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})


async def _send_event(send: Send, content: dict[str, Any]) -> None:
    event = f"data: {json.dumps(content)}\n\n".encode()
    await send({"type": "http.response.body", "body": event, "more_body": True})


def _start(status: int, content_type: str) -> Message:
    headers = [(b"content-type", content_type.encode())]
    return {"type": "http.response.start", "status": status, "headers": headers}
