"""The living processes below this one that compile, as /proc shows them; nothing where there is no /proc."""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Collection, Iterator
from typing import NamedTuple

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.monitors._toolchain_argv import Command, command_of

_open = open
"""Not looked up at the time: tests replace `builtins.open`."""

_STATE, _PARENT, _START = 0, 1, 19
"""Places in /proc/PID/stat after the name, which stands in parentheses and may hold anything."""

_PYTHON = re.compile(r"(python|pypy)[\d.]*t?d?")
_REPORTS = b"JITGUARD_PARENT="
"""How the environment of a process begins that inherited a guard: it hears of its own children."""


class Living(NamedTuple):
    """A compiler that runs below this process: what it compiles, and since when (monotonic seconds)."""

    pid: int
    command: Command
    started: float


def has_children() -> bool:
    """Tell whether this process has any child that it has not waited for; reaps none."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    except (AttributeError, OSError):  # not on this system
        return True
    return True


def compilers(known: Collection[int]) -> Iterator[Living]:
    """Yield the topmost compilers below this process.

    Left out is what is below the processes that are `known`, and what a Python program started that reports itself.
    """
    parents = {pid: stat for pid in _pids() if (stat := _stat(pid))}
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in parents.items():
        children.setdefault(parent, []).append(pid)
    nearest = list(children.get(os.getpid(), ()))
    while nearest:
        pid = nearest.pop()
        if pid in known:
            continue
        words = _words(pid)
        found = command_of(words)
        if isinstance(found, Command):
            yield Living(pid, found, _monotonic_of(parents[pid][1]))
        elif not _reports_itself(pid, words):
            nearest += children.get(pid, ())


def below(pid: int) -> bool:
    """Tell whether a compiler runs below a process: ninja has something to do."""
    parents = {one: stat[0] for one in _pids() if (stat := _stat(one))}
    found = (one for one in parents if pid in _ancestors(one, parents))
    return any(isinstance(command_of(_words(one)), Command) for one in found)


def runs(pid: int) -> bool:
    """Tell whether a process runs; one that only waits for its parent to take notice does not."""
    return _stat(pid) is not None


def runs_below(words: Collection[str]) -> int:
    """Return the process below this one that was started with a command line, 0 if there is none."""
    wanted = list(words)[1:]
    parents = {pid: stat[0] for pid in _pids() if (stat := _stat(pid))}
    mine = (pid for pid in parents if os.getpid() in _ancestors(pid, parents))
    return next((pid for pid in mine if _words(pid)[1:] == wanted), 0)


def cpu_of_children() -> float:
    """Return the processor time of all children that were waited for, with theirs, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid := parents.get(pid, 0):
        yield pid


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - pathlib is slow
    except OSError:
        return []


def _stat(pid: int) -> tuple[int, int] | None:
    """Return parent and start of a living process."""
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    if len(fields) <= _START or fields[_STATE] in (b"Z", b"X"):
        return None
    return int(fields[_PARENT]), int(fields[_START])


def _words(pid: int) -> list[str]:
    text = _read(f"/proc/{pid}/cmdline").rstrip(b"\0")
    return [os.fsdecode(word) for word in text.split(b"\0")] if text else []


def _reports_itself(pid: int, words: list[str]) -> bool:
    program = (words[0] if words else "").rpartition("/")[2]
    if not _PYTHON.fullmatch(program):
        return False
    return any(line.startswith(_REPORTS) for line in _read(f"/proc/{pid}/environ").split(b"\0"))


def _monotonic_of(start: int) -> float:
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    return monotonic() - (since_boot - start / os.sysconf("SC_CLK_TCK"))


def _read(path: str) -> bytes:
    try:
        with _open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
