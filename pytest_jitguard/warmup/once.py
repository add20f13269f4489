"""Taking turns: of the processes of one machine one warms up first, the others then load what it compiled.

The folder belongs to one run and holds, per warmup, a lock (the operating system frees it when its holder dies), a mark
that one process succeeded, and per running process a marker into which the timer that ends a hanging process writes
its stacks. A marker with text in it is how the next process knows that it would hang as well.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, final
from urllib.parse import quote, unquote

from pytest_jitguard.core.clock import monotonic

if TYPE_CHECKING:
    from filelock import BaseFileLock

_RUNNING = ".running-"
_POLL = 0.05


class WarmupHung(Exception):
    """An earlier process hung in this warmup and was ended; `stacks` are those of its threads at that moment."""

    def __init__(self, name: str, pid: int, stacks: str) -> None:
        super().__init__(f"process {pid} hung in this warmup and was ended, so it is not tried again")
        self.name = name
        self.pid = pid
        self.stacks = stacks


def turn(folder: Path, name: str) -> Turn:
    """Return the turn of this process at the warmup `name`; the folder is made if needed, fresh for each run."""
    return Turn(folder, name)


def hung(folder: Path) -> list[WarmupHung]:
    """Return every process of the run that was ended because its warmup hung; none if there is no such folder."""
    return _read_markers(folder, "*")


@final
class Turn:
    """Context manager: waits while another process is first, goes alone until one has succeeded, then in parallel.

    `waited` is in seconds. `file` is the descriptor that the limit's stacks go to. The block says `succeeded()` when
    its warmup did what it should; if it does not, the next process goes, alone again.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.waited = 0.0
        self.file = -1
        self._folder = folder
        self._name = quote(name, safe="")  # no separators, no glob characters, one file name per warmup
        self._done = folder / f"{self._name}.done"
        self._marker = folder / f"{self._name}{_RUNNING}{os.getpid()}"
        self._lock: BaseFileLock | None = None
        self._succeeded = False

    def succeeded(self) -> None:
        """Let the others go in parallel once this turn is over."""
        self._succeeded = True

    def __enter__(self) -> Turn:
        """Wait; WarmupHung if an earlier process hung."""
        arrived = monotonic()
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._wait()
            self.waited = monotonic() - arrived
            # After the wait: whoever held the lock may have been ended just now.
            for earlier in _read_markers(self._folder, self._name):
                raise earlier
            self.file = os.open(self._marker, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Say how it went, then let the next one go."""
        try:
            os.close(self.file)
            self._marker.unlink(missing_ok=True)
            if self._succeeded and kind is None:
                self._done.touch()
        except OSError:
            pass  # full disk, folder gone: the others go one by one, and the warmup itself was what it was
        finally:
            self._unlock()

    def _wait(self) -> None:
        if self._done.exists():
            return
        from filelock import FileLock

        self._lock = FileLock(str(self._folder / f"{self._name}.lock"))
        self._lock.acquire(poll_interval=_POLL)
        if self._done.exists():
            self._unlock()  # the one that was first succeeded meanwhile: no need to go one by one

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _read_markers(folder: Path, name: str) -> list[WarmupHung]:
    return [found for path in sorted(folder.glob(f"{name}{_RUNNING}*")) if (found := _read_marker(path))]


def _read_marker(path: Path) -> WarmupHung | None:
    # Empty: it is still running, or it was killed from outside, which says nothing about the warmup.
    try:
        stacks = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return None
    name, _, pid = path.name.rpartition(_RUNNING)
    return WarmupHung(unquote(name), int(pid), stacks) if stacks else None
