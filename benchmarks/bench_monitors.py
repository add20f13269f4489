"""Steady state through every armed system: in-process hits, armed against bare. Zero events, zero frames of ours.

For each system the calls that its contract repeats (`MonitorContract.repeat`) and those of `benchmarks/hits.py`,
100,000 of them or 10 s, whichever comes first. Systems whose library is not installed are left out.
`python -m benchmarks.bench_monitors [SYSTEM...]`.

The toolchain's monitor runs, in C, at each audit event, and cannot be taken out of a process. So what it adds to hits
that raise audit events is not interleaved: the best of some runs without it, then with it.
"""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.hits import Hit, NeedsGPU, hits
from benchmarks.interleaved import Ratio, interleave, ratio
from benchmarks.subjects import Subject, each, one
from pytest_jitguard._contract_bench import counting_frames
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet, _toolchain_audit

CALLS, SECONDS, ROUNDS, PROFILED = 100_000, 10.0, 60, 10_000
BOUND = 1.01
WARM = 0.02
"""Seconds of calls before each round: the interpreter forgets what it learned when an attribute is replaced."""
HEAD = (
    "| system | µs bare | armed / bare | A/A: bare again / bare | hits | events | frames of ours "
    "| audit events a hit: toolchain adds |"
)


@dataclass
class Row:
    """What was found of one kind of hit."""

    label: str
    hit: Hit
    cost: Ratio
    noise: Ratio
    bare_us: float
    calls: int
    events: int
    frames: int

    def text(self, toolchain: float) -> str:
        """Return a line of the table; `toolchain` is what its hooks add, as a share."""
        over = f" OVER {BOUND}" * self.cost.missed(BOUND)
        audited = _audit_events(self.hit)
        net = f"{audited:g}: {toolchain:+.1%}" if audited else "0"
        told = (self.cost.brief + over, self.noise.brief, self.calls, self.events, self.frames, net)
        return f"| {self.label} | {self.bare_us:.2f} | {' | '.join(map(str, told))} |"


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        return one(sys.argv[2:], measure)
    print(f"{HEAD}\n|{'---|' * (HEAD.count('|') - 1)}", flush=True)
    return each("benchmarks.bench_monitors", sys.argv[1:])


def measure(subject: Subject) -> int:
    """Print a row for each kind of hit; return 1 if there was an event, or a frame of ours."""
    rows = []
    for name, make in hits(subject):
        try:
            rows.append(compare(subject, f"{subject.label}{name}", make(subject.contract)))
        except NeedsGPU as reason:
            print(f"| {subject.label}{name} | needs a GPU: {reason} |", flush=True)
    without = [_best(row.hit) for row in rows]
    _toolchain_audit.listen(lambda event, args: None)
    within = [_best(row.hit) for row in rows]
    for row, bare, hooked in zip(rows, without, within, strict=True):
        print(row.text(hooked / bare - 1), flush=True)
    return 1 if any(row.events or row.frames for row in rows) else 0


def compare(subject: Subject, label: str, hit: Hit) -> Row:
    """Run the rounds of one kind of hit."""
    per_round = _per_round(hit)
    events: list[Any] = []

    def armed() -> float:
        monitors = _armed(subject, events)
        try:
            return _seconds(hit, per_round)
        finally:
            monitors.settle()
            monitors.disarm()

    def bare() -> float:
        return _seconds(hit, per_round)

    gc.freeze()  # what was made so far is not looked through in each round
    seconds = interleave({"armed": armed, "bare": bare, "again": bare}, ROUNDS)
    cost, noise = (ratio(name, seconds[name], seconds["bare"]) for name in ("armed", "again"))
    calls = per_round * ROUNDS
    frames = _frames(subject, hit, min(PROFILED, calls))
    return Row(label, hit, cost, noise, min(seconds["bare"]) / per_round * 1e6, calls, len(events), frames)


def _per_round(hit: Hit) -> int:
    a_second = 20 / _seconds(hit, 20)
    return max(1, round(min(CALLS, SECONDS * a_second) / ROUNDS + 0.5))


def _armed(subject: Subject, told: list[Any]) -> MonitorSet:
    """Arm as a guard does; what is told from here on is an event."""
    monitors = MonitorSet([subject.monitor], Recorder("benchmark", told.append))
    before = len(told)
    monitors.arm()
    assert [monitor.state for monitor in monitors] == ["unproven"], [monitor.to_wire() for monitor in monitors]
    del told[before:]
    return monitors


def _seconds(hit: Hit, calls: int) -> float:
    gc.collect()
    until = time.perf_counter() + WARM
    while time.perf_counter() < until:
        hit()
    began = time.thread_time()  # a hit waits for nobody: what other processes take of the machine does not count
    for _ in range(calls):
        hit()
    return time.thread_time() - began


def _frames(subject: Subject, hit: Hit, calls: int) -> int:
    monitors = _armed(subject, [])
    try:
        with counting_frames(subject.contract) as called:
            for _ in range(calls):
                hit()
    finally:
        monitors.disarm()
    return len(called)


def _best(hit: Hit, runs: int = 9) -> float:
    calls = max(1, round(WARM / (_seconds(hit, 20) / 20)))
    return min(_seconds(hit, calls) for _ in range(runs)) / calls


def _audit_events(hit: Hit, calls: int = 100) -> float:
    """Return how many audit events a hit raises. The hook stays for the process, and does nothing any more."""
    counted, is_counting = 0, True

    def count(event: str, args: tuple[Any, ...]) -> None:
        nonlocal counted
        counted += is_counting

    sys.addaudithook(count)
    for _ in range(calls):
        hit()
    is_counting = False
    return counted / calls


if __name__ == "__main__":
    sys.exit(main())
