"""What is started is noted once, by whatever means, and nothing about it changes."""

from __future__ import annotations

import asyncio
import inspect
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_jitguard.processes import census, proc
from pytest_jitguard.processes.census import is_python
from pytest_jitguard.processes.inherit import Inherited

QUICK = [sys.executable, "-S", "-c", "pass"]


@pytest.fixture
def noted() -> Iterator[list[Any]]:
    """The records of a watch."""
    records: list[Any] = []
    undo = census.watch(records.append)
    yield records
    undo()


def _nothing() -> None:
    pass


def _by_posix_spawn() -> int:
    pid = os.posix_spawn(sys.executable, QUICK, {})
    os.waitpid(pid, 0)
    return pid


def _by_fork() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def _by_forkpty() -> int:
    pid, file = os.forkpty()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(file)
    return pid


def _by_popen(**options: Any) -> int:
    with subprocess.Popen(QUICK, **options) as process:
        return process.pid


def _by_multiprocessing() -> int:
    process = multiprocessing.get_context("fork").Process(target=_nothing)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert process.pid is not None
    return process.pid


async def _by_asyncio() -> int:
    process = await asyncio.create_subprocess_exec(*QUICK)
    await process.wait()
    return process.pid


class Own(subprocess.Popen[bytes]):
    """Somebody's subclass."""

    def __init__(self, *args: Any, tag: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tag = tag


def _by_subclass() -> int:
    with Own(QUICK, tag="x") as process:
        assert process.tag == "x"
        return process.pid


STARTS: dict[str, tuple[Callable[[], int], str]] = {
    "subprocess": (_by_popen, "subprocess"),
    "subprocess through posix_spawn": (lambda: _by_popen(close_fds=False), "subprocess"),
    "a subclass of Popen": (_by_subclass, "subprocess"),
    "asyncio": (lambda: asyncio.run(_by_asyncio()), "subprocess"),
    "multiprocessing by fork": (_by_multiprocessing, "multiprocessing"),
    "os.fork": (_by_fork, "fork"),
    "os.forkpty": (_by_forkpty, "forkpty"),
    "os.posix_spawn": (_by_posix_spawn, "posix_spawn"),
}


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("how", STARTS)
def test_each_child_is_noted_once(how: str, noted: list[Any]) -> None:
    start, name = STARTS[how]
    before = time.monotonic()
    pid = start()
    (record,) = noted
    assert (record["record"], record["pid"], record["how"], record["python"]) == ("child", pid, name, True)
    assert before <= record["started"] <= time.monotonic()
    assert record["argv"]


def test_a_long_command_is_cut_and_a_path_is_text(noted: list[Any]) -> None:
    subprocess.run([Path("/bin/true"), *["x" * 300] * 30], check=True)
    (record,) = noted
    assert record["argv"] == ["/bin/true", *["x" * 200] * 19]
    assert record["python"] is False


def test_a_shell_may_run_anything(noted: list[Any]) -> None:
    subprocess.run("true", shell=True, check=True)
    (record,) = noted
    assert (record["argv"], record["python"]) == (["/bin/sh", "-c", "true"], None)


def test_a_start_that_fails_raises_as_it_did_and_is_no_child(noted: list[Any]) -> None:
    with pytest.raises(FileNotFoundError, match="no/such"):
        subprocess.run(["/no/such/program"])
    with pytest.raises(TypeError):
        subprocess.Popen()  # type: ignore[call-overload]
    subprocess.run(QUICK, check=True)
    assert len(noted) == 1


def test_nothing_shows_and_nothing_is_left() -> None:
    names = ((os, "fork"), (os, "forkpty"), (os, "posix_spawn"), (os, "posix_spawnp"), (subprocess.Popen, "__init__"))
    before = [vars(owner)[name] for owner, name in names]
    signature = inspect.signature(subprocess.Popen)
    undo = census.watch(lambda record: None)
    assert [vars(owner)[name] for owner, name in names] != before
    assert inspect.signature(subprocess.Popen) == signature
    undo()
    assert [vars(owner)[name] for owner, name in names] == before


def test_what_cannot_be_told_of_a_child_is_trouble_of_ours_only(noted: list[Any]) -> None:
    class Odd(multiprocessing.Process):
        started = False

        @property
        def name(self) -> str:
            if self.started:
                raise RuntimeError("no name")
            return "odd"

        @name.setter
        def name(self, _: str) -> None:
            pass

    process = multiprocessing.get_context("fork").Process(target=_nothing)
    process.__class__ = type("OddFork", (Odd, type(process)), {})
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert [record["record"] for record in noted] == ["child"]
    process = multiprocessing.get_context("fork").Process(target=_nothing)
    process.__class__ = type("OddFork", (Odd, type(process)), {"started": True})
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert [record["record"] for record in noted] == ["child", "trouble"]
    assert "no name" in noted[1]["message"]


@pytest.mark.parametrize(
    ("argv", "executable", "answer"),
    [
        (["python", "x.py"], "", True),
        (["/usr/bin/python3.13t", "x.py"], "", True),
        (["pypy3"], "", True),
        (["python", "--version"], "", False),
        (["python", "-X", "jitguard", "-IS", "nvcc"], "", False),
        (["python", "-X", "dev", "x.py"], "", True),
        (["anything"], "/usr/bin/python3", True),
        (["bash", "-c", "python x.py"], "", None),
        (["env", "python"], "", None),
        (["/bin/true"], "", False),
        (["no such program"], "", None),
        ([], "", None),
        (["pythonic"], "", None),
    ],
)
def test_what_is_python(argv: list[str], executable: str, answer: bool | None) -> None:
    assert is_python(argv, executable) is answer


@pytest.mark.parametrize(
    ("first", "answer"), [("#!/usr/bin/env python3", True), ("#!/venv/bin/python3.12", True), ("#!/bin/sh", None)]
)
def test_a_console_script_is_known_by_its_first_line(
    first: str, answer: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "tool"
    script.write_text(f"{first}\nx\n")
    script.chmod(0o755)
    assert is_python([str(script)]) is answer
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert is_python(["tool"]) is answer


WAIT = "import sys, time; print(flush=True); sys.stdin.read()"


def test_a_scan_finds_what_nobody_noted(tmp_path: Path) -> None:
    """A Python below a shell, and one of our run that is not below us any more."""
    inherited = Inherited(tmp_path, "g").variables()
    detached = f"{sys.executable} -S -c '{WAIT}' {{}} & exec 1>&-; "
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    below = subprocess.Popen(f"{sys.executable} -S -c '{WAIT}' below; true", shell=True, **pipes)
    script = "setsid " + detached.format("away <&3").replace("& exec", "& exec") + "exit 0"
    away = subprocess.Popen(["bash", "-c", f"exec 3<&0; {script}"], env={**os.environ, **inherited}, **pipes)
    assert below.stdout is not None
    assert away.stdout is not None
    below.stdout.readline()
    away.stdout.readline()
    away.wait(60)
    try:
        found = {living.argv[-1]: living for living in census.scan(tmp_path) if living.python}
        assert {"below", "away"} <= found.keys()
        assert os.getpid() not in [living.pid for living in census.scan(tmp_path)]
        record = found["below"].record()
        assert (record["record"], record["how"], record["python"]) == ("child", "scan", True)
        assert abs(record["started"] - time.monotonic()) < 60
        elsewhere = {living.argv[-1] for living in census.scan(tmp_path / "other") if living.argv}
        assert "below" in elsewhere
        assert "away" not in elsewhere
    finally:
        for process in (below, away):
            process.communicate(timeout=60)


TURNING = """
import ctypes
libc = ctypes.CDLL(None)
for _ in range(200):
    child = libc.fork()
    if not child:
        libc.usleep(20_000)
        libc.execl(b"/bin/sleep", b"sleep", b"0.1", None)
    print(flush=True)
    libc.waitpid(child, None, 0)
"""


def test_a_fork_that_becomes_another_program_is_no_python(tmp_path: Path) -> None:
    """DeepGEMM starts nvcc by `popen`, in C: for some milliseconds its child has the command line of a Python."""
    with subprocess.Popen([sys.executable, "-S", "-c", TURNING], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        for _ in range(10):
            parent.stdout.readline()
            below = [living for living in census.scan(tmp_path) if living.ppid == parent.pid]
            assert not any(living.python for living in below)
        parent.kill()


def test_what_is_there_for_longer_is_found_although_it_ends_while_the_young_are_looked_at(tmp_path: Path) -> None:
    elder = subprocess.Popen([sys.executable, "-S", "-c", WAIT, "elder"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert elder.stdin is not None
    assert elder.stdout is not None
    elder.stdout.readline()
    time.sleep(0.1)
    young = subprocess.Popen([sys.executable, "-S", "-c", WAIT, "young"], stdin=subprocess.PIPE)
    ending = threading.Timer(0.02, elder.kill)
    try:
        ending.start()
        assert "elder" in {living.argv[-1] for living in census.scan(tmp_path)}
    finally:
        ending.join()
        young.communicate()
        elder.communicate()


def test_what_proc_does_not_tell_is_empty() -> None:
    gone = subprocess.Popen(QUICK)
    gone.wait()
    assert (proc.start_of(gone.pid), proc.parent_of(gone.pid), proc.argv_of(gone.pid)) == (0, 0, [])
    assert (proc.environment_of(gone.pid), proc.executable_of(gone.pid)) == (b"", "")
    assert proc.parent_of(os.getpid()) == os.getppid()
    assert abs(proc.monotonic_of(proc.start_of(os.getpid())) - time.monotonic()) < 24 * 3600
