"""The starter's end of a keeper: orders a server, hears how it is, and lets it go."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_jitguard.core.clock import monotonic, pause
from pytest_jitguard.processes import proc
from pytest_jitguard.servers import keeper

KEEPER = Path(keeper.__file__)
"""The file that a keeper runs; its path in an argv tells a keeper from other Python processes."""

TREE_VARIABLE = "JITGUARD_SERVER_TREE"
"""Set in a server's environment; finds its processes even if they left the session and the keeper is gone."""

_START_LIMIT = 60.0
_MARGIN = 15.0


class ServerError(RuntimeError):
    """A server under test did not start, did not get ready, or cannot be ended. The first line is the whole story."""


@dataclass(frozen=True)
class HowItEnded:
    """How a server ended.

    `code` or `signal` is that of its first process; both are None if its keeper was killed, so that nobody knows.
    `asked` tells whether we had asked for it by then. `forced` says that the first process had to be killed after the
    grace, `left_over` how many others of its tree had to be. `survivors` is the number of processes that not even that
    ended.
    """

    code: int | None = None
    signal: int | None = None
    asked: bool = False
    forced: bool = False
    left_over: int = 0
    survivors: int = 0

    @property
    def text(self) -> str:
        """Say it in words, without a subject."""
        left = [f"{_processes(self.left_over)} of its tree had to be killed"] if self.left_over else []
        stuck = [f"{_processes(self.survivors)} could not be killed"] if self.survivors else []
        return ", ".join([self._manner(), *left, *stuck])

    def _manner(self) -> str:
        when = "" if self.asked else " by itself"
        if self.forced:
            return "had to be killed, because it did not end in its grace"
        if self.signal == signal.SIGKILL:
            return "was killed by SIGKILL, which we did not send: probably memory ran out (see the kernel's log)"
        if self.signal is not None:
            name = _signal_name(self.signal)
            return f"stopped ({name})" if self.asked else f"was ended by {name}, which we did not send"
        if self.code is None:
            return "ended in an unknown way, because its keeper was killed"
        return f"exited with code {self.code}{when}"


def is_keeper(argv: Sequence[str]) -> bool:
    """Tell whether a process is what keeps a server under test: it runs no code but ours."""
    return str(KEEPER) in argv


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


class Leash:
    """One server and its keeper, as seen by the process that started them."""

    def __init__(
        self, argv: Sequence[str], name: str, environment: Mapping[str, str], cwd: str | None, log: int, grace: float
    ) -> None:
        self._tree = os.urandom(8).hex()
        self._grace = grace
        self._heard = b""
        self._gone = False
        self.pid = 0
        self.exited: HowItEnded | None = None
        self.ended: HowItEnded | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(KEEPER), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**environment, TREE_VARIABLE: self._tree},
            # Ctrl-C at the terminal must not reach the server before its tests are torn down.
            start_new_session=True,
        )
        self._order({"argv": list(argv), "cwd": cwd, "grace": grace, "starter": os.getpid()})

    @property
    def keeper_pid(self) -> int:
        """The keeper's process."""
        return self._process.pid

    def _order(self, order: Mapping[str, Any]) -> None:
        try:
            self._say(json.dumps(order))
            self._await_start(monotonic() + _START_LIMIT)
        except BaseException:
            self.end()
            raise

    def _await_start(self, last: float) -> None:
        while not self.pid:
            self.listen(max(0.0, last - monotonic()))
            if self._gone or monotonic() >= last:
                raise ServerError("the keeper, which starts the server, gave no sign of life")

    def _say(self, line: str) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError):  # it is gone; what it said last tells why
            os.write(pipe.fileno(), line.encode() + b"\n")

    def listen(self, seconds: float = 0.0) -> None:
        """Wait up to so long for news from the keeper, and take notice of them."""
        pipe = self._process.stdout
        assert pipe is not None
        if self._gone or not select.select([pipe], [], [], seconds)[0]:
            return
        news = os.read(pipe.fileno(), 65536)
        self._gone = not news
        *lines, self._heard = (self._heard + news).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, news: dict[str, Any]) -> None:
        said = news.pop("said")
        if said == "failed":
            raise ServerError(f"cannot be executed: {news['why']}")
        if said == "started":
            self.pid = news["pid"]
        elif said == "exited":
            self.exited = HowItEnded(**news)
        else:
            self.ended = HowItEnded(**news)

    def over(self, seconds: float = 0.0) -> HowItEnded | None:
        """Return how the server's first process ended, None if it still runs after so many seconds."""
        last = monotonic() + seconds
        while self.exited is None and not self._gone:
            left = last - monotonic()
            self.listen(max(0.0, left))
            if left <= 0:
                break
        return self.exited or (HowItEnded() if self._gone else None)

    def end(self) -> HowItEnded:
        """Ask for the end, wait for it, and let nobody survive; harmless if it already came or was interrupted."""
        if self.ended is not None and self._process.returncode is not None:
            return self.ended
        self._say("end")
        last = monotonic() + self._grace + keeper.FORCE + _MARGIN
        while not self._gone and monotonic() < last:
            with contextlib.suppress(ServerError):
                self.listen(max(0.0, last - monotonic()))
        self._process.kill()
        self._process.wait()
        if self.ended is None:
            self.ended = self._end_without_keeper()
        self._close()
        return self.ended

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def _end_without_keeper(self) -> HowItEnded:
        """Kill whoever is left of a tree whose keeper was killed; nobody can be waited for any more."""
        found: set[int] = set()
        last = monotonic() + keeper.FORCE
        while (left := self._tree_by_marks()) and monotonic() < last:
            found |= left
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            pause(0.05)
        return HowItEnded(left_over=len(found - {self.pid}), survivors=len(left))

    def _tree_by_marks(self) -> set[int]:
        return {pid for pid in proc.pids() if proc.runs(pid) and self._is_ours(pid)}

    def _is_ours(self, pid: int) -> bool:
        mark = f"{TREE_VARIABLE}={self._tree}".encode()
        try:
            if self.pid and os.getsid(pid) == self.pid:
                return True
        except OSError:
            return False
        return mark in proc.environment_of(pid).split(b"\0")
