"""Real small servers for tests, and a look at who of their tree is alive."""

from __future__ import annotations

import sys
import time
import uuid
from pathlib import Path
from typing import Any

from pytest_jitguard.servers.server import Observer, Server, ServerCommand

SCRIPT = Path(__file__).parent / "small_server.py"
LIMIT = 60.0
"""Seconds that a machine may take for anything here; nothing is timed more tightly."""


def alive(marker: str) -> list[int]:
    """Return every process that has the marker in its command line and is no zombie."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and marker.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_for(condition: Any, limit: float = LIMIT) -> bool:
    last = time.monotonic() + limit
    while not condition() and time.monotonic() < last:
        time.sleep(0.02)
    return bool(condition())


class Small:
    """Makes small servers whose processes can all be found by one marker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marker = f"marker-{uuid.uuid4().hex}"
        self.log = folder / "small.log"

    def argv(self, *flags: str) -> tuple[str, ...]:
        return (sys.executable, str(SCRIPT), "--port", "{port}", "--marker", self.marker, *flags)

    def command(self, *flags: str, **more: Any) -> ServerCommand:
        return ServerCommand(self.argv(*flags), **{"name": "small", "timeout": LIMIT, "grace": 5.0, **more})

    def server(self, *flags: str, observer: Observer | None = None, warm: Any = None, **more: Any) -> Server:
        return Server(self.command(*flags, **more), "server:small#1", self.log, observer, warm)

    def alive(self) -> list[int]:
        return alive(self.marker)

    def gone(self) -> bool:
        return wait_for(lambda: not self.alive())
