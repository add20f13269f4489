"""What our compiler in DeepGEMM's place has written: who compiled what, when, and how it ended."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.monitors._deep_gemm_door import PREFIX


@dataclass(eq=False)
class Compile:
    """One run of nvcc. Times are seconds of the monotonic clock; `code` is None while it runs."""

    id: str
    started: float
    owner: int
    owner_start: int
    thread: int
    text: str
    arguments: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    scope: str = ""
    pid: int = 0
    ended: float | None = None
    code: int | None = None
    refused: bool = False
    event: CompileEvent | None = field(default=None, repr=False)

    @classmethod
    def of(cls, line: dict[str, Any]) -> Compile:
        """Read a begin line; KeyError, TypeError or ValueError if it does not fit."""
        return cls(
            id=str(line["id"]),
            started=float(line["started"]),
            owner=int(line["owner"]),
            owner_start=int(line["owner_start"]),
            thread=int(line["thread"]),
            text=str(line["text"]),
            arguments=tuple(map(str, line["arguments"])),
            argv=tuple(map(str, line["argv"])),
            scope=str(line["scope"]),
            pid=int(line["pid"]),
        )


def text_hash(text: str) -> str:
    """Return what identifies a kernel's source."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


class Spool:
    """The folder in which compilers and monitors of one run meet. Reading goes on where it stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.compiles: dict[str, Compile] = {}
        self.waiting: list[Compile] = []
        self._offset = 0
        self._path, self._watching = f"{folder}/spool.jsonl", f"{folder}/watching"

    def read(self) -> None:
        """Take in what has been written since the last time; a line that is not whole waits."""
        for line in self._lines():
            try:
                told = json.loads(line)
                if told["record"] in ("begin", "known"):
                    compile = Compile.of(told)
                    self.compiles[compile.id] = compile
                    self.waiting += [compile] if told["record"] == "begin" else []
                elif told["id"] in self.compiles:
                    compile = self.compiles[told["id"]]
                    compile.ended, compile.code = float(told["ended"]), int(told["code"])
                    compile.refused = bool(told["refused"])
            except (ValueError, KeyError, TypeError):
                continue  # not ours; the cache folders still tell of the compile

    def texts(self) -> set[str]:
        """Return the hashes of all sources that were ever given to a compiler of this spool."""
        everything = Spool(self.folder)
        everything.read()
        return {text_hash(compile.text) for compile in everything.compiles.values()}

    def _lines(self) -> Iterator[bytes]:
        try:
            if os.stat(self._path).st_size <= self._offset:  # noqa: PTH116 - at each phase's end, of each test
                return
            with open(self._path, "rb") as file:  # noqa: PTH123
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError:
            return
        self._offset += len(whole) + len(newline)
        yield from filter(None, whole.split(b"\n"))

    def take_out(self, wanted: Callable[[Compile], bool]) -> list[Compile]:
        """Return the compiles that are wanted, which then are somebody's; the rest stays."""
        found = [compile for compile in self.waiting if wanted(compile)]
        self.waiting = [compile for compile in self.waiting if compile not in found]
        return found

    def claim(self, what: str) -> bool:
        """Tell whether this process is the one to record something; nobody else is then."""
        try:
            os.close(os.open(self.folder / "claimed" / what, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))
        except FileExistsError:
            return False
        except OSError:  # the folder is gone: its guard has ended, and who still reports does so alone
            return True
        return True

    # -- who watches ---------------------------------------------------------------------------------------------------

    def watch(self, pid: int, start: int) -> None:
        """Let everybody know that a process records its own compiles."""
        try:
            (self.folder / "watching" / f"{pid}-{start}").touch()
        except OSError:
            pass

    def watched_since(self) -> float:
        """Return when the first process began to record, in seconds since the epoch; infinity if none has."""
        try:
            with os.scandir(self._watching) as entries:
                return min((entry.stat().st_mtime for entry in entries), default=float("inf"))
        except OSError:
            return float("inf")

    def watchers(self) -> set[tuple[int, int]]:
        """Return (pid, start) of the processes that record, or did when they lived."""
        try:
            names = os.listdir(self._watching)  # noqa: PTH208
        except OSError:
            return set()
        return {(int(pid), int(start)) for pid, _, start in (name.partition("-") for name in names)}

    # -- refusing ------------------------------------------------------------------------------------------------------

    def refuse(self, on: bool) -> None:
        """Have every compiler of the run refuse, or compile again."""
        flag = self.folder / "refuse"
        flag.touch() if on else flag.unlink(missing_ok=True)


def neighbours(folder: Path) -> list[Spool]:
    """Return the spools of this user's other runs: workers of pytest-xdist and second runs share cache folders."""
    found = []
    for place in folder.parent.glob(f"{PREFIX}*"):
        try:
            if place != folder and place.stat().st_uid == os.geteuid():
                found.append(Spool(place))
        except OSError:
            continue
    return found
