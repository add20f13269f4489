"""The append-only record that each process writes, so that evidence survives any kind of death."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.processes import proc, roles

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

_COMPLETE, _INCOMPLETE = 0o600, 0o700
"""Modes of a journal's file. The second one tells that its process holds records that it could not write."""

_ARGV_PARTS, _ARGV_LETTERS = 20, 200


class Journal:
    """One JSONL file of one process image; every record is one write.

    What cannot be written (full disk, deleted folder) stays in memory and is counted, because a record that is lost
    in silence would be a false green; it is written first as soon as writing works again. A file that was deleted is
    made anew with all it held.

    `was_deleted` then: those of others cannot come back if their processes are gone.

    `guard` is the image of the pytest process whose phases count, empty for that process itself. `scope` is the id of
    the server in whose tree this process is, empty in pytest's own.
    """

    def __init__(self, folder: Path, role: str, *, guard: str = "", scope: str = "") -> None:
        self.folder = folder
        self.role = role
        self.rank, self.world = roles.rank_in(os.environ)
        self.image = os.urandom(4).hex()
        self.guard = guard or self.image
        self.scope = scope
        self.host = os.uname().nodename
        self.start = proc.start_of(os.getpid())
        self.lost: list[Mapping[str, Any]] = []
        self.path = folder / f"{self.host}-{os.getpid()}-{self.start}-{self.image}.jsonl"
        self._file: int | None = None
        self._inode: tuple[int, int] | None = None
        self._said_goodbye = False
        self._is_marked = False
        self.was_deleted = False
        self._pid, self._parent = os.getpid(), os.getppid()
        self._lock = threading.RLock()
        self.write(self._hello())

    def _hello(self) -> dict[str, Any]:
        return {
            "record": "hello",
            "schema": SCHEMA,
            "image": self.image,
            "host": self.host,
            "pid": os.getpid(),
            "ppid": os.getppid(),
            "start": self.start,
            "role": self.role,
            "rank": self.rank,
            "world": self.world,
            "guard": self.guard,
            "scope": self.scope,
            "monotonic": monotonic(),
            "time": time.time(),
            "python": sys.version.split()[0],
            "argv": shown_argv(sys.orig_argv),
        }

    @property
    def is_mine(self) -> bool:
        """Whether the calling process is the one whose journal this is, and not a fork of it."""
        return os.getpid() == self._pid

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record. Never raises."""
        if not self.is_mine:
            return  # a forked child must not write into its parent's image
        with self._lock:
            self._write_lost()
            if not self._wrote(record):
                self.lost.append(record)
            self._mark_loss()

    def _mark_loss(self) -> None:
        """Say by the file's mode that records are missing: that takes no space on a full disk, and outlives us."""
        if self._is_marked != bool(self.lost) and self._file is not None and self._holds_file():
            try:
                os.fchmod(self._file, _INCOMPLETE if self.lost else _COMPLETE)
                self._is_marked = bool(self.lost)
            except OSError:
                pass

    def identify(self, identity: roles.Identity) -> None:
        """Note what this process turned out to be, if that is news."""
        if identity != (self.role, self.rank, self.world):
            self.role, self.rank, self.world = identity
            self.write({"record": "identity", **identity._asdict()})

    def _write_lost(self) -> None:
        """Write what could not be written before, oldest first, until one cannot be written again."""
        if not self.lost or not self._is_open():
            return
        lost, self.lost = self.lost, []
        for at, record in enumerate(lost):
            if not self._wrote(record):
                self.lost.append(record)
                if _line(record) is not None:  # not its own fault: the disk is still full
                    self.lost.extend(lost[at + 1 :])
                    return

    def _wrote(self, record: Mapping[str, Any]) -> bool:
        line = _line(record)
        if line is None or not self._is_open() or not self._append(line):
            return False
        return self._is_linked() or self._is_discarded() or self._reinstate()

    def _is_open(self) -> bool:
        """Have the file open."""
        if self._holds_file():
            return True
        try:
            self._take(_open(self.path))
        except OSError:
            return False
        return True

    def _holds_file(self) -> bool:
        """Tell whether the descriptor is still ours: daemons close whatever is open, and open something else."""
        try:
            return self._file is not None and _inode(os.fstat(self._file)) == self._inode
        except OSError:
            return False

    def _take(self, file: int) -> None:
        self._file, self._inode = file, _inode(os.fstat(file))

    def _let_go(self) -> None:
        if self._file is not None and self._holds_file():
            os.close(self._file)
        self._file = None

    def _append(self, data: bytes) -> bool:
        """Write in one piece, or not at all: a disk that is almost full takes half a line."""
        assert self._file is not None
        try:
            before = os.fstat(self._file).st_size
            if os.write(self._file, data) == len(data):
                return True
            os.ftruncate(self._file, before)
        except OSError:
            pass
        return False

    def _is_linked(self) -> bool:
        assert self._file is not None
        try:
            return os.fstat(self._file).st_nlink > 0
        except OSError:
            return True

    def _is_discarded(self) -> bool:
        """Tell whether the deleted file was taken away at the end of the run: nobody will read it."""
        assert self._file is not None
        return not stat.S_IMODE(os.fstat(self._file).st_mode)

    def _reinstate(self) -> bool:
        """Make a deleted file anew, with all it held; what then cannot be written is in memory."""
        self.was_deleted = True
        held = self._taken_back()
        try:
            if self._may_make_folder():
                make_folder(self.folder)
        except OSError:
            pass
        if self._is_open() and self._append(held):
            return True
        *earlier, _this = [json.loads(line) for line in held.splitlines()]
        self.lost = [*earlier, *self.lost]
        return False

    def _taken_back(self) -> bytes:
        """Read what the deleted file held, and let go of it."""
        assert self._file is not None
        held = os.pread(self._file, os.fstat(self._file).st_size, 0)
        self._let_go()
        return held

    def _may_make_folder(self) -> bool:
        """Tell whether somebody may still want to read: who outlives the run must not litter."""
        return self.guard == self.image or os.getppid() == self._parent

    def forked(self, role: str) -> Journal:
        """Open the journal of a process that was just forked off the one whose journal this is."""
        self._let_go()
        return Journal(self.folder, role, guard=self.guard, scope=self.scope)

    def say_goodbye(self) -> None:
        """Write the record that tells an orderly end from a death; once."""
        if not self._said_goodbye and self.is_mine:
            self._said_goodbye = True
            with self._lock:
                self._write_lost()
                self.write({"record": "bye", "monotonic": monotonic(), "lost": len(self.lost)})

    def take_back_goodbye(self) -> None:
        """Say goodbye again at the real end: the process was about to become another program, and did not."""
        self._said_goodbye = False

    def close(self) -> None:
        """Say goodbye and close the file."""
        self.say_goodbye()
        self._let_go()


def shown_argv(argv: object) -> list[str]:
    """Return a command line as a record keeps it: at most 20 parts of at most 200 characters."""
    parts = list(argv) if isinstance(argv, (list, tuple)) else [argv]
    return [_text(part)[:_ARGV_LETTERS] for part in parts[:_ARGV_PARTS]]


def _text(part: object) -> str:
    return os.fsdecode(part) if isinstance(part, (str, bytes, os.PathLike)) else str(part)


def _line(record: Mapping[str, Any]) -> bytes | None:
    """Return a record as a line, None for one that cannot be told."""
    try:
        return (json.dumps(record, separators=(",", ":"), default=str) + "\n").encode("utf-8", "backslashreplace")
    except Exception:  # noqa: BLE001 - str() of a stranger's object may raise anything
        return None


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600)


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def make_folder(path: Path) -> Path:
    """Create a journal folder that only its user can read."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def discard_folder(path: Path) -> None:
    """Delete a run's folder. Who still writes into it sees by the mode of the file that it is not to come back."""
    for file in path.glob("*.jsonl"):
        with contextlib.suppress(OSError):
            file.chmod(0)
    shutil.rmtree(path, ignore_errors=True)


# -- reading -----------------------------------------------------------------------------------------------------------

_HELLO: Mapping[str, type | tuple[type, ...]] = {
    "image": str,
    "host": str,
    "pid": int,
    "start": int,
    "role": str,
    "guard": str,
    "scope": str,
    "monotonic": (int, float),
    "time": (int, float),
    "argv": list,
}
_NEEDED = ("image", "host", "pid", "monotonic", "time")


def misfit(hello: Mapping[str, Any], path: Path) -> str:
    """Say why nothing in a journal is to be trusted, by its first record and its file's name; empty if all is well."""
    if hello.get("schema") != SCHEMA:
        return f"schema {hello.get('schema')!r}, expected {SCHEMA}"
    wrong = [name for name, form in _HELLO.items() if name in {*hello, *_NEEDED} and not _fits(hello.get(name), form)]
    if wrong:
        return f"its first record does not fit in {', '.join(wrong)}"
    named = "-".join(str(hello[part]) for part in ("host", "pid", "start", "image") if part in hello)
    named = named if "start" in hello else f"-{hello['image']}"
    # Mirrors of other hosts' journals have a prefix.
    return "" if path.stem.endswith(named) else f"its first record is that of {named}"


MISFIT = (KeyError, ValueError, TypeError, AttributeError, OverflowError)
"""What reading a record raises that does not fit: it is counted, never trusted."""


def whole(value: Any) -> int | None:
    """Return a whole number as a record has it, None for whatever else stands in its place."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _fits(value: Any, form: type | tuple[type, ...]) -> bool:
    if isinstance(value, bool) or not isinstance(value, form):
        return False
    return not isinstance(value, (int, float)) or -_FARTHEST < value < _FARTHEST  # nan and infinity are neither


_FARTHEST = 1 << 53
_LARGEST = 1 << 30
_LONGEST_LINE = 1 << 24
_MOST_REJECTED = 1000


@dataclass
class JournalText:
    """What was read back from one journal file: records in order, and lines that did not fit.

    `incomplete` says that its process could not write all of its records, unless it wrote them after all.
    """

    path: Path
    records: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    incomplete: bool = False

    @property
    def hello(self) -> dict[str, Any]:
        """The first record, empty if the file has none."""
        return self.records[0] if self.records and self.records[0]["record"] == "hello" else {}

    @property
    def ended(self) -> bool:
        """Whether the process said goodbye."""
        return any(record["record"] == "bye" for record in self.records)


def read_journal(path: Path) -> JournalText:
    """Read one file; a line that is torn or is no record is reported, never trusted.

    Nor is a whole file that this user did not write, or that is none: a link, a pipe, more than 1 GiB. Raises OSError
    if it cannot be opened.
    """
    status = path.lstat()
    text = JournalText(path, incomplete=bool(status.st_mode & _INCOMPLETE & ~_COMPLETE))
    why = _distrusted(status)
    if why:
        text.rejected.append(f"{path.name}: not read: {why}")
        return text
    with open(_open_to_read(path), "rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            _take_line(text, number, line)
            if number == 1 and text.hello and (why := misfit(text.hello, path)):
                text.records.clear()
                text.rejected.append(f"{path.name}: not read: {why}")
                break
            if len(text.rejected) >= _MOST_REJECTED:
                text.rejected.append(f"{path.name}: not read any further: {_MOST_REJECTED} lines are no records")
                break
    if text.records and not text.hello and not text.rejected:
        text.rejected.append(f"{path.name}: it has lost its first record")
    return text


def _open_to_read(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _distrusted(status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        return "a symbolic link"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if status.st_uid != os.geteuid():
        return f"it belongs to another user (uid {status.st_uid})"
    return "larger than 1 GiB" if status.st_size > _LARGEST else ""


def _take_line(text: JournalText, number: int, line: bytes) -> None:
    record = record_in(line)
    if record is None:
        text.rejected.append(f"{text.path.name}:{number}: {line.rstrip()[:80].decode('utf-8', 'replace')}")
    else:
        text.records.append(record)


def record_in(line: bytes) -> dict[str, Any] | None:
    """Return a line's record, None if it is none, whatever else it is: lines are not trusted."""
    try:
        record = json.loads(line)
        return record if isinstance(record, dict) and record.get("record") in RECORDS else None
    except (ValueError, RecursionError):
        return None


def read_folder(folder: Path) -> Iterator[JournalText]:
    """Read every journal of a run, in the order of their names."""
    for path in sorted(folder.glob("*.jsonl")):
        yield read_journal(path)
