"""Steady state through every armed system: in-process hits, armed against bare. Zero events, zero frames of ours.

For each system the calls that its contract repeats (`MonitorContract.repeat`), 100,000 of them or 10 s, whichever comes
first. Systems whose library is not installed are left out. `python -m benchmarks.bench_monitors [SYSTEM...]`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.interleaved import interleave, ratio, show
from pytest_jitguard._contract_bench import counting_frames, monitor_class
from pytest_jitguard._contract_process import Origin
from pytest_jitguard.contract import MonitorContract
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet

ROOT = Path(__file__).resolve().parents[1]
CALLS, SECONDS, ROUNDS, PROFILED = 100_000, 10.0, 60, 10_000
WARM = 100
"""Calls before each round: the interpreter forgets what it learned of a function when an attribute is replaced."""
PATHS = [str(ROOT), *(str(ROOT / "tests" / name) for name in ("monitors", "fakejit", "heavy"))]
MISSING = 77


def main() -> int:
    if len(sys.argv) > 3 and sys.argv[1] == "--one":
        return measure(Path(sys.argv[2]), sys.argv[3], set(sys.argv[4:]))
    failed = 0
    for file, name in subjects():
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-m", "benchmarks.bench_monitors", "--one", str(file), name, *sys.argv[1:]]
        code = subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode
        failed += code not in (0, MISSING)
    return 1 if failed else 0


def subjects() -> Iterator[tuple[Path, str]]:
    """Find the classes that describe monitors to their contract."""
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("class Test") and "Contract)" in line:
                yield file, line.split("(")[0].removeprefix("class ").strip()


def measure(file: Path, name: str, wanted: set[str]) -> int:
    """Measure one system in this process; every process has one, for what a library patches stays."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            subject = Origin(f"subject_{file.stem}", str(file), name, folder).load()
            system = monitor_class(subject).name
        except BaseException as error:  # noqa: BLE001 - a test module skips where its library is missing
            print(f"\n{file.stem}::{name}: left out ({type(error).__name__}: {str(error).splitlines()[0][:100]})")
            return MISSING
        if (wanted and system not in wanted) or "repeat" in subject.not_there:
            return MISSING
        os.environ.update(subject.environment(Path(folder)))
        try:
            subject.bring()
        except ImportError as error:
            print(f"\n{system}: left out ({error})")
            return MISSING
        return compare(subject, system)


def compare(subject: MonitorContract, system: str) -> int:
    """Print the ratio; return 1 if there was an event, or a frame of ours."""
    subject.compile_new()
    subject.repeat()
    per_round = max(1, min(CALLS, int(SECONDS / _seconds(subject, 20) * 20)) // ROUNDS)
    told: list[Any] = []
    path = subject.monitor if isinstance(subject.monitor, str) else _path_of(subject.monitor)
    monitors: list[MonitorSet] = []

    def armed() -> float:
        monitors[:] = [MonitorSet([path], Recorder("benchmark", told.append))]
        monitors[0].arm()
        assert [monitor.state for monitor in monitors[0]] == ["unproven"]
        told.clear()
        try:
            return _seconds(subject, per_round)
        finally:
            events.extend(told)
            monitors[0].disarm()

    events: list[Any] = []
    bare = lambda: _seconds(subject, per_round)  # noqa: E731
    seconds = interleave({"armed": armed, "bare": bare, "again": bare}, ROUNDS)
    frames = _frames(subject, path, min(PROFILED, per_round * ROUNDS))
    microseconds = min(seconds["bare"]) / per_round * 1e6
    ratios = [
        ratio("armed / bare", seconds["armed"], seconds["bare"]),
        ratio("A/A: bare again / bare", seconds["again"], seconds["bare"]),
    ]
    show(f"{system}: {per_round * ROUNDS} hits armed, {microseconds:.1f} µs bare", ratios)
    print(f"  {len(events)} events, {frames} frames of ours")
    return 1 if events or frames else 0


def _seconds(subject: MonitorContract, calls: int) -> float:
    for _ in range(min(WARM, calls)):
        subject.repeat()
    began = time.perf_counter()
    for _ in range(calls):
        subject.repeat()
    return time.perf_counter() - began


def _frames(subject: MonitorContract, path: str, calls: int) -> int:
    monitors = MonitorSet([path], Recorder("frames", lambda record: None))
    monitors.arm()
    try:
        with counting_frames(subject) as called:
            _seconds(subject, calls)
    finally:
        monitors.disarm()
    return len(called)


def _path_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


if __name__ == "__main__":
    sys.exit(main())
