"""The living processes below this one that compile, as /proc shows them; nothing where there is no /proc."""

from __future__ import annotations

import json
import os
import re
import resource
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.monitors._proc import link, names, pids, read
from pytest_jitguard.monitors._toolchain_argv import Build, Command, command_of, is_compiler, process_of
from pytest_jitguard.monitors._toolchain_response import is_elsewhere

_STATE, _PARENT, _START, _STACK = 0, 1, 19, 25
"""Places in /proc/PID/stat after the name, which stands in parentheses and may hold anything."""

_PYTHON = re.compile(r"(python|pypy)[\d.]*t?d?")
_REPORTS = "JITGUARD_PARENT"
"""The variable in the environment of a process that inherited a guard: it hears of its own children."""

_FRESH = 1.0
"""Seconds for which what a look has learned is good: no process can have come and gone under the id of another."""

IsKnown = Callable[[int, list[str], "Command | Build | None"], bool]


class Living(NamedTuple):
    """A compiler that runs below this process: what it compiles, and since when (monotonic seconds).

    `root` is the child of this process that it is, or below which it was started; that one runs since `root_started`.
    """

    pid: int
    command: Command
    started: float
    root: int
    root_started: float


class Sight(NamedTuple):
    """What a look at the processes below this one showed: compilers, and programs that may yet start some.

    `is_new` where there is such a program that was not there, or was another one, at the look before.
    """

    compilers: list[Living]
    strangers: frozenset[int]
    is_new: bool


class _Stat(NamedTuple):
    """Of a living process: its parent, its start in ticks, and where its stack begins (0 if we may not know)."""

    parent: int
    start: int
    stack: int


class Tree:
    """The processes below this one, look by look.

    Remembers what cannot change between two looks that follow each other closely, so that a look at a tree in which
    nothing happens costs a few small reads however many processes the machine has. Not to be used after a fork.
    """

    def __init__(self) -> None:
        self._last = 0
        self._stats: dict[int, _Stat] = {}
        self._strangers: dict[int, list[str]] = {}
        self._reporters: set[tuple[int, int]] = set()
        self._pid = os.getpid()
        self._stack = _stack(self._pid)
        self._looked = monotonic()

    def is_fresh(self) -> bool:
        """Tell whether the last look was a moment ago, and in this process."""
        return self._pid == os.getpid() and monotonic() - self._looked < _FRESH

    def look(self, is_known: IsKnown) -> Sight:
        """Find the topmost compilers below this process, and below what was below it when it was first seen.

        Left out is what is below a process that `is_known` (its id, its command line, what that builds), below a
        compiler, below a Python program that reports itself, and below a fork of this process, which does so too.
        """
        self._looked = monotonic()
        self._refresh()
        children: dict[int, list[int]] = {}
        for pid, stat in self._stats.items():
            children.setdefault(stat.parent, []).append(pid)
        found: dict[int, Living] = {}
        strangers: dict[int, list[str]] = {}
        nearest = [*children.get(self._pid, ()), *self._orphans(children)]
        while nearest:
            pid = nearest.pop()
            words = _words(pid)
            command = _command(pid, words)
            if self._is_gone(pid, words):
                nearest += children.get(pid, ()) if pid in self._strangers else ()
            elif is_known(pid, words, command) or self._is_fork(pid):
                continue
            elif isinstance(command, Command):
                pid, words, command = self._topmost(pid, words, command)
                if not is_known(pid, words, command):
                    root = self._root(pid)
                    found[pid] = Living(pid, command, self._started(pid), root, self._started(root))
            elif not is_compiler(words) and not self._reports_itself(pid, words):
                strangers[pid] = words
                nearest += children.get(pid, ())
        is_new = any(self._strangers.get(pid) != words for pid, words in strangers.items())
        self._strangers = strangers
        return Sight(list(found.values()), frozenset(strangers), is_new)

    def _refresh(self) -> None:
        """Learn which processes there are, if any was started since the last look."""
        last = _last_pid()
        if last and last == self._last:
            return
        self._last = last
        living = set(pids())
        self._stats = {pid: stat for pid, stat in self._stats.items() if pid in living}
        for pid in living - self._stats.keys():
            if stat := _stat(pid):
                self._stats[pid] = stat

    def _orphans(self, children: dict[int, list[int]]) -> Iterable[int]:
        """Yield what was started by a process that we followed, and that ended before it."""
        for pid in self._strangers:
            if pid not in self._stats:
                yield from children.get(pid, ())
            elif self._stats[pid].parent not in self._stats:
                yield pid

    def _is_gone(self, pid: int, words: list[str]) -> bool:
        if words:
            return False
        if _stat(pid) is None:
            self._stats.pop(pid, None)
            return True
        return False  # a program that is just taking its place

    def _is_fork(self, pid: int) -> bool:
        """Tell whether a process runs the very image of this one: no other has its stack at the same place."""
        stat = self._stats.get(pid)
        if stat is None or not stat.stack or stat.stack != self._stack:
            return False
        if _stack(pid) == self._stack:
            return True
        self._stats[pid] = stat._replace(stack=0)  # it has become another program since
        return False

    def _reports_itself(self, pid: int, words: list[str]) -> bool:
        """Tell whether a process is a Python program that has begun to report.

        One that inherited a guard cannot always: `python -S`, an environment without us. Its journal says so, if it is
        to be found: not from a container. A process may have written a title over its name and its environment.
        """
        if not (_is_python(words[0] if words else "") or _is_python(link(f"/proc/{pid}/exe"))):
            return False
        who = (pid, self._stats[pid].start)
        if who in self._reporters:
            return True
        environ = read(f"/proc/{pid}/environ")
        told = next((line for line in environ.split(b"\0") if line.startswith(_REPORTS.encode())), b"")
        if not told and (not environ or b"=" in environ):
            return False
        folder = _journals(told.partition(b"=")[2] or os.environ.get(_REPORTS, "").encode())
        mine = f"-{pid}-{who[1]}-".encode()
        is_elsewhere = link(f"/proc/{pid}/ns/pid") != link(f"/proc/{self._pid}/ns/pid")
        if not folder or is_elsewhere or any(mine in name for name in names(folder)):
            self._reporters.add(who)
            return True
        return False

    def _topmost(self, pid: int, words: list[str], command: Command) -> tuple[int, list[str], Command]:
        """Return the compiler that a process is, or the one that started it and was not one yet when we looked."""
        above = self._stats[pid].parent
        if above in self._stats and above != self._pid:
            others = _words(above)
            found = _command(above, others)
            if isinstance(found, Command):
                return self._topmost(above, others, found)
        return pid, words, command

    def _root(self, pid: int) -> int:
        while (stat := self._stats.get(pid)) and stat.parent != self._pid:
            if stat.parent not in self._stats:
                break
            pid = stat.parent
        return pid

    def _started(self, pid: int) -> float:
        return _monotonic_of(self._stats[pid].start)


def tick() -> float:
    """Return by how many seconds a process may have started later than the kernel says."""
    return 1 / os.sysconf("SC_CLK_TCK")


def has_children() -> bool:
    """Tell whether this process has any child that it has not waited for; reaps none."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    except (AttributeError, OSError):  # not on this system
        return True
    return True


def below(pid: int) -> bool:
    """Tell whether a compiler runs below a process: ninja has something to do."""
    parents = {one: stat.parent for one in pids() if (stat := _stat(one))}
    found = (one for one in parents if pid in _ancestors(one, parents))
    return any(isinstance(command_of(_words(one)), Command) for one in found)


def runs(pid: int) -> bool:
    """Tell whether a process runs; one that only waits for its parent to take notice does not."""
    return _stat(pid) is not None


def runs_below(words: Collection[str]) -> int:
    """Return the process below this one that was started with a command line, 0 if there is none."""
    wanted = list(words)[1:]
    parents = {pid: stat.parent for pid in pids() if (stat := _stat(pid))}
    mine = (pid for pid in parents if os.getpid() in _ancestors(pid, parents))
    return next((pid for pid in mine if _words(pid)[1:] == wanted), 0)


def cpu_of_children() -> float:
    """Return the processor time of all children that were waited for, with theirs, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid := parents.get(pid, 0):
        yield pid


def _last_pid() -> int:
    """Return the id of the process or thread that was started last on this machine, 0 if that cannot be told."""
    last = read("/proc/loadavg").split()[-1:]
    return int(last[0]) if last and last[0].isdigit() else 0


def _stat(pid: int) -> _Stat | None:
    fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    if len(fields) <= _STACK or fields[_STATE] in (b"Z", b"X"):
        return None
    return _Stat(int(fields[_PARENT]), int(fields[_START]), int(fields[_STACK]))


def _stack(pid: int) -> int:
    stat = _stat(pid)
    return stat.stack if stat else 0


def folder_of(pid: int) -> str:
    """Return the folder that a process works in, empty if that cannot be told."""
    try:
        return os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115 - a link of the kernel's
    except OSError:
        return ""


def _words(pid: int) -> list[str]:
    text = read(f"/proc/{pid}/cmdline").rstrip(b"\0")
    return [os.fsdecode(word) for word in text.split(b"\0")] if text else []


def _command(pid: int, words: list[str]) -> Command | Build | None:
    return process_of(words, folder_of(pid) if is_elsewhere(words) else "") if words else None


def _is_python(program: str) -> bool:
    return _PYTHON.fullmatch(program.rpartition("/")[2]) is not None


def _journals(inherited: bytes) -> str:
    """Return the folder that a process was told to report to, empty if that cannot be read."""
    try:
        return str(json.loads(inherited)["folder"])
    except (ValueError, KeyError, TypeError):
        return ""


def _monotonic_of(start: int) -> float:
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    return monotonic() - (since_boot - start / os.sysconf("SC_CLK_TCK"))
