"""A small OpenAI-compatible server (ASGI, uvicorn), which notes what it got and misbehaves on request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import uvicorn

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

WORD = "näh 😀\u2028"
"""What it answers, once for each new token: characters of four lengths, and a line separator that is no line's end."""


@dataclass
class Got:
    """One request as it arrived."""

    path: str
    body: bytes
    headers: dict[str, str]
    arrived: float

    @property
    def number(self) -> int:
        """The request's place in its run; two that are sent at the same moment may arrive in either order."""
        return int(self.headers["x-request-id"].rpartition("-")[2])

    @property
    def json(self) -> dict[str, Any]:
        document = json.loads(self.body)
        assert isinstance(document, dict)
        return document


@dataclass
class CompletionsApp:
    """`misdeeds` maps a number of new tokens to what happens to the request that asks for so many.

    Until `gathered` requests have been in flight at once, none is answered; `release` lets go those that hang.
    """

    misdeeds: dict[int, str] = field(default_factory=dict)
    gathered: int = 1
    release: threading.Event = field(default_factory=threading.Event)
    got: list[Got] = field(default_factory=list)
    in_flight: int = 0
    most: int = 0

    @property
    def bodies(self) -> list[bytes]:
        return [got.body for got in self.got]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = await _body(receive)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.got.append(Got(scope["path"], body, headers, time.monotonic()))
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await self._answer(self.got[-1], send)
        finally:
            self.in_flight -= 1

    async def _answer(self, got: Got, send: Send) -> None:
        while self.most < self.gathered:
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.002)
        asked = got.json
        misdeed = self.misdeeds.get(asked.get("max_tokens", 0), "")
        if misdeed in ("400", "500"):
            await _send_json(send, {"error": {"message": f"the engine said\n{misdeed}", "code": misdeed}}, int(misdeed))
        elif misdeed == "html":
            await _send(send, b"<html>a proxy's page</html>", "text/html")
        elif misdeed == "hang":
            while not self.release.is_set():
                await asyncio.sleep(0.005)
            await _send_json(send, _whole(got.path, asked))
        elif asked.get("stream"):
            await self._stream(got.path, asked, misdeed, send)
        else:
            await _send_json(send, _whole(got.path, asked), promised=5 if misdeed == "break" else 0)

    async def _stream(self, path: str, asked: dict[str, Any], misdeed: str, send: Send) -> None:
        events = [json.dumps(chunk, ensure_ascii=False) for chunk in _chunks(path, asked)]
        if misdeed == "error event":
            events[2] = json.dumps({"error": {"message": "out of memory", "code": 500}})
        await send(_start(200, "text/event-stream"))
        await _send_events(send, events[:2])
        while misdeed == "stall" and not self.release.is_set():
            await asyncio.sleep(0.005)
        if misdeed == "break":
            raise ConnectionAbortedError
        if misdeed != "no done":
            await _send_events(send, [*events[2:], "[DONE]"])
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_events(send: Send, events: list[str]) -> None:
    text = "".join(f"data: {event}\r\n\r\n" for event in events).encode()
    for begin in range(0, len(text), 7):  # in pieces that respect neither events nor characters
        await send({"type": "http.response.body", "body": text[begin : begin + 7], "more_body": True})


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _start(status: int, content_type: str, length: int | None = None) -> dict[str, Any]:
    headers = [(b"content-type", content_type.encode())]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    return {"type": "http.response.start", "status": status, "headers": headers}


async def _send(send: Send, body: bytes, content_type: str, status: int = 200, promised: int = 0) -> None:
    await send(_start(status, content_type, len(body) + promised))
    await send({"type": "http.response.body", "body": body, "more_body": bool(promised)})
    if promised:
        raise ConnectionAbortedError


async def _send_json(send: Send, document: dict[str, Any], status: int = 200, promised: int = 0) -> None:
    await _send(send, json.dumps(document, ensure_ascii=False).encode(), "application/json", status, promised)


def _usage(path: str, asked: dict[str, Any]) -> dict[str, int]:
    prompt = asked["messages"][0]["content"].split() if path.endswith("chat/completions") else asked["prompt"]
    length = len(prompt.split()) if isinstance(prompt, str) else len(prompt)
    new = asked.get("max_tokens", 16)
    return {"prompt_tokens": length, "completion_tokens": new, "total_tokens": length + new}


def _head(path: str, asked: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "c-1", "object": kind, "created": 1, "model": asked["model"]}


def _whole(path: str, asked: dict[str, Any]) -> dict[str, Any]:
    text = WORD * asked.get("max_tokens", 16)
    if path.endswith("chat/completions"):
        head = _head(path, asked, "chat.completion")
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    else:
        head = _head(path, asked, "text_completion")
        choice = {"text": text, "logprobs": None}
    return {**head, "choices": [{"index": 0, "finish_reason": "length", **choice}], "usage": _usage(path, asked)}


def _chunks(path: str, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    chat = path.endswith("chat/completions")
    head = _head(path, asked, "chat.completion.chunk" if chat else "text_completion")
    for number in range(asked.get("max_tokens", 16)):
        piece = {"delta": {"role": "assistant", "content": WORD}} if chat else {"text": WORD, "logprobs": None}
        last = number + 1 == asked.get("max_tokens", 16)
        yield {**head, "choices": [{"index": 0, "finish_reason": "length" if last else None, **piece}]}
    if (asked.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": _usage(path, asked)}


@contextlib.contextmanager
def serving(app: CompletionsApp) -> Iterator[str]:
    """Serve the app on a free port of this machine, on a thread; gives its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, log_level="critical", lifespan="off", ws="none", backlog=512, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the test's server did not start"
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        app.release.set()
        server.should_exit = True
        thread.join(20)
        listening.close()
