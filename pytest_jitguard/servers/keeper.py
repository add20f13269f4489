"""Keeps one server: starts it, and ends its whole process tree when the starter asks for it or is gone.

Run by its path as `python -I -S keeper.py NAME`, so it imports nothing but the standard library and no start-up file
runs in it. It is the child subreaper of the server's tree: whoever is orphaned in there, double forks and processes in
sessions of their own included, becomes a child of the keeper, which can therefore find everybody and knows when
nobody is left.

Standard input is the leash: one line of JSON says what to start, everything after it (and its end) asks to end.
Standard output has one JSON object a line: `started` (pid) or `failed` (why), `exited` (status of the first process, at
once), `ended` (the last word). Standard error is the server's log.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LEASH, _REPORT, _LOG = 0, 1, 2
_LOOK = 0.5
"""Seconds between two looks at whether the starter still lives, in case somebody else holds its end of the leash."""

_SWEEP = 0.05
FORCE = 10.0
"""Seconds to wait for processes that were killed by force; one that sits in a driver may never go."""


def prctl(option: int, value: int) -> bool:
    """Set an attribute of this process; whether that worked."""
    try:
        import ctypes

        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


def parents() -> dict[int, int]:
    """Return the parent of every process that can be seen and still runs."""
    found = {}
    for name in filter(str.isdecimal, _listing("/proc")):
        with contextlib.suppress(OSError, IndexError, ValueError):
            state, parent = stat(int(name))[:2]
            if state not in "ZX":
                found[int(name)] = int(parent)
    return found


def _listing(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - pathlib costs more than everything else here
    except OSError:
        return []


def stat(pid: int) -> list[str]:
    """Return the fields of a process from its state on; its name, which may contain anything, ends at the last `)`."""
    with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
        return file.read().rpartition(b")")[2].decode("ascii").split()


def descendants(root: int) -> list[int]:
    """Return everybody below a process, parents first."""
    below: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        below.setdefault(parent, []).append(pid)
    found, queue = [], [root]
    while queue:
        children = below.get(queue.pop(), [])
        found += children
        queue += children
    return found


def start(argv: list[str], cwd: str | None) -> int:
    """Start the server as the first process of a session of its own; OSError if it cannot be executed."""
    reading, writing = os.pipe()
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(argv, cwd, writing, keeper)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123
        trouble = pipe.read()
    if trouble:
        os.waitpid(pid, 0)
        number, _, place = trouble.decode("utf-8", "surrogateescape").partition(" ")
        raise OSError(int(number), os.strerror(int(number)), place)
    return pid


def _become(argv: list[str], cwd: str | None, writing: int, keeper: int) -> None:
    """Turn the forked child into the server; never returns."""
    try:
        os.setsid()
        # If the keeper is killed by force, nobody else would end the server.
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)
        _reset_signals()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(_LOG, 1)
        if cwd is not None:
            os.chdir(cwd)
        os.execvp(argv[0], argv)
    except OSError as error:
        place = os.fsdecode(error.filename) if error.filename else argv[0]
        os.write(writing, f"{error.errno or 0} {place}".encode("utf-8", "surrogateescape"))
    finally:
        os._exit(127)


def _reset_signals() -> None:
    """Undo what this Python and its starter changed and an exec would keep."""
    by_shells = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)  # ignored in what a script starts in the background
    for number in (*by_shells, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Keeper:
    """The server's first process, and everybody below it."""

    def __init__(self, starter: int, grace: float) -> None:
        self.starter = starter
        self.grace = grace
        self.pid = 0
        self.status: int | None = None
        self.asked = False
        self.asked_before = False
        self.forced = False
        self.left_over: set[int] = set()
        self._alone = False
        self._bell, ringing = os.pipe()
        for end in (self._bell, ringing):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(ringing, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._heard)

    def _heard(self, number: int, frame: object) -> None:
        if number != signal.SIGCHLD:
            self.asked = True

    def run(self, argv: list[str], cwd: str | None) -> None:
        """Start the server, keep it until it ends or has to end, and end whoever is left."""
        try:
            self.pid = start(argv, cwd)
        except OSError as error:
            say("failed", why=f"{error.strerror}: {error.filename}")
            return
        say("started", pid=self.pid)
        while self.status is None and not self.asked:
            self._wait(_LOOK)
        self._end()
        say("ended", **self._told(), forced=self.forced, left_over=len(self.left_over), survivors=self._survivors())

    def _wait(self, seconds: float) -> None:
        """Wait for a signal, the leash or the time, and take notice of what happened meanwhile."""
        # Once asked to end, the leash may be at its end and would be readable for ever.
        watched = [self._bell] if self.asked else [self._bell, _LEASH]
        heard, _, _ = select.select(watched, [], [], seconds)
        if self._bell in heard:
            with contextlib.suppress(BlockingIOError):
                os.read(self._bell, 4096)
        if _LEASH in heard or os.getppid() != self.starter:
            self.asked = True
        self._reap()

    def _reap(self) -> None:
        for pid, status in _ended_children():
            if pid == self.pid:
                self.status, self.asked_before = status, self.asked
                say("exited", **self._told())
        self._alone = not _has_children()

    def _told(self) -> dict[str, Any]:
        code = None if self.status is None else os.waitstatus_to_exitcode(self.status)
        died = code is not None and code < 0
        return {
            "code": None if died else code,
            "signal": -code if code is not None and died else None,
            "asked": self.asked_before,
        }

    def _end(self) -> None:
        """Ask everybody to end, in the group first and then wherever they are; then end them by force."""
        if self.status is None:
            _kill_group(self.pid, signal.SIGTERM)
        last, told = time.monotonic() + self.grace, set[int]()
        while not self._alone and time.monotonic() < last:
            if self.status is not None:
                self._ask_those_left(told)
            self._wait(_SWEEP)
        last = time.monotonic() + FORCE
        while not self._alone and time.monotonic() < last:
            self._force()
            self._wait(_SWEEP)

    def _ask_those_left(self, told: set[int]) -> None:
        for pid in descendants(os.getpid()):
            if pid not in told:
                told.add(pid)
                _kill(pid, signal.SIGTERM)

    def _force(self) -> None:
        for pid in descendants(os.getpid()):
            if pid == self.pid:
                self.forced = True
            else:
                self.left_over.add(pid)
            _kill(pid, signal.SIGKILL)

    def _survivors(self) -> int:
        return 0 if self._alone else len(descendants(os.getpid()))


def _ended_children() -> Iterator[tuple[int, int]]:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            yield pid, status


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def _kill_group(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(pid, number)


def say(what: str, **more: Any) -> None:
    """Tell the starter, if there still is one."""
    with contextlib.suppress(OSError):
        os.write(_REPORT, json.dumps({"said": what, **more}).encode() + b"\n")


def _read_order() -> Mapping[str, Any] | None:
    """Read the line that says what to start; None if the starter went before it was through."""
    text = b""
    while b"\n" not in text:
        more = os.read(_LEASH, 65536)
        if not more:
            return None
        text += more
    order: Mapping[str, Any] = json.loads(text.partition(b"\n")[0])
    return order


def main() -> int:
    """Keep one server; returns the keeper's own exit code, which is 0 unless nobody told it what to start."""
    order = _read_order()
    if order is None:
        return 1
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    keeper = Keeper(order["starter"], order["grace"])
    keeper.run(order["argv"], order["cwd"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
