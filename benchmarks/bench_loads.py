"""What a load from a cache on disk costs in a fresh process, armed against bare: one event, of the kind `cache_load`.

For each system that has such a cache (`MonitorContract.load_from_disk`). The first process compiles and stores; then
each load has a process of its own: a fork of one that has imported the library and compiled nothing, or, where the
library does not survive a fork, one started afresh. Times are of the processor, and arming is not in them.
`python -m benchmarks.bench_loads [SYSTEM...]`.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.interleaved import interleave, ratio
from benchmarks.subjects import Subject, each, one, opened, set_up
from pytest_jitguard._contract_bench import Bench
from pytest_jitguard._contract_process import Origin, forked

SECONDS, ROUNDS = 60.0, (10, 60)
"""How long one system may take, and how many rounds that may be."""
HEAD = "| system | ms compiled | ms loaded, bare | armed / bare | A/A: bare again / bare | rounds | events |"

Told = dict[str, str]
"""What a process tells: `seconds`, and the kinds of its `events`."""


def main() -> int:
    if sys.argv[1:2] == ["--load"]:
        return load_here(Origin(**json.loads(sys.argv[2])), sys.argv[3] == "armed")
    if sys.argv[1:2] == ["--one"]:
        return one(sys.argv[2:], measure)
    print(f"{HEAD}\n|{'---|' * (HEAD.count('|') - 1)}", flush=True)
    return each("benchmarks.bench_loads", sys.argv[1:])


def measure(subject: Subject) -> int:
    """Print a row; return 1 unless each armed load was one event of the kind `cache_load`."""
    if reason := subject.contract.not_there.get("load_from_disk"):
        print(f"| {subject.label} | no load from disk: {reason} |", flush=True)
        return 0
    run, kinds = _runner(subject), set()

    def load(is_armed: bool) -> float:
        told = run(is_armed)
        if is_armed:
            kinds.add(told["events"])
        return float(told["seconds"])

    cold = load(True)
    compiled_as = kinds.pop()
    began = time.monotonic()
    load(False)
    least, most = ROUNDS
    rounds = max(least, min(most, int(SECONDS / 3 / (time.monotonic() - began))))
    seconds = interleave(
        {"armed": lambda: load(True), "bare": lambda: load(False), "again": lambda: load(False)}, rounds
    )
    cost, noise = (ratio(name, seconds[name], seconds["bare"]) for name in ("armed", "again"))
    told = f"{compiled_as}, then {' or '.join(sorted(kinds))}"
    times = (f"{value * 1e3:.2f}" for value in (cold, sorted(seconds["bare"])[rounds // 2]))
    print(f"| {' | '.join([subject.label, *times, cost.brief, noise.brief, str(rounds), told])} |", flush=True)
    return 0 if kinds == {"cache_load"} else 1


def _runner(subject: Subject) -> Callable[[bool], Told]:
    """Return what loads in a fresh process."""
    if subject.contract.isolation == "spawn":
        return lambda is_armed: _spawned(subject.origin, is_armed)
    subject.contract.prepare()
    gc.freeze()  # or its first collection would copy all of the parent's memory
    return lambda is_armed: _checked(forked(lambda: _load(subject, is_armed)))


def _load(subject: Subject, is_armed: bool) -> Told:
    """Load in this process. The bare load comes after an arming, too, for that touches memory that a load needs."""
    bench = Bench(subject.contract).arm()
    bench.news()
    if not is_armed:
        bench.disarm()
    began = _cpu()
    subject.contract.load_from_disk()
    seconds = _cpu() - began
    return {"seconds": str(seconds), "events": " ".join(event.kind for event in bench.news()) or "none"}


def _cpu() -> float:
    """Return seconds of the processor, with those of children that are over: other processes' do not count."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _checked(told: Told) -> Told:
    if "broken" in told:
        raise RuntimeError(told["broken"])
    return told


def _spawned(origin: Origin, is_armed: bool) -> Told:
    given = json.dumps(dataclasses.asdict(origin))
    command = [sys.executable, "-m", "benchmarks.bench_loads", "--load", given, "armed" if is_armed else "bare"]
    done = subprocess.run(command, env=dict(os.environ), check=True, stdout=subprocess.PIPE, text=True)
    told: Told = json.loads(done.stdout.splitlines()[-1])
    return told


def load_here(origin: Origin, is_armed: bool) -> int:
    """Be the process that loads."""
    subject = opened(origin)
    set_up(subject)
    subject.contract.prepare()
    print(json.dumps(_load(subject, is_armed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
