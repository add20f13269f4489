"""Programs of tests, each in a process of its own: heavy libraries come in and leave with it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.conftest import ROOT

_HEAD = """
import sys

sys.path[:0] = [{root!r}, {monitors!r}]
from armed import armed

MONITOR = {monitor!r}
"""


def in_process(program: str, monitor: str, folder: Path, **environment: str) -> list[str]:
    """Run a program, with `armed` and the monitor's path as `MONITOR` at hand, and return the lines that it prints."""
    head = _HEAD.format(root=str(ROOT), monitors=str(ROOT / "tests" / "monitors"), monitor=monitor)
    path = folder / "program.py"
    path.write_text(head + textwrap.dedent(program), encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=env, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()
