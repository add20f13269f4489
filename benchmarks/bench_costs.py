"""Costs without a bound: import of the entry module, and the time from an event to its line in the journal."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.processes.journal import Journal

EVENTS = 5_000
IMPORT = "import pytest, time; t = time.perf_counter(); import pytest_jitguard.plugin; print(time.perf_counter() - t)"


def entry_import() -> list[float]:
    """Return seconds that importing the entry module takes once pytest is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    runs = [subprocess.check_output([sys.executable, "-c", IMPORT], env=environment) for _ in range(16)]
    return [float(run) for run in runs[1:]]  # the first one writes the bytecode


def event_to_journal() -> list[float]:
    """Return seconds from the begin of an event to its line on disk (in the kernel's cache; nothing is synced)."""
    journal = Journal(Path(tempfile.mkdtemp()), "benchmark")
    recorder = Recorder(journal.image, journal.write)
    seconds = []
    for _ in range(EVENTS):
        began = time.perf_counter()
        event: CompileEvent = recorder.begin("triton", "kernel", "module", stack=("file.py:1:function",) * 10)
        seconds.append(time.perf_counter() - began)
        recorder.end(event)
    journal.close()
    assert len(journal.path.read_text().splitlines()) == 2 * EVENTS + 2
    return seconds


def main() -> None:
    imports, writes = entry_import(), event_to_journal()
    print(f"import of the entry module after pytest: median {statistics.median(imports) * 1e3:.2f} ms")
    ordered = sorted(writes)
    print(
        f"event to journal: median {statistics.median(writes) * 1e6:.0f} µs, "
        f"99 % below {ordered[int(len(ordered) * 0.99)] * 1e6:.0f} µs"
    )


if __name__ == "__main__":
    main()
