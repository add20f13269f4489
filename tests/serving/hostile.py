"""What a suite does to the guard that watches it: children in bad shape, and journals that no process of ours wrote."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PARENT = "JITGUARD_PARENT"
NOBODY = 4_000_000
"""A pid that no process has."""


def guard() -> dict[str, Any]:
    """What children inherit: the run's folder, and the image of the guard."""
    told: dict[str, Any] = json.loads(os.environ[PARENT])
    return told


def folder() -> Path:
    return Path(guard()["folder"])


def python(*lines: str, **variables: str) -> int:
    """Run a program, and return its exit code."""
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, env={**os.environ, **variables}, check=False).returncode


def hello(image: str, **changed: Any) -> dict[str, Any]:
    """The first record of a child of this guard, as good as a true one."""
    return {
        **{"record": "hello", "schema": 1, "image": image, "host": socket.gethostname(), "pid": NOBODY, "ppid": 1},
        **{"start": 5, "role": "child", "rank": None, "world": None, "guard": guard()["guard"], "scope": ""},
        **{"monotonic": time.monotonic(), "time": time.time(), "python": "3.11.0", "argv": ["forged"]},
        **changed,
    }


def begin(event: str, **changed: Any) -> dict[str, Any]:
    """An event that begins now."""
    return {
        **{"record": "begin", "event": event, "system": "fakejit", "kernel": "forged", "module": "m"},
        **{"kind": "compile", "started": time.monotonic(), "launch": None, "stack": [], "parent": None, "thread": "t"},
        **changed,
    }


def put(image: str, *records: object, name: str = "") -> Path:
    """Write a journal into the run's folder, under the name that belongs to its image if no other is given."""
    path = folder() / (name or f"{socket.gethostname()}-{NOBODY}-5-{image}.jsonl")
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
