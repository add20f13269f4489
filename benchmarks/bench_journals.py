"""Journals of children: written by eight processes at once, and read by the guard at a phase's end. No bounds.

Writing is compared with `os.write` of the same bytes, reading with `json.loads` over the same lines. The records are
those of launches with ten arguments each, half of them begins and half ends.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.interleaved import Ratio, interleave, ratio, show
from pytest_jitguard.core.events import Launch
from pytest_jitguard.core.keys import Component, SpecializationKey
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.processes.journal import Journal
from pytest_jitguard.processes.relatives import Relatives
from pytest_jitguard.processes.tail import FolderTail

WRITERS, WRITTEN, WRITE_ROUNDS = 8, 2_000, 40
READ, READ_ROUNDS = 100_000, 20
IDLE, POLLS, POLL_ROUNDS = (1, 10, 100), 50, 60
GUARD = "00000000"

Record = Mapping[str, Any]

_ARGUMENTS = ("q", "k", "v", "out", "scale", "stride_q", "stride_k", "stride_v", "length", "heads")
_LAUNCH = Launch(
    values={name: "1024" for name in _ARGUMENTS[4:]},
    tensors={name: "float16[8, 1024, 128]" for name in _ARGUMENTS[:4]},
    options=(("num_warps", "4"), ("num_stages", "2")),
    path="engine.attention.kernels.attend",
)
_KEY = SpecializationKey(
    tuple(
        Component(name, "argument", "*fp16" if at < 4 else "i32", "divisible by 16")
        for at, name in enumerate(_ARGUMENTS)
    )
)
_STACK = tuple(f"/srv/engine/attention/layer_{number}.py:{number}:forward" for number in range(10))


def main() -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        sys.exit("needs fork: a child must not pay for its imports while its siblings write")
    with folder() as here:
        writing(here)
    with folder() as here:
        reading(here)
    idling()


def report(journal: Journal, records: int) -> None:
    """Write records of compile events, as the monitors of a child do; each event makes two."""
    recorder = Recorder(journal.image, journal.write)
    for _ in range(records // 2):
        event = recorder.begin("triton", "attend", "engine.attention.kernels", launch=_LAUNCH, stack=_STACK)
        recorder.end(
            event, key=_KEY, artifact_hash="5d41402abc4b2a76b9719d911017c592" * 2, stages={"ttir": 0.1, "ptx": 0.2}
        )


def lines_of(here: Path) -> list[bytes]:
    """Return every line of every journal in a folder."""
    return [line for path in sorted(here.glob("*.jsonl")) for line in path.read_bytes().splitlines(keepends=True)]


@contextmanager
def folder() -> Iterator[Path]:
    """Give a folder that is gone afterwards."""
    path = Path(tempfile.mkdtemp())
    try:
        yield path
    finally:
        shutil.rmtree(path)


def figure(name: str, seconds: list[float], unit: float) -> Ratio:
    """Return an absolute figure, in units of so many seconds, with its interval."""
    return ratio(name, seconds, [unit] * len(seconds))


# -- writing -----------------------------------------------------------------------------------------------------------


def writing(here: Path) -> None:
    """Compare eight processes that write journals with eight that write the same bytes."""
    journal = Journal(here, "benchmark", guard=GUARD)
    report(journal, WRITTEN)
    journal.close()
    lines = lines_of(here)[1:-1]
    records = [json.loads(line) for line in lines]
    variants = {
        "journal": at_once(here, lambda: _journals(here, records)),
        "bare": at_once(here, lambda: _bare(here, lines)),
        "bare again": at_once(here, lambda: _bare(here, lines)),
    }
    interleave(variants, 1)
    seconds = interleave(variants, WRITE_ROUNDS)
    all_of_them = WRITERS * len(lines)
    show(
        f"Writing: {WRITERS} processes, {len(lines)} records each of {sum(map(len, lines)) // len(lines)} bytes",
        [
            ratio("journal / bare os.write of its bytes", seconds["journal"], seconds["bare"]),
            ratio("A/A: bare again / bare", seconds["bare again"], seconds["bare"]),
            per_second("journal: thousand records a second", seconds["journal"], all_of_them),
            per_second("bare: thousand records a second", seconds["bare"], all_of_them),
        ],
    )


def per_second(name: str, seconds: list[float], records: int) -> Ratio:
    """Return how many thousand records were written a second, by all processes together."""
    return ratio(name, [records / 1000] * len(seconds), seconds)


def _journals(here: Path, records: list[Record]) -> Callable[[], None]:
    journal = Journal(here, "benchmark", guard=GUARD)

    def write() -> None:
        for record in records:
            journal.write(record)

    return write


def _bare(here: Path, lines: list[bytes]) -> Callable[[], None]:
    file = os.open(here / f"{os.getpid()}.bare", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write() -> None:
        for line in lines:
            os.write(file, line)

    return write


def at_once(here: Path, prepare: Callable[[], Callable[[], None]]) -> Callable[[], float]:
    """Return a variant: the time from the first write to the last one, of processes that write at the same time."""
    context = multiprocessing.get_context("fork")

    def run() -> float:
        barrier, times = context.Barrier(WRITERS), context.SimpleQueue()
        writers = [context.Process(target=_write, args=(barrier, times, prepare)) for _ in range(WRITERS)]
        for writer in writers:
            writer.start()
        spans = [times.get() for _ in writers]
        for writer in writers:
            writer.join()
        _empty(here)
        return float(max(ended for _, ended in spans) - min(began for began, _ in spans))

    return run


def _write(barrier: Any, times: Any, prepare: Callable[[], Callable[[], None]]) -> None:
    write = prepare()
    gc.freeze()
    barrier.wait()
    began = time.monotonic()
    write()
    times.put((began, time.monotonic()))


def _empty(here: Path) -> None:
    for path in here.iterdir():
        path.unlink()


# -- reading -----------------------------------------------------------------------------------------------------------


def reading(here: Path) -> None:
    """Compare what a guard does at a phase's end with `json.loads` over the same lines."""
    fill(here, WRITERS, READ // WRITERS)
    lines = lines_of(here)

    def loads() -> None:
        for line in lines:
            json.loads(line)

    def heard() -> None:
        events = Relatives(here, GUARD).poll()
        assert len(events) == READ // 2

    def tailed() -> None:
        for _ in FolderTail(here, lambda hello: True).poll():
            pass

    variants = {"relatives": heard, "tail": tailed, "loads": loads, "loads again": loads}
    seconds = interleave({name: timed(action) for name, action in variants.items()}, READ_ROUNDS)
    show(
        f"Reading: {READ} records from {WRITERS} journals, {sum(map(len, lines)) / 1e6:.0f} MB",
        [
            ratio("relatives / json.loads", seconds["relatives"], seconds["loads"]),
            ratio("tail alone / json.loads", seconds["tail"], seconds["loads"]),
            ratio("A/A: json.loads again / json.loads", seconds["loads again"], seconds["loads"]),
            figure("relatives: seconds", seconds["relatives"], 1),
            figure("json.loads: seconds", seconds["loads"], 1),
        ],
    )


def fill(here: Path, journals: int, records: int) -> None:
    """Write journals of so many records of events each."""
    for _ in range(journals):
        journal = Journal(here, "benchmark", guard=GUARD)
        report(journal, records)
        journal.close()


def timed(action: Callable[[], None]) -> Callable[[], float]:
    """Return a variant: the seconds that an action takes, without the garbage of the one before."""

    def run() -> float:
        gc.collect()
        began = time.perf_counter()
        action()
        return time.perf_counter() - began

    return run


def idling() -> None:
    """Time a poll that finds nothing new: over more and more journals, and after many events."""
    with folder() as top:
        variants = {_idle_name(journals): idle(top / str(journals), journals, 0) for journals in IDLE}
        variants |= {"1, once more": idle(top / "again", 1, 0)}
        long_name = f"{WRITERS}, after {READ} records"
        variants |= {long_name: idle(top / "long", WRITERS, READ // WRITERS)}
        seconds = interleave(variants, POLL_ROUNDS)
    first = _idle_name(IDLE[0])
    show(
        "A poll with nothing new, by the number of journals, in microseconds",
        [
            *(figure(name, times, 1e-6) for name, times in seconds.items()),
            ratio("A/A: 1, once more / 1", seconds["1, once more"], seconds[first]),
        ],
    )


def _idle_name(journals: int) -> str:
    return f"{journals}, without events"


def idle(here: Path, journals: int, records: int) -> Callable[[], float]:
    """Return a variant: the seconds of one poll by a guard that has read everything."""
    here.mkdir()
    fill(here, journals, records)
    relatives = Relatives(here, GUARD)
    relatives.poll()

    def run() -> float:
        began = time.perf_counter()
        for _ in range(POLLS):
            assert relatives.poll() == []
        return (time.perf_counter() - began) / POLLS

    return run


if __name__ == "__main__":
    main()
