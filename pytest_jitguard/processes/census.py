"""Which processes are started here, whether or not they will report; and which are alive that nobody noted."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pytest_jitguard.core.census import EXEC, TOOL
from pytest_jitguard.core.clock import monotonic, pause
from pytest_jitguard.patching import PatchSet, when_imported
from pytest_jitguard.processes import proc
from pytest_jitguard.processes.inherit import VARIABLE
from pytest_jitguard.processes.journal import shown_argv

Note = Callable[[Mapping[str, Any]], None]


# -- what is started here ----------------------------------------------------------------------------------------------


def watch(note: Note) -> Callable[[], None]:
    """Note a `child` record for each process that this one starts; return what undoes it. `note` must not raise.

    Seen are `subprocess`, `multiprocessing`, `os.fork`, `os.forkpty` and `os.posix_spawn`, each child once although
    they use one another. Neither results nor exceptions change.
    """
    watched = _Watch(note)
    watched.replace_in_os()
    for name, hook in (("subprocess", watched.subprocess_imported), ("multiprocessing.process", watched.mp_imported)):
        when_imported(name, hook)
    return watched.undo


class _Watch:
    """The patches of one watch. `_starting` tells on which thread of which process a start is under way."""

    def __init__(self, note: Note) -> None:
        self._note = note
        self._patches: PatchSet | None = PatchSet()
        self._local = threading.local()

    def replace_in_os(self) -> None:
        assert self._patches is not None
        self._patches.wrap(os, "fork", self._forking)
        self._patches.wrap(os, "forkpty", self._forking_pty)
        for name in ("posix_spawn", "posix_spawnp"):
            if hasattr(os, name):
                self._patches.wrap(os, name, self._spawning)

    def subprocess_imported(self, module: ModuleType) -> None:
        if self._patches is not None:
            self._patches.wrap(module.Popen, "__init__", self._popen)

    def mp_imported(self, module: ModuleType) -> None:
        if self._patches is not None:
            self._patches.wrap(module.BaseProcess, "start", self._start)

    def undo(self) -> None:
        patches, self._patches = self._patches, None
        if patches is not None:
            patches.undo()

    def _popen(self, init: Any, popen: Any, *args: Any, **kwargs: Any) -> Any:
        return self._once(lambda: init(popen, *args, **kwargs), lambda _: _of_popen(popen, args, kwargs))

    def _start(self, start: Any, process: Any, *args: Any, **kwargs: Any) -> Any:
        return self._once(lambda: start(process, *args, **kwargs), lambda _: _of_process(process))

    def _spawning(self, spawn: Any, *args: Any, **kwargs: Any) -> Any:
        return self._once(lambda: spawn(*args, **kwargs), lambda pid: _of_spawn(pid, args, kwargs))

    def _forking(self, fork: Any) -> Any:
        return self._once(fork, lambda pid: _of_fork(pid, "fork"))

    def _forking_pty(self, fork: Any) -> Any:
        return self._once(fork, lambda result: _of_fork(result[0], "forkpty"))

    def _once(self, start: Callable[[], Any], told: Callable[[Any], dict[str, Any] | None]) -> Any:
        """Start something, and note it unless that is part of another start which will be noted."""
        # By pid, because a forked child is inside the start of its parent for all its life.
        if getattr(self._local, "starting", 0) == os.getpid():
            return start()
        before = monotonic()
        self._local.starting = os.getpid()
        try:
            result = start()
        finally:
            self._local.starting = 0
        self._tell(told, result, before)
        return result

    def _tell(self, told: Callable[[Any], dict[str, Any] | None], result: Any, started: float) -> None:
        try:
            child = told(result)
            if child is not None:
                self._note({"record": "child", **child, "started": started})
        except Exception as error:  # noqa: BLE001 - whatever a stranger's process object is, starting it went well
            self._note({"record": "trouble", "message": f"a child process could not be noted: {error!r}"})


def _of_popen(popen: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    given = args[0] if args else kwargs.get("args")
    shell = bool(args[8] if len(args) > 8 else kwargs.get("shell"))
    executable = args[2] if len(args) > 2 else kwargs.get("executable")
    told = shown_argv(["/bin/sh", "-c", *shown_argv(given)] if shell else given)
    program = shown_argv(executable)[0] if executable else ""
    return {"pid": popen.pid, "how": "subprocess", "argv": told, "python": is_python(told, program)}


def of_exec(path: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Return the record of what this process is about to become; never raises."""
    try:
        argv = shown_argv(list(args[0]))
        python = is_python(argv, shown_argv(path)[0])
    except Exception:  # noqa: BLE001 - arguments that exec will refuse
        argv, python = [], None
    return {"record": "child", "pid": os.getpid(), "how": EXEC, "argv": argv, "python": python, "started": monotonic()}


def _of_process(process: Any) -> dict[str, Any]:
    argv = ["multiprocessing", process.name]
    return {"pid": process.pid, "how": "multiprocessing", "argv": argv, "python": True}


def _of_spawn(pid: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    path = args[0] if args else kwargs.get("path", "")
    argv = shown_argv(list(args[1] if len(args) > 1 else kwargs.get("argv", ())))
    return {"pid": pid, "how": "posix_spawn", "argv": argv, "python": is_python(argv, shown_argv(path)[0])}


def _of_fork(pid: int, how: str) -> dict[str, Any] | None:
    if pid == 0:
        return None
    return {"pid": pid, "how": how, "argv": shown_argv(sys.orig_argv), "python": True}


# -- is it Python? -----------------------------------------------------------------------------------------------------

_PYTHON = re.compile(r"(python|pypy)[\d.]*t?d?(-\w+)?")
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "fish", "busybox"})
_STARTERS = frozenset({"env", "nice", "nohup", "timeout", "taskset", "numactl", "setsid", "stdbuf", "sudo", "xargs"})
_ASKS_ONLY = frozenset({"-V", "-VV", "--version", "-h", "--help", "-?"})


def is_python(argv: list[str], executable: str = "") -> bool | None:
    """Tell whether a command runs a Python program; None if that cannot be told, as for a shell.

    `executable` is the program where that is not `argv[0]`. A console script is known by its first line.
    """
    program = executable or (argv[0] if argv else "")
    name = program.rpartition("/")[2]
    if _PYTHON.fullmatch(name) or program == sys.executable:
        return not (tuple(argv[1:3]) == TOOL or (len(argv) > 1 and argv[1] in _ASKS_ONLY))
    if not name or name in _SHELLS or name in _STARTERS:
        return None
    return _by_first_line(program)


def _by_first_line(program: str) -> bool | None:
    if "/" not in program:
        import shutil

        program = shutil.which(program) or program
    try:
        with open(program, "rb") as file:  # noqa: PTH123 - pathlib costs a start
            first = file.read(256).partition(b"\n")[0]
    except OSError:
        return None
    if not first.startswith(b"#!"):
        return False
    return True if b"python" in first or b"pypy" in first else None


# -- who is alive ------------------------------------------------------------------------------------------------------


_ON_ITS_WAY = 0.05
"""Seconds within which a fork has become another program, if it is to become one."""


class Living(NamedTuple):
    """A living process of a run. `start` is in clock ticks since boot, `started` in seconds of the monotonic clock."""

    pid: int
    ppid: int
    start: int
    started: float
    argv: list[str]
    python: bool | None

    def record(self) -> dict[str, Any]:
        """Return what a `child` record would say, had somebody seen its start."""
        return {
            "record": "child",
            "pid": self.pid,
            "how": "scan",
            "argv": self.argv,
            "python": self.python,
            "started": self.started,
        }


def scan(folder: Path) -> list[Living]:
    """Return the living processes of a run: those below this one, and those whose environment names its folder.

    For processes that nobody noted: started by `os.system`, by a shell, by a program that is not Python. Never raises;
    what cannot be read (another user's process, a system without /proc) is left out, and so is what has another number
    where it runs (in a container): what it says of itself could not be told to be the same process. Python that has
    just begun is looked at again: it may be a fork on its way to another program, as `popen` in C makes one.
    """
    found = _living_of(folder)
    young = {(one.pid, one.start) for one in found if one.python and monotonic() - one.started < _ON_ITS_WAY}
    if not young:
        return found
    pause(_ON_ITS_WAY)
    now = {(one.pid, one.start): one for one in _living_of(folder)}
    # Only what is young may be gone by now: whatever was there for longer was a process of the run.
    again = [now.get((one.pid, one.start), one) for one in found]
    return [one for one in again if (one.pid, one.start) in now or (one.pid, one.start) not in young]


def _living_of(folder: Path) -> list[Living]:
    parents = {pid: parent for pid in proc.pids() if (parent := proc.parent_of(pid))}
    ours = _below(os.getpid(), parents)
    theirs = {pid for pid in parents.keys() - ours if _names_folder(pid, folder)}
    known = (pid for pid in sorted((ours | theirs) - {os.getpid()}) if proc.is_numbered_like_us(pid))
    return [living for pid in known if (living := _living(pid, parents[pid]))]


def _below(top: int, parents: Mapping[int, int]) -> set[int]:
    found, grew = {top}, True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found, grew = found | more, bool(more)
    return found - {top}


def _names_folder(pid: int, folder: Path) -> bool:
    for variable in proc.environment_of(pid).split(b"\0"):
        name, _, value = variable.partition(b"=")
        if name == VARIABLE.encode():
            return _folder_in(value) == str(folder)
    return False


def _folder_in(value: bytes) -> str:
    try:
        return str(json.loads(value)["folder"])
    except (ValueError, KeyError, TypeError):
        return ""


def _living(pid: int, ppid: int) -> Living | None:
    start = proc.start_of(pid)
    if not start:
        return None
    argv, program = shown_argv(proc.argv_of(pid)), proc.executable_of(pid)
    python = is_python(argv, program) if program else is_python(argv)
    return Living(pid, ppid, start, proc.monotonic_of(start), argv, python)
