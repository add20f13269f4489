"""Whoever dies, in whatever way: nobody of the server's tree is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_jitguard.servers.ports import free_port
from pytest_jitguard.servers.server import HowItEnded, Server, ServerCommand, ServerError
from tests.servers.smalls import Small, wait_for

ROOT = Path(__file__).parent.parent.parent

STARTER = """
import json, os, signal, sys, time, urllib.request
from pathlib import Path
from pytest_jitguard.servers.server import Server, ServerCommand

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
argv, log, deed = json.loads(sys.stdin.readline())
server = Server(ServerCommand(tuple(argv), timeout=60, grace=1.0), "", Path(log))
server.start()
server.wait_ready()
if deed == "fork" and os.fork() == 0:
    time.sleep(600)
try:
    print("ready", flush=True)
    if deed == "crash":
        raise RuntimeError
    if deed == "exit":
        os._exit(3)
    if deed == "leave":
        sys.exit(0)
    time.sleep(600)
except KeyboardInterrupt:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(server.url) as answer:
        print("still", answer.status, flush=True)
    print(server.stop().text, flush=True)
"""


@contextmanager
def starter(small: Small, deed: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process that starts a server, in a process group of its own, until the server is ready."""
    import json

    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", STARTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(json.dumps([small.argv("--daemon", "--children=2"), str(small.log), deed]) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def test_ctrl_c_leaves_the_server_to_its_teardown(small: Small) -> None:
    with starter(small, "wait") as process:
        assert len(small.alive()) == 4
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert out.splitlines() == ["still 200", "stopped (SIGTERM), 1 process of its tree had to be killed"]
    assert small.alive() == []


def test_a_starter_that_is_killed_leaves_nobody(small: Small) -> None:
    with starter(small, "wait") as process:
        assert len(small.alive()) == 4
        process.kill()
        assert small.gone()


@pytest.mark.parametrize("deed", ["crash", "exit", "leave"])
def test_a_starter_that_ends_without_stopping_leaves_nobody(small: Small, deed: str) -> None:
    with starter(small, deed) as process:
        process.wait(60)
        assert small.gone()


def test_a_forked_child_of_the_starter_does_not_keep_the_server_alive(small: Small) -> None:
    with starter(small, "fork") as process:
        try:
            process.kill()
            assert small.gone()
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_keeper_that_is_killed_takes_the_server_along(small: Small) -> None:
    with small.server("--daemon", "--children=2", "--stubborn") as server:
        os.kill(server.keeper_pid, signal.SIGKILL)
        assert wait_for(lambda: server.pid not in small.alive())
        assert wait_for(lambda: server.ended is not None)
    assert small.alive() == []
    assert server.stop() == HowItEnded(left_over=3)
    assert server.stop().text.startswith("ended in an unknown way, because its keeper was killed, 3 processes")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_keeper_that_is_asked_to_end_ends_the_server(small: Small, number: signal.Signals) -> None:
    with small.server("--daemon", grace=1.0) as server:
        os.kill(server.keeper_pid, number)
        assert small.gone()
    assert server.stop().left_over == 1


def test_the_server_has_default_signals_and_no_pipe_of_ours(small: Small) -> None:
    """A program that changes no signals itself shows what it was given; Python ignores SIGPIPE and SIGXFSZ."""
    server = Server(ServerCommand(("sleep", "600"), port=free_port("127.0.0.1")), "", small.log)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        server.start()
        proc = Path(f"/proc/{server.pid}")
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
        assert (int(status["SigBlk"], 16), int(status["SigIgn"], 16)) == (0, 0)
        until = time.monotonic() + 30
        while _files(proc) != {os.devnull, str(small.log)}:  # it may still be reading its locale
            assert time.monotonic() < until, _files(proc)
            time.sleep(0.02)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        server.stop()


def _files(proc: Path) -> set[str]:
    found = set()
    for path in (proc / "fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.add(str(path.readlink()))
    return found


def _leave_as_forked_child(server: Server) -> None:
    said = ""
    with contextlib.suppress(ServerError):
        server.__exit__(None, None, None)
        said = "left quietly"
    try:
        server.stop()
    except ServerError as error:
        said += f", {error}"
    finally:
        os._exit(0 if said.startswith("left quietly") and said.endswith("only that may stop it") else 1)


def test_a_forked_child_neither_stops_nor_may_stop_the_server(small: Small) -> None:
    with small.server() as server:
        pid = os.fork()
        if pid == 0:
            _leave_as_forked_child(server)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert server.ended is None
        assert server.pid in small.alive()


def test_the_keeper_runs_no_start_up_file_and_imports_nothing_of_ours(small: Small) -> None:
    with small.server() as server:
        argv = Path(f"/proc/{server.keeper_pid}/cmdline").read_bytes().split(b"\0")
        assert argv[1:3] == [b"-I", b"-S"]
        maps = Path(f"/proc/{server.keeper_pid}/maps").read_text()
    assert "site-packages" not in maps
