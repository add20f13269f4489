"""A program that starts one child in a given way, which lives and dies in a given way: `births.py BIRTH DEATH`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from typing import Any

import fakejit


def live(death: str, starter: int) -> None:
    """Compile something, and die."""
    fakejit.launch("first", n=1)
    if death == "exception":
        raise RuntimeError("on purpose")
    if death == "os._exit":
        os._exit(3)
    if death == "killed in a compile":
        gates: dict[str, Any] = dict(fakejit.GATES)
        gates["death"] = Killer()
        fakejit.GATES = gates
        fakejit.launch("cut_short", gate="death")
    if death == "parent killed":
        os.kill(starter, signal.SIGKILL)
        while alive(starter):
            time.sleep(0.01)
        fakejit.launch("after_parent", n=1)


class Killer:
    """What a compile waits for in vain."""

    def wait(self, _: float) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that is dead and waits for its own parent does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def forked(death: str) -> None:
    starter = os.getpid()
    pid = os.fork()
    if pid == 0:
        live(death, starter)
        sys.exit(0)
    os.waitpid(pid, 0)


def forked_twice(death: str) -> None:
    starter = os.getpid()
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0:
            live(death, starter)
            sys.exit(0)
        os._exit(0)
    os.waitpid(pid, 0)
    if death == "parent killed":
        time.sleep(60)


def executed(death: str) -> None:
    starter = str(os.getpid())
    pid = os.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, __file__, "live", death, starter])
    os.waitpid(pid, 0)


def by_multiprocessing(method: str, death: str) -> None:
    process = multiprocessing.get_context(method).Process(  # type: ignore[attr-defined]
        target=live, args=(death, os.getpid())
    )
    process.start()
    process.join()


def by_subprocess(death: str, *options: str, **changes: str) -> None:
    command = [sys.executable, *options, __file__, "live", death, str(os.getpid())]
    subprocess.run(command, env={**os.environ, **changes}, check=False)


def main(birth: str, death: str) -> None:
    if birth in ("fork", "spawn", "forkserver"):
        by_multiprocessing(birth, death)
    elif birth == "subprocess":
        by_subprocess(death)
    elif birth == "subprocess -I":
        by_subprocess(death, "-I")
    elif birth == "other PYTHONPATH":
        by_subprocess(death, PYTHONPATH="/nowhere")
    else:
        {"os.fork": forked, "os.execv": executed, "double fork": forked_twice}[birth](death)


if __name__ == "__main__":
    if sys.argv[1] == "live":
        live(sys.argv[2], int(sys.argv[3]))
    else:
        main(*sys.argv[1:])
