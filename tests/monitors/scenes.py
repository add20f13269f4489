"""Scenes of a monitor: a script of a test in a fresh process, with the monitor armed before the library is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
FAKES = ROOT / "tests" / "fakes"
LIMIT = 60
"""Seconds after which a scene is taken to hang."""

_PRELUDE = """
import json, os, sys, threading, time
from pathlib import Path
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet

folder, records, told = Path.cwd(), [], {}
recorder = Recorder("scene", lambda record: (records.append(record), JOURNAL.write(json.dumps(record) + "\\n")))
JOURNAL = open(os.environ["SCENE_JOURNAL"], "a", buffering=1)
monitors = MonitorSet([os.environ["SCENE_MONITOR"]], recorder)
monitors.arm()
monitor = monitors.monitors[0]

def say(label):
    monitors.settle()
    events, recorder.events = recorder.events, []
    told[label] = [{
        "kind": e.kind, "kernel": e.kernel, "status": e.status, "reason": e.reason, "seconds": e.seconds,
        "hash": e.artifact_hash, "detail": e.detail, "site": e.stack[0] if e.stack else "", "system": e.system,
        "key": [str(c.name) + "=" + c.value for c in e.key or ()], "parent": e.parent, "id": e.id,
    } for e in events]

def together(action, number=3):
    threads = [threading.Thread(target=action) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

def source(name, text="", suffix=".c"):
    file = folder / (name + suffix)
    text = ('extern "C" ' if suffix == ".cpp" else "") + (text or "int f(void) { return 3; }") + "\\n"
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    return file

def raised(action):
    try:
        action()
    except BaseException as error:
        return type(error).__name__
    return ""
"""

_END = """
monitors.prove()
told["state"] = [monitor.state, monitor.detail]
print(json.dumps(told))
"""


class Scene:
    """What one process told: events by label, and the monitor's state at the end."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told

    def __getitem__(self, label: str) -> Any:
        return self.told[label]

    def kinds(self, label: str) -> list[str]:
        """Return `kind kernel` of the events, sorted, with the status where it is not ok."""
        told = (f"{e['kind']} {e['kernel']}{'' if e['status'] == 'ok' else ' ' + e['status']}" for e in self[label])
        return sorted(told)

    def one(self, label: str) -> Any:
        """Return the one event."""
        (event,) = self[label]
        return event


class Stage:
    """Plays scenes of one monitor in one folder, so that the second one finds what the first one built."""

    def __init__(self, monitor: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.journal = folder / "journal"
        ours = {"SCENE_MONITOR": monitor, "SCENE_JOURNAL": str(self.journal), "PYTHONDONTWRITEBYTECODE": "1"}
        fakes = [str(FAKES)] if environment.get("FAKES") else []
        path = os.pathsep.join([str(ROOT), *fakes, *filter(None, [os.environ.get("PYTHONPATH")])])
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("JITGUARD", "PYTEST"))}
        self.environment = {**inherited, **environment, **ours, "PYTHONPATH": path}

    def start(self, body: str, **variables: str) -> subprocess.Popen[str]:
        """Begin a scene."""
        script = _PRELUDE + textwrap.dedent(body) + _END
        environment = {**self.environment, **variables}
        command = [sys.executable, "-c", script]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=environment, text=True, stdout=pipe, stderr=pipe)

    def play(self, body: str, **variables: str) -> Scene:
        """Play a scene to its end."""
        return self.finish(self.start(body, **variables))

    def finish(self, process: subprocess.Popen[str], limit: float = LIMIT) -> Scene:
        """Wait for a scene's end."""
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == 0, out[-2000:] + err[-4000:]
        return Scene(json.loads(out.splitlines()[-1]))

    def start_until(self, record: Callable[[Any], bool], body: str) -> subprocess.Popen[str]:
        """Begin a scene, and return when it has written such a record; one that never does is ended."""
        process = self.start(body)
        deadline = time.monotonic() + LIMIT / 2
        while not any(record(written) for written in self.journalled()):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                out, err = process.communicate()
                raise AssertionError(f"no such record was written:\n{self.journalled()}\n{out[-2000:]}{err[-2000:]}")
            time.sleep(0.02)
        return process

    def journalled(self) -> list[Any]:
        """Return the records that were written so far."""
        return [json.loads(line) for line in self.journal.read_text().splitlines()] if self.journal.exists() else []


def waits(record: Any) -> bool:
    """Tell whether a record is the beginning of a wait for a lock."""
    return bool(record["record"] == "begin" and record["kind"] == "lock_wait")
