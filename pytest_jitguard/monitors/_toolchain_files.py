"""What a compiler or ninja leaves behind: the time of an output, and what a build log has gained."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pytest_jitguard.core.clock import monotonic

LOG = ".ninja_log"
_LARGEST_LOG = 4_000_000


def wall(*, read: Callable[[], float] = time.time) -> float:
    """Return the time of day in seconds, also where a test replaced `time.time`: the times of files are compared."""
    return read()


def written(path: Path) -> float | None:
    """Return when a file was last written, in seconds of the monotonic clock; None if it is not there."""
    try:
        modified = path.stat().st_mtime_ns / 1e9
    except OSError:
        return None
    return monotonic() - (wall() - modified)


def resolved(folder: str, name: str) -> Path:
    """Return the path of an output as the command names it."""
    return Path(here()) / folder / name


def here() -> str:
    """Return the folder that this process works in; empty if it was deleted, where whatever is relative is nowhere."""
    try:
        return os.getcwd()  # noqa: PTH109 - as a text, and without a frame more
    except OSError:
        return ""


class BuildLog(NamedTuple):
    """The lines of ninja's log in a folder. `known` is false where there is none (or none that can be read)."""

    known: bool
    lines: frozenset[str]


def build_log(folder: Path) -> BuildLog:
    """Read ninja's log."""
    try:
        with (folder / LOG).open(encoding="utf-8", errors="replace") as log:
            return BuildLog(True, frozenset(log.read(_LARGEST_LOG).splitlines()))
    except OSError:
        return BuildLog(False, frozenset())


def built_since(before: BuildLog, after: BuildLog) -> list[str]:
    """Return the outputs that a build log has gained, the last one written at the end."""
    rows = [line.split("\t") for line in after.lines - before.lines if not line.startswith("#")]
    timed = sorted((int(row[1]), row[3]) for row in rows if len(row) >= 4 and row[1].isdecimal())
    return [output for _, output in timed]
