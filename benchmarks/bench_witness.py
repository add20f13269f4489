"""What the CUPTI witness costs per torch op, Triton launch and graph replay; needs an NVIDIA GPU. No bound: it is paid.

CUPTI stays for the process, so variants cannot be interleaved in one: each round runs every variant in a fresh process.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.interleaved import interleave, ratio, show
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet
from pytest_jitguard.witness import _library, build

CALLS, REPEATS, ROUNDS = 2_000, 9, 5
CALLBACKS, BOTH = 0, _library.JIT | _library.OVERHEAD
VARIANTS = ("never", "never again", "callbacks", "witness", "with overheads", "left")
"""CUPTI never used (twice, for the noise); module and load callbacks only; the witness as it is, and with all
overheads; the witness after it has left."""


def arm(variant: str) -> None:
    if variant.startswith("never"):
        return
    if variant in ("witness", "left"):
        monitors = MonitorSet(["pytest_jitguard.witness.cupti:CuptiWitness"], Recorder("bench", lambda record: None))
        monitors.arm()
        assert [monitor.state for monitor in monitors] == ["armed"], [monitor.to_wire() for monitor in monitors]
        if variant == "left":
            monitors.disarm()
        return
    library = _library.Library(build.library())
    answer = library.start(_library.find_libcupti(), {"callbacks": CALLBACKS, "with overheads": BOTH}[variant])
    assert answer == 0, library.problem


def microseconds(call: Callable[[], Any], synchronize: Callable[[], None]) -> float:
    """Return the host's time per call, as a median of runs."""
    found = []
    for _ in range(REPEATS):
        synchronize()
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        found.append((time.perf_counter() - began) / CALLS * 1e6)
        synchronize()
    return statistics.median(found)


def measure(variant: str) -> dict[str, float]:
    """Measure one variant in this process."""
    import torch

    torch.ones(1, device="cuda")
    arm(variant)
    from tests.gpu.witness_kernels import scale

    x, y = torch.ones(1024, device="cuda"), torch.empty(1024, device="cuda")
    scale[(8,)](x, y, 1024, BLOCK=128)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(20):
            x.add_(1)
    calls: dict[str, Callable[[], Any]] = {
        "torch add_": lambda: x.add_(1),
        "Triton launch": lambda: scale[(8,)](x, y, 1024, BLOCK=128),
        "graph replay (20 kernels)": graph.replay,
    }
    return {name: microseconds(call, torch.cuda.synchronize) for name, call in calls.items()}


def main() -> int:
    found: dict[str, dict[str, list[float]]] = {}

    def run(variant: str) -> float:
        began = time.perf_counter()
        line = [sys.executable, "-m", "benchmarks.bench_witness", variant]
        told = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        for name, value in told.items():
            found.setdefault(name, {}).setdefault(variant, []).append(value)
        return time.perf_counter() - began

    interleave({variant: lambda variant=variant: run(variant) for variant in VARIANTS}, ROUNDS)  # type: ignore[misc]
    for name, by_variant in found.items():
        medians = ", ".join(f"{variant} {statistics.median(values):.2f}" for variant, values in by_variant.items())
        base = by_variant["never"]
        ratios = [ratio(f"{variant} / never", by_variant[variant], base) for variant in VARIANTS[1:]]
        show(f"{name}, µs per call: {medians}", ratios)
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        sys.exit(main())
