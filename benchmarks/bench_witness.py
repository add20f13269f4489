"""What the CUPTI witness costs per torch op, Triton launch and graph replay; needs an NVIDIA GPU. No bound: it is paid.

CUPTI stays for the process, so each variant has one, all on the same GPU. They start at once, which takes longest; then
they take turns, round after round, one at work while the others wait. Each round prints a line, so a run that is ended
has told what it found. Intervals are of rounds; how far processes differ that do the same is what the controls show.
`python -m benchmarks.bench_witness [--seconds 45] [--rounds 100] [VARIANT...]`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.interleaved import Ratio, ratio, show
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet
from pytest_jitguard.witness import _library, build

CALLS, BATCHES, WARM = 200, 5, 2_000
"""Calls at a time, after which the GPU catches up: a full queue would show the GPU's time, not ours."""
PATIENCE = 10.0
"""Seconds after the end for a round that is still under way; then the processes are killed."""
START = 2 / 3
"""How much of the time the start may take; who is not ready by then is left out."""
CALLBACKS, BOTH = 0, _library.JIT | _library.OVERHEAD
BASE = "never"
TESTED = ("witness", "left", "callbacks", "with overheads")
CONTROLS = ("never again", "never, a third")
VARIANTS = (BASE, *CONTROLS, *TESTED)
"""CUPTI never used, and the same for the noise; the witness as it is, and after it has left; module and load callbacks
only; the witness with all overheads."""

Times = dict[str, float]
"""Microseconds per call, by what is called."""


# -- in a worker -------------------------------------------------------------------------------------------------------


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
    """Return the host's time per call, as a median of batches."""
    found = []
    for _ in range(BATCHES):
        synchronize()
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        found.append((time.perf_counter() - began) / CALLS * 1e6)
    synchronize()
    return statistics.median(found)


def calls() -> tuple[dict[str, Callable[[], Any]], Callable[[], None]]:
    """Return what is measured, and what waits for the GPU."""
    import torch

    from tests.gpu.witness_kernels import scale

    x, y = torch.ones(1024, device="cuda"), torch.empty(1024, device="cuda")
    scale[(8,)](x, y, 1024, BLOCK=128)
    x.add_(1)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(20):
            x.add_(1)
    found: dict[str, Callable[[], Any]] = {
        "torch add_": lambda: x.add_(1),
        "Triton launch": lambda: scale[(8,)](x, y, 1024, BLOCK=128),
        "graph replay (20 kernels)": graph.replay,
    }
    return found, torch.cuda.synchronize


def work(variant: str) -> int:
    """Be one variant: answer each line of the input with a round's times, until it ends."""
    # Through a descriptor of its own: what a library prints is no answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import torch

    torch.ones(1, device="cuda")
    arm(variant)
    measured, synchronize = calls()
    for call in measured.values():
        for _ in range(WARM):
            call()
        synchronize()
    answers.write("ready\n")
    for _ in sys.stdin:
        answers.write(json.dumps({name: microseconds(call, synchronize) for name, call in measured.items()}) + "\n")
    return 0


# -- who asks them -----------------------------------------------------------------------------------------------------


class Worker:
    """The process of one variant."""

    def __init__(self, variant: str) -> None:
        self.variant, self.rounds = variant, list[Times]()
        command = [sys.executable, "-m", "benchmarks.bench_witness", "--work", variant]
        alike = {**os.environ, "PYTHONHASHSEED": "0"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, **pipes, text=True, bufsize=1, env=alike)

    def is_ready(self, until: float) -> bool:
        """Wait until it is, or has died; what it wrote to stderr says why."""
        assert self._process.stdout is not None
        heard, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
        return bool(heard) and self._process.stdout.readline() == "ready\n"

    def run(self) -> bool:
        """Measure one round; return False if the process is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("round\n")
        except BrokenPipeError:
            return False
        if line := self._process.stdout.readline():
            self.rounds.append(json.loads(line))
        return bool(line)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=45.0, help="when to stop, start included (default: 45)")
    parser.add_argument("--rounds", type=int, default=100, help="at most so many rounds (default: 100)")
    parser.add_argument("--work", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"of {', '.join(TESTED)} (default: all)")
    given = parser.parse_args()
    if given.work:
        return work(given.work)
    if unknown := set(given.variants) - set(TESTED):
        parser.error(f"there is no variant {', '.join(sorted(unknown))}")
    chosen = [BASE, *CONTROLS, *(given.variants or TESTED)]
    return compare(chosen, time.monotonic() + given.seconds, given.rounds)


def compare(variants: list[str], until: float, rounds: int) -> int:
    """Run rounds until the time is over, then print the ratios; return 1 if a variant could not be measured."""
    build.library()  # before so many processes ask for it
    began, workers = time.monotonic(), [Worker(variant) for variant in variants]
    deadline = threading.Timer(until + PATIENCE - began, stop, [workers])
    deadline.start()
    try:
        start = began + (until - began) * START
        able = [worker for worker in workers if worker.is_ready(start)]
        lost = ", ".join(worker.variant for worker in workers if worker not in able) or "none"
        print(f"{len(able)} processes ready after {time.monotonic() - began:.0f} s; failed: {lost}", flush=True)
        take_turns(able, until, rounds)
    except KeyboardInterrupt:
        print("ended early", flush=True)
    finally:
        deadline.cancel()
        stop(workers)
    conclude({worker.variant: worker.rounds for worker in workers})
    return 0 if all(worker.rounds for worker in workers) else 1


def stop(workers: list[Worker]) -> None:
    for worker in workers:
        worker.stop()


def take_turns(workers: list[Worker], until: float, rounds: int) -> None:
    """Run rounds in which each worker has one turn, in an order that changes."""
    for number in range(1, rounds + 1):
        if time.monotonic() > until or not workers:
            return
        for worker in random.sample(workers, len(workers)):
            if not worker.run():
                workers.remove(worker)
                print(f"{worker.variant}: the process died", flush=True)
        told = "; ".join(f"{worker.variant} {brief(worker.rounds[-1])}" for worker in workers)
        print(f"round {number}: {told}", flush=True)


def brief(times: Times) -> str:
    return " ".join(f"{value:.1f}" for value in times.values())


def conclude(found: Mapping[str, list[Times]]) -> None:
    """Print the medians and the ratios of every call; of rounds that all variants had."""
    base = found.get(BASE) or []
    for call in base[0] if base else ():
        told = {variant: [times[call] for times in rounds] for variant, rounds in found.items() if rounds}
        medians = ", ".join(f"{variant} {statistics.median(values):.2f}" for variant, values in told.items())
        ratios = [paired(variant, values, told[BASE]) for variant, values in told.items() if variant != BASE]
        show(f"{call}, µs per call: {medians}", [one for one in ratios if one])


def paired(variant: str, values: list[float], base: list[float]) -> Ratio | None:
    """Return the ratio over the rounds that both had."""
    rounds = min(len(values), len(base))
    return ratio(f"{variant} / {BASE}", values[:rounds], base[:rounds]) if rounds else None


if __name__ == "__main__":
    sys.exit(main())
