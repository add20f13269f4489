"""Children of a test, started in every way there is, each of which compiles kernels of its own and ends in some way.

`bear(how, end, name)` starts one and returns when nothing of it is left. The child compiles NAME; if it is killed in a
compile also NAME_cut, and if its parent is killed NAME_after.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import fakejit


class Killer:
    """What a compile waits for in vain."""

    def wait(self, _: float) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


def live(name: str, end: str, starter: int) -> None:
    fakejit.launch(name)
    if end == "exception":
        raise RuntimeError("on purpose")
    if end == "os._exit":
        os._exit(3)
    if end == "killed in a compile":
        fakejit.GATES["end"] = Killer()  # type: ignore[assignment]
        fakejit.launch(f"{name}_cut", gate="end")
    if end == "parent killed":
        os.kill(starter, signal.SIGKILL)
        while runs(starter):
            time.sleep(0.01)
        fakejit.launch(f"{name}_after")


def runs(pid: int) -> bool:
    """Tell whether a process runs; one that is dead and waits for its own parent does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def in_fork(act: Callable[[], object]) -> None:
    """Do something in a forked child, which never comes back."""
    code = 1
    try:
        act()
        code = 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def forked(name: str, end: str) -> None:
    starter = os.getpid()
    pid = os.fork()
    if pid == 0:
        in_fork(lambda: live(name, end, starter))
    os.waitpid(pid, 0)


def forked_twice(name: str, end: str) -> None:
    """As daemons do; who it is comes through a pipe."""
    starter = os.getpid()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        if grandchild := os.fork():
            os.write(writer, str(grandchild).encode())
            os._exit(0)
        in_fork(lambda: live(name, end, starter))
    os.waitpid(pid, 0)
    grandchild = int(os.read(reader, 20))
    os.close(writer)
    os.close(reader)
    while runs(grandchild):
        time.sleep(0.01)


def executed(name: str, end: str) -> None:
    starter = str(os.getpid())
    pid = os.fork()
    if pid == 0:
        in_fork(lambda: os.execv(sys.executable, [sys.executable, __file__, "live", name, end, starter]))
    os.waitpid(pid, 0)


def by_multiprocessing(how: str, name: str, end: str) -> None:
    process = multiprocessing.get_context(how).Process(  # type: ignore[attr-defined]
        target=live, args=(name, end, os.getpid())
    )
    process.start()
    process.join()


def by_subprocess(name: str, end: str, *options: str, **changes: str) -> None:
    command = [sys.executable, *options, __file__, "live", name, end, str(os.getpid())]
    subprocess.run(command, env={**os.environ, **changes}, check=False)


def here(how: str, end: str, name: str) -> None:
    """Start a child of this very process."""
    if how in ("fork", "spawn", "forkserver"):
        by_multiprocessing(how, name, end)
    elif how == "subprocess":
        by_subprocess(name, end)
    elif how == "subprocess -I":
        by_subprocess(name, end, "-I")
    elif how == "other PYTHONPATH":
        by_subprocess(name, end, PYTHONPATH="/nowhere")
    else:
        {"os.fork": forked, "os.execv": executed, "double fork": forked_twice}[how](name, end)


def below(how: str, end: str, name: str) -> None:
    """Start a child of a child; its end, and that of whoever it leaves behind, is known by that of their output."""
    subprocess.run([sys.executable, __file__, "here", how, end, name], capture_output=True, check=False, timeout=60)


def bear(how: str, end: str, name: str, *, deep: bool = False) -> None:
    (below if deep or end == "parent killed" else here)(how, end, name)


if __name__ == "__main__":
    if sys.argv[1] == "live":
        live(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        here(*sys.argv[2:])
