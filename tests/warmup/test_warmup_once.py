"""Processes take turns: one first, the others in parallel once it succeeded, else one by one; none hangs again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_jitguard.warmup.once import WarmupHung, hung, turn

# Waits for ever in C, holding the interpreter lock (see test_warmup_limit).
STUCK = "mutex = ctypes.create_string_buffer(64)\nwhile True: ctypes.PyDLL(None).pthread_mutex_lock(mutex)"

# A worker: begin and end of its own warmup, with its result, as one line; how it behaves is up to `body`.
WORKER = """
import ctypes, json, os, sys, time
from pathlib import Path
from pytest_jitguard.core.settings import Settings
from pytest_jitguard.warmup.once import turn
from pytest_jitguard.warmup.plan import Step, WarmupContext
from pytest_jitguard.warmup.runner import run
folder = Path(sys.argv[1])
span = []
def body():
{body}
def step():
    span.append(time.monotonic())
    (folder / f"started-{{os.getpid()}}").touch()
    try: body()
    finally: span.append(time.monotonic())
(folder / f"entered-{{os.getpid()}}").touch()
result = run([Step("m:step", step)], WarmupContext(None, Settings(), lambda text: None),
             timeout={timeout}, grace=0.2, turn=turn(folder / "turns", "m:step/1"))
print(json.dumps({{"span": span, "pid": os.getpid(), **result.to_wire()}}))
"""


class Workers:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, body: str, timeout: float | None = None) -> subprocess.Popen[str]:
        code = WORKER.format(body=textwrap.indent(body, "    "), timeout=timeout)
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(self.folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        return process

    def wait_for(self, what: str, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 10
        while not (self.folder / f"{what}-{process.pid}").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)

    def result(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        out, err = process.communicate(timeout=15)
        assert process.returncode == 0, err
        result: dict[str, Any] = json.loads(out)
        return result


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    started = Workers(tmp_path)
    yield started
    for process in started.processes:
        process.kill()
        process.communicate()


def spans(results: list[dict[str, Any]]) -> list[list[float]]:
    return sorted(result["span"] for result in results)


def test_one_goes_first_and_the_others_then_in_parallel(workers: Workers) -> None:
    all_there = "while len(list(folder.glob('entered-*'))) < 3: time.sleep(0.01)\n"
    processes = [workers.start(all_there + "time.sleep(0.4)") for _ in range(3)]
    results = [workers.result(process) for process in processes]
    first, second, third = spans(results)
    assert first[1] <= second[0]
    assert third[0] < second[1]
    assert [result["status"] for result in results] == ["ok"] * 3
    waits = sorted(result["waited"] for result in results)
    assert waits[0] < waits[1]
    assert waits[1] > 0.3
    assert all(result["seconds"] > 0.35 for result in results)


def test_after_a_failure_the_next_goes_alone(workers: Workers) -> None:
    processes = [workers.start("time.sleep(0.2); raise ValueError('bad')") for _ in range(3)]
    results = [workers.result(process) for process in processes]
    first, second, third = spans(results)
    assert first[1] <= second[0]
    assert second[1] <= third[0]
    assert [result["status"] for result in results] == ["failed"] * 3


def test_waiting_does_not_count_for_the_limit(workers: Workers) -> None:
    slow = workers.start("while not (folder / 'go').exists(): time.sleep(0.01)")
    workers.wait_for("started", slow)
    limited = workers.start("time.sleep(0.05)", timeout=0.5)
    workers.wait_for("entered", limited)
    time.sleep(0.7)
    (workers.folder / "go").touch()
    assert workers.result(slow)["status"] == "ok"
    result = workers.result(limited)
    assert result["status"] == "ok"
    assert result["waited"] > 0.5
    assert result["seconds"] < 0.5


def test_a_killed_holder_frees_the_lock(workers: Workers) -> None:
    holder = workers.start("time.sleep(30)")
    workers.wait_for("started", holder)
    waiting = workers.start("pass")
    workers.wait_for("entered", waiting)
    time.sleep(0.4)
    assert waiting.poll() is None
    holder.send_signal(signal.SIGKILL)
    result = workers.result(waiting)
    # Killed from outside: that says nothing about the warmup, so the next one does it.
    assert result["status"] == "ok"
    assert result["waited"] > 0.2
    assert hung(workers.folder / "turns") == []


def test_a_process_that_hung_is_not_followed_by_another(workers: Workers) -> None:
    stuck = workers.start(STUCK, timeout=0.2)
    workers.wait_for("started", stuck)
    waiting = workers.start(STUCK, timeout=5)
    assert stuck.wait(10) == 1
    replacement = workers.start("pass", timeout=5)
    for process in (waiting, replacement):
        result = workers.result(process)
        assert result["status"] == "failed"
        assert result["span"] == []
        assert result["cause"] == (
            f"warmup not started: process {stuck.pid} hung in this warmup and was ended, so it is not tried again"
        )
        assert "in body" in result["detail"]
    [found] = hung(workers.folder / "turns")
    assert (found.name, found.pid) == ("m:step/1", stuck.pid)
    assert "in body" in found.stacks


def test_one_that_hung_after_another_succeeded_counts_as_well(workers: Workers) -> None:
    assert workers.result(workers.start("pass"))["status"] == "ok"
    stuck = workers.start(STUCK, timeout=0.1)
    assert stuck.wait(10) == 1
    assert workers.result(workers.start("pass"))["status"] == "failed"


def test_turns_of_different_warmups_do_not_meet(tmp_path: Path) -> None:
    with turn(tmp_path, "a:b") as one, turn(tmp_path, "a:b.c") as two, turn(tmp_path, "a_b") as three:
        assert max(one.waited, two.waited, three.waited) < 1
    (tmp_path / "a%3Ab.running-1").write_text("Timeout")
    with turn(tmp_path, "a:b.c"), turn(tmp_path, "a%3Ab"), turn(tmp_path, "*"):
        pass
    with pytest.raises(WarmupHung):
        turn(tmp_path, "a:b").__enter__()


def test_a_turn_leaves_no_marker_and_an_entered_failure_no_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), turn(tmp_path, "w") as mine:
        mine.succeeded()
        assert os.fstat(mine.file).st_size == 0
        raise KeyError
    assert not [path for path in tmp_path.iterdir() if "running" in path.name or path.suffix == ".done"]
    marker = tmp_path / "w.running-1"
    marker.write_text("Timeout")
    with pytest.raises(WarmupHung):
        turn(tmp_path, "w").__enter__()
    marker.unlink()
    with turn(tmp_path, "w") as mine:
        assert mine.waited < 1


def test_no_folder_no_hung_processes(tmp_path: Path) -> None:
    assert hung(tmp_path / "nowhere") == []
