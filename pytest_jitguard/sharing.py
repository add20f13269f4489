"""One server for all workers of a run: who comes first starts it, the others attach, and it ends when all have left."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from filelock import FileLock

from pytest_jitguard.core.clock import monotonic, pause
from pytest_jitguard.processes import proc
from pytest_jitguard.servers.command import ServerCommand
from pytest_jitguard.servers.logs import tail
from pytest_jitguard.servers.server import HowItEnded

_STEP = 0.05


@final
class Meeting:
    """The place of one shared server in the run's folder. Every worker that enters must leave."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder / name
        self._state = self._folder / "server.json"
        self._mine = self._folder / f"{os.getpid()}.guest"

    def enter(self, start: Callable[[], Mapping[str, Any]]) -> dict[str, Any] | None:
        """Come in: the first one starts the server and gets None, the others get what it told of the server.

        What `start` raises goes through, and the next one tries again. A server whose host has died is started anew.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(str(self._folder / "lock")):
            told = self._told()
            self._mine.write_text(str(proc.start_of(os.getpid())))
            if told is not None:
                return told
            try:
                facts = start()
            except BaseException:
                self._mine.unlink(missing_ok=True)
                raise
            host = {"host": os.getpid(), "host_start": proc.start_of(os.getpid())}
            self._state.write_text(json.dumps({**facts, **host}))
            return None

    def _told(self) -> dict[str, Any] | None:
        try:
            told: dict[str, Any] = json.loads(self._state.read_text())
        except FileNotFoundError:
            return None
        return told if proc.runs(told["host"], told["host_start"]) else None

    def leave(self) -> None:
        """Go, so that the host need not wait."""
        self._mine.unlink(missing_ok=True)

    def wait_for_guests(self) -> None:
        """Wait, as the host, until every other process has left or has died; new ones start a server of their own."""
        with FileLock(str(self._folder / "lock")):
            self._state.unlink(missing_ok=True)
        while any(self._is_here(guest) for guest in self._folder.glob("*.guest")):
            pause(_STEP)

    def _is_here(self, guest: Path) -> bool:
        try:
            start = int(guest.read_text() or 0)
        except (FileNotFoundError, ValueError):
            return False
        return guest != self._mine and proc.runs(int(guest.stem), start)


@dataclass
class AttachedServer:
    """A server that another worker of this run started, as its guests see it: `stop` just leaves."""

    command: ServerCommand
    scope: str
    url: str
    port: int
    pid: int
    log: Path
    started: float
    warmed_at: float
    stopped_at: float | None = None

    @classmethod
    def of(cls, command: ServerCommand, told: Mapping[str, Any]) -> AttachedServer:
        """Make it from what the host told."""
        facts = {name: told[name] for name in ("scope", "url", "port", "pid", "started", "warmed_at")}
        return cls(command=command, log=Path(told["log"]), **facts)

    @property
    def name(self) -> str:
        """The server's name."""
        return self.command.name

    def tail(self, lines: int = 30) -> str:
        """Return the last lines of its log."""
        return tail(self.log, lines, 0)

    def stop(self) -> HowItEnded:
        """Leave it to the others."""
        self.stopped_at = monotonic()
        return HowItEnded(asked=True)
