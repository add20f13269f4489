"""Steady-state launch of a warmed kernel, with and without the guard. Bound: 1.01. Offline, or on a GPU with --gpu."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.interleaved import interleave, ratio, show
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet
from pytest_jitguard.offline import OfflineTarget, parse_target
from pytest_jitguard.processes.journal import Journal

LAUNCHES, ROUNDS, BOUND = 5_000, 60, 1.01


def main() -> int:
    on_gpu = "--gpu" in sys.argv
    import torch
    import triton  # noqa: F401 - imported before the monitors arm, as in a server that runs already

    if not on_gpu:
        target = OfflineTarget(parse_target("h100"))
        target.install_triton()
        target.install_torch()
    from tests.soak.kernels import scale

    x, y = torch.empty(1024, device="cuda"), torch.empty(1024, device="cuda")
    journal = Journal(Path(tempfile.mkdtemp()), "benchmark")

    def launches() -> float:
        began = time.perf_counter()
        for _ in range(LAUNCHES):
            scale[(8,)](x, y, 1024, BLOCK=128)
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def guarded() -> float:
        monitors = MonitorSet(["triton"], Recorder(journal.image, journal.write))
        monitors.arm()
        monitors.prove()
        assert [monitor.state for monitor in monitors] == ["armed"]
        try:
            return launches()
        finally:
            monitors.disarm()

    launches()
    seconds = interleave({"guarded": guarded, "bare": launches, "bare again": launches}, ROUNDS)
    ratios = [
        ratio("guarded / bare", seconds["guarded"], seconds["bare"]),
        ratio("A/A: bare again / bare", seconds["bare again"], seconds["bare"]),
    ]
    where = torch.cuda.get_device_name() if on_gpu else "offline target h100"
    microseconds = min(seconds["bare"]) / LAUNCHES * 1e6
    return 0 if show(f"Launch of a warmed kernel, {where}, {microseconds:.1f} µs bare", ratios, BOUND) else 1


if __name__ == "__main__":
    sys.exit(main())
