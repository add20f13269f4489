"""The log of a server: its last lines for a person, and whether a certain text has come."""

from __future__ import annotations

import re
from pathlib import Path

_TAIL_BYTES = 256 * 1024
_CHUNK = 1024 * 1024
_LINE = 500
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


def tail(path: Path, lines: int, start: int = 0) -> str:
    """Return the last lines from byte `start` on, fit for a terminal; empty if there are none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            begin = max(start, size - _TAIL_BYTES)
            file.seek(begin)
            text = file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    found = [_plain(line) for line in text.split("\n")]
    if begin > start:
        found = found[1:] or found  # the first one is torn, unless it is all there is
    while found and not found[-1]:
        found.pop()
    return "\n".join(found[-lines:]) if lines > 0 else ""


def _plain(line: str) -> str:
    """Keep what a terminal would show in the end: no colours, and of a rewritten progress bar the last state."""
    shown = _ESCAPES.sub("", line.rstrip("\r")).rpartition("\r")[2]
    printable = "".join(
        letter if letter.isprintable() or letter == "\t" else "\N{REPLACEMENT CHARACTER}" for letter in shown
    )
    return printable if len(printable) <= _LINE else printable[: _LINE - 1] + "…"


class Mark:
    """Looks for a text in a growing log; reads each byte once."""

    def __init__(self, path: Path, text: str, start: int = 0) -> None:
        self.text = text
        self.seen = False
        self._path = path
        self._wanted = text.encode()
        self._next = start
        self._last = b""

    def look(self) -> bool:
        """Read what is new; whether the text has come by now."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._next)
                while not self.seen and (more := file.read(_CHUNK)):
                    self._take(more)
        except OSError:
            pass  # no log any more: what was not seen does not come
        return self.seen

    def _take(self, more: bytes) -> None:
        self._next += len(more)
        self.seen = self._wanted in self._last + more
        self._last = (self._last + more)[1 - len(self._wanted) :]
