"""What comes back for one request, put together piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pytest_jitguard.core.kinds import count
from pytest_jitguard.traffic.sse import DONE, EventReader

_SHOWN = 200


class Answer:
    """One answer: `first` is when its first byte or event came (seconds of time.monotonic), `error` what is wrong.

    `tokens` is the number of new tokens, None if the server does not tell. Texts are kept only where asked for.
    """

    def __init__(self, stream: bool, keep_text: bool = False) -> None:
        self.status: int | None = None
        self.first: float | None = None
        self.tokens: int | None = None
        self.error = ""
        self._texts: list[str] | None = [] if keep_text else None
        self._reader = EventReader() if stream else None
        self._events = 0
        self._done = False
        self._body = bytearray()

    @property
    def text(self) -> str | None:
        """What was answered, None where it was not to be kept."""
        return None if self._texts is None else "".join(self._texts)

    @property
    def progress(self) -> str:
        """How far the answer has come, in words."""
        if self._events:
            return f"after {count(self._events, 'event')} of its stream"
        return "in the middle of its answer" if self._body else "before the answer's first byte"

    def take(self, piece: bytes, now: float) -> None:
        """Take the next bytes of the body."""
        self._body += piece if self._reader is None or self._failed else piece[: max(0, _SHOWN - len(self._body))]
        if self._reader is None or self._failed:
            self.first = self.first or now
            return
        for data in self._reader.feed(piece):
            self._event(data, now)

    def finish(self, now: float, content_type: str = "") -> None:
        """Take note that the body is complete, and judge it."""
        if self._failed:
            self.error = f"HTTP {self.status}: {_excerpt(bytes(self._body))}".removesuffix(": ")
        elif self._reader is None:
            self._document(bytes(self._body).decode("utf-8", "replace"), "the answer")
        else:
            for data in self._reader.finish():
                self._event(data, now)
            self._judge_stream(content_type)

    @property
    def _failed(self) -> bool:
        return self.status is not None and not 200 <= self.status < 300

    def _event(self, data: str, now: float) -> None:
        self.first = self.first or now
        if data.strip() == DONE:
            self._done = True
            return
        self._events += 1
        self._document(data, f"event {self._events} of the stream")

    def _judge_stream(self, content_type: str) -> None:
        if self._done or self.error:
            return
        if not self._events and self._body:
            self.error = f"no stream of events but {content_type or 'an unknown type'}: {_excerpt(bytes(self._body))}"
        else:
            self.error = f"the stream ended without {DONE}, after {count(self._events, 'event')}"

    def _document(self, data: str, what: str) -> None:
        try:
            document = json.loads(data)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            self.error = self.error or f"{what} is no JSON object: {_excerpt(data.encode())}"
            return
        self._read(document)

    def _read(self, document: Mapping[str, Any]) -> None:
        if document.get("error") or document.get("object") == "error":
            self.error = self.error or f"HTTP {self.status}, but the answer is an error: {_complaint(document)}"
        usage = document.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            self.tokens = usage["completion_tokens"]
        if self._texts is not None:
            self._texts.extend(_texts(document))


def _texts(document: Mapping[str, Any]) -> Iterator[str]:
    choices = document.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        for place in (choice, choice.get("message"), choice.get("delta")) if isinstance(choice, dict) else ():
            said = (place.get("text"), place.get("content")) if isinstance(place, dict) else ()
            yield from (text for text in said if isinstance(text, str))


def _complaint(document: Mapping[str, Any]) -> str:
    """Return what an error says, wherever the server put it."""
    error = document.get("error", document)
    said = error.get("message") if isinstance(error, dict) else error
    return _short(said if isinstance(said, str) else json.dumps(error, ensure_ascii=False))


def _excerpt(body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    try:
        document = json.loads(text)
    except ValueError:
        return _short(text)
    return _complaint(document) if isinstance(document, dict) else _short(text)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."
