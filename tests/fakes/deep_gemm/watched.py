"""Runs a piece of a test in a process of its own, with DeepGEMM's monitor armed; prints what it saw as JSON."""

from __future__ import annotations

import importlib
import json
import sys
import textwrap
from typing import Any

from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet

NAME = "pytest_jitguard.monitors.deep_gemm:DeepGemmMonitor"


class Watch:
    """A guard, or (not `guard`) a child of one, as far as monitors go."""

    def __init__(self, guard: bool = True) -> None:
        self.records: list[Any] = []
        self.recorder = Recorder("image", self.records.append, host="here")
        self.monitors = MonitorSet([NAME], self.recorder)
        if guard:
            self.monitors.prepare()
        self.monitors.arm()
        self.monitor: Any = next(iter(self.monitors))

    def begin(self) -> Any:
        """Import the library, as the tests' first line."""
        deep_gemm = importlib.import_module("deep_gemm")
        self.monitors.prove()
        return deep_gemm

    def settle(self) -> None:
        """Do what the end of a phase does."""
        self.monitors.settle()
        self.monitors.prove()
        if self.monitor.state == "waiting":  # as MonitorSet does for a monitor that always looks
            self.monitor.flush()
            self.monitor.reconcile()

    @property
    def told(self) -> list[Any]:
        """The events so far, as plain types."""
        return [
            {
                **{name: getattr(event, name) for name in _PLAIN},
                "key": {c.name: c.value for c in event.key.components} if event.key else {},
                "launch": event.launch.to_wire() if event.launch else None,
                "seconds": event.seconds,
            }
            for event in self.recorder.events
        ]


_PLAIN = (
    *("system", "kernel", "module", "kind", "status", "started", "detail", "reason", "cure", "artifact_hash"),
    *("stack", "stages", "witnesses", "thread"),
)


if __name__ == "__main__":
    space: dict[str, Any] = {"Watch": Watch, "out": {}, "textwrap": textwrap}
    exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), space)  # noqa: PTH123, SIM115
    print("\n" + json.dumps(space["out"]))
