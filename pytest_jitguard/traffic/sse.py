"""Server-sent events, as far as OpenAI-compatible servers use them: the data of each event."""

from __future__ import annotations

from collections.abc import Iterator

DONE = "[DONE]"
"""What the last event of a complete stream says."""


class EventReader:
    """Puts the pieces of a stream together. Lines end with LF or CRLF and nowhere else: JSON may hold other ones."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterator[str]:
        """Take the next bytes and give the data of each event that they complete."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            yield from self._line(line.removesuffix(b"\r"))

    def finish(self) -> Iterator[str]:
        """Give what the stream's end completes: servers may leave out the last empty line."""
        yield from self._line(self._rest.removesuffix(b"\r"))
        yield from self._line(b"")

    def _line(self, line: bytes) -> Iterator[str]:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" ").decode("utf-8", "replace"))
        elif not line and self._data:
            yield "\n".join(self._data)
            self._data = []
