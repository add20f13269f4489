"""What is new in the journals of a run's folder, by size: no threads, no file system events."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_jitguard.processes.journal import misfit, record_in

Record = dict[str, Any]


@dataclass
class Source:
    """One journal that is being read: how far, and what its first record says of its process (empty until it came)."""

    path: Path
    read: int = 0
    hello: Record | None = None


class FolderTail:
    """Reads the journals of other processes as they grow. A line that is not whole yet waits for the next time.

    `wanted(hello)` tells whether a process is of interest. Its answer may change: what was not wanted stays unread.
    """

    def __init__(self, folder: Path, wanted: Callable[[Record], bool]) -> None:
        self.folder = folder
        self._wanted = wanted
        self._sources: dict[str, Source] = {}

    def poll(self) -> Iterator[tuple[Source, Record]]:
        """Yield every record that is new, journal by journal; what cannot be read now is read later."""
        for source, size in self._grown():
            if source.hello is None:
                source.hello = _first_record(source.path)
            if source.hello and self._wanted(source.hello) and size > source.read:
                yield from self._read(source, size)

    def _grown(self) -> Iterator[tuple[Source, int]]:
        try:
            with os.scandir(self.folder) as entries:
                found = [entry for entry in entries if entry.name.endswith(".jsonl")]
        except OSError:
            return  # the folder is gone: the report tells
        for entry in found:
            source = self._sources.get(entry.name) or self._sources.setdefault(entry.name, Source(Path(entry.path)))
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if is_ours(status) and status.st_size > source.read:
                yield source, status.st_size

    def _read(self, source: Source, size: int) -> Iterator[tuple[Source, Record]]:
        try:
            with source.path.open("rb") as file:
                file.seek(source.read)
                data = file.read(size - source.read)
        except OSError:
            return
        whole = data.rpartition(b"\n")[0]
        if not whole:
            return
        source.read += len(whole) + 1
        for line in whole.split(b"\n"):
            if record := record_in(line):
                yield source, record


def is_ours(status: os.stat_result) -> bool:
    """Tell whether a file may be a journal: a regular one, written by this user."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def _first_record(path: Path) -> Record | None:
    try:
        with path.open("rb") as file:
            record = record_in(file.readline(100_000))
    except OSError:
        return None
    is_hello = record is not None and record["record"] == "hello"
    return record if record and is_hello and not misfit(record, path) else None
