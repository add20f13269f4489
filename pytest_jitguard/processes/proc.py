"""What /proc tells of a process. Where there is no /proc, or no permission, the answers are empty; nothing raises."""

from __future__ import annotations

import os
import time

from pytest_jitguard.core.clock import monotonic

_open = open
"""Not looked up at the time: tests replace `builtins.open`. (pathlib costs a start.)"""

_STATE, _PARENT, _START = 0, 1, 19
"""Places in /proc/PID/stat after the name, which stands in parentheses and may hold anything."""


def start_of(pid: int) -> int:
    """Return when a process began, in clock ticks since boot; 0 if unknown. `execve` does not change it."""
    fields = _stat(pid)
    return int(fields[_START]) if len(fields) > _START else 0


def parent_of(pid: int) -> int:
    """Return the pid of a living process's parent; 0 if it is gone, or only waits for its parent to take notice."""
    fields = _stat(pid)
    return int(fields[_PARENT]) if len(fields) > _PARENT and fields[_STATE] not in ("Z", "X") else 0


def runs(pid: int, start: int = 0) -> bool:
    """Tell whether a process runs; with its `start`, whether it is still the same one and not another of its number."""
    return bool(parent_of(pid)) and (not start or start == start_of(pid))


def argv_of(pid: int) -> list[str]:
    """Return the command line of a process, or the title that it gave itself."""
    text = _read(f"/proc/{pid}/cmdline").rstrip(b"\0 ")
    return [os.fsdecode(part) for part in text.split(b"\0")] if text else []


def environment_of(pid: int) -> bytes:
    """Return the environment that a process was started with, as the kernel keeps it."""
    return _read(f"/proc/{pid}/environ")


def executable_of(pid: int) -> str:
    """Return the path of the program that a process runs; empty if unknown."""
    return _link(f"/proc/{pid}/exe").removesuffix(" (deleted)")


def is_numbered_like_us(pid: int) -> bool:
    """Tell whether a process is in our PID namespace; taken for true where that cannot be read."""
    mine, theirs = (_link(f"/proc/{one}/ns/pid") for one in ("self", pid))
    return not theirs or mine == theirs


def pids() -> list[int]:
    """Return every process that can be seen."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - pathlib costs a start
    except OSError:
        return []


def monotonic_of(start: int) -> float:
    """Turn the start of a process, in clock ticks since boot, into seconds of the monotonic clock."""
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    return monotonic() - (since_boot - start / os.sysconf("SC_CLK_TCK"))


def _stat(pid: int) -> list[str]:
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].decode("ascii", "replace").split()


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - pathlib costs a start
    except OSError:
        return ""


def _read(path: str) -> bytes:
    try:
        with _open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
