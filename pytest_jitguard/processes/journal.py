"""The append-only record that each process writes, so that evidence survives any kind of death."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
RECORDS = (
    "hello",
    "clock",
    "identity",
    "environment",
    "child",
    "trouble",
    "stamp",
    "server",
    "use",
    "request",
    "begin",
    "end",
    "open",
    "close",
    "monitor",
    "warmup",
    "verdict",
    "outcome",
    "finding",
    "session",
    "bye",
)


class Journal:
    """One JSONL file of one process image; every record is one write.

    What cannot be written (full disk, deleted folder) stays in memory and is counted, because a record that is lost
    in silence would be a false green.
    """

    def __init__(self, folder: Path, role: str) -> None:
        self.folder = folder
        self.role = role
        self.rank = _rank()
        self.image = secrets.token_hex(4)
        self.lost: list[Mapping[str, Any]] = []
        self.path = folder / f"{socket.gethostname()}-{os.getpid()}-{int(time.time())}-{self.image}.jsonl"
        self._file: int | None = None
        self._said_goodbye = False
        self._pid = os.getpid()
        self.write(self._hello())

    def _hello(self) -> dict[str, Any]:
        return {
            "record": "hello",
            "schema": SCHEMA,
            "image": self.image,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "role": self.role,
            "rank": self.rank,
            "monotonic": time.monotonic(),
            "time": time.time(),
            "python": sys.version.split()[0],
            "argv": [str(part) for part in sys.argv[:20]],
        }

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record. Never raises."""
        if os.getpid() != self._pid:
            return  # a forked child must not write into its parent's image
        try:
            line = json.dumps(record, separators=(",", ":"), default=str) + "\n"
            data = line.encode("utf-8", "backslashreplace")
            if os.write(self._open(), data) != len(data):
                raise OSError("short write")
        except (OSError, ValueError, TypeError):
            self.lost.append(record)

    def _open(self) -> int:
        if self._file is None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(self.path, flags, 0o600)
        return self._file

    def say_goodbye(self) -> None:
        """Write the record that tells an orderly end from a death; once."""
        if not self._said_goodbye:
            self._said_goodbye = True
            self.write({"record": "bye", "monotonic": time.monotonic(), "lost": len(self.lost)})

    def close(self) -> None:
        """Say goodbye and close the file."""
        self.say_goodbye()
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _rank() -> int | None:
    """Return which process of a distributed run this is, as launchers (torchrun and its like) tell it."""
    said = (os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK"))
    return next((int(text) for text in said if text.isdecimal()), None)


def make_folder(path: Path) -> Path:
    """Create a journal folder that only its user can read."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


@dataclass
class JournalText:
    """What was read back from one journal file: records in order, and lines that did not fit."""

    path: Path
    records: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)

    @property
    def hello(self) -> dict[str, Any]:
        """The first record, empty if the file has none."""
        return self.records[0] if self.records and self.records[0]["record"] == "hello" else {}

    @property
    def ended(self) -> bool:
        """Whether the process said goodbye."""
        return any(record["record"] == "bye" for record in self.records)


def read_journal(path: Path) -> JournalText:
    """Read one file; a line that is torn or is no record is reported, never trusted."""
    text = JournalText(path)
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or record.get("record") not in RECORDS:
                raise ValueError("not a record")
        except ValueError:
            text.rejected.append(f"{path.name}:{number}: {line[:80].decode('utf-8', 'replace')}")
        else:
            text.records.append(record)
    return text


def read_folder(folder: Path) -> Iterator[JournalText]:
    """Read every journal of a run, in the order of their names."""
    for path in sorted(folder.glob("*.jsonl")):
        yield read_journal(path)
