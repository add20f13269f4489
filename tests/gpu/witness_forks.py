"""What a forked child can bear of CUPTI, one variant to a process; no scene outlives 40 s, whatever hangs.

The parent has subscribed and has not used CUDA. Each child says every step before it takes it, so that the last line of
one that hangs names the call; then it ends through C's `exit`, which runs what libcupti has registered for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pytest_jitguard.witness import _library, build, cupti
from pytest_jitguard.witness._library import JIT, Library
from pytest_jitguard.witness.records import CALL, COMPILER

CHILD_S, WAIT_S, SCENE_S = 15, 20, 36


class Variant(NamedTuple):
    """What the parent does with CUPTI, `before` the fork and at it, and which activities the `child` subscribes with.

    The child subscribes to nothing if that is None, and without activities if it is 0: nothing is flushed then.
    """

    subscribes: bool = True
    leaves: bool = True
    finalizes: bool = False
    child: int | None = None


VARIANTS = {
    "fork_control": Variant(subscribes=False, leaves=False),
    "fork_untouched": Variant(leaves=False),
    "fork_unsubscribed": Variant(),
    "fork_unsubscribed_then_callbacks": Variant(child=0),
    "fork_unsubscribed_then_all": Variant(child=JIT),
    "fork_finalized": Variant(finalizes=True),
    "fork_finalized_then_callbacks": Variant(finalizes=True, child=0),
    "fork_finalized_then_all": Variant(finalizes=True, child=JIT),
}
DEFAULT = "fork_unsubscribed_then_callbacks"
"""The variant that the witness is built on."""


def limit_child() -> None:
    """Let this forked child end by itself: with a traceback, or by the system's alarm, which needs no thread."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(CHILD_S + 3)
    faulthandler.dump_traceback_later(CHILD_S, exit=True)


def limit_scene() -> None:
    """Let this process end by the system's alarm; a child does not inherit it."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SCENE_S)


def wait(pid: int) -> str:
    """Wait for a child, and kill it if it does not come back; tell how it ended."""
    began = time.monotonic()
    while time.monotonic() - began < WAIT_S:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return f"exit {code}" if code >= 0 else f"signal {-code}"
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "killed"


def play(name: str, load: Callable[[], list[int]]) -> dict[str, Any]:
    """Play a variant; `load` makes a context and loads two texts, and returns the driver's answers."""
    limit_scene()
    variant, steps = VARIANTS[name], Steps("parent")
    ctypes.CDLL("libcuda.so.1")
    library = _enter(variant, steps)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        limit_child()
        _in_child(variant, Steps("child", writing), load)
    os.close(writing)
    ended = wait(pid)
    with os.fdopen(reading, "rb") as pipe:
        child = pipe.read().decode().splitlines()
    steps.say(f"the child: {ended}")
    faulthandler.dump_traceback_later(SCENE_S - WAIT_S - 4, exit=True)
    told = _afterwards(variant, library, steps, load)
    faulthandler.cancel_dump_traceback_later()
    return {"name": name, "ended": ended, "child": child, "parent": told}


class Steps:
    """Says what is done next, past every buffer, and into a pipe if there is one."""

    def __init__(self, who: str, pipe: int = -1) -> None:
        self.who, self.pipe, self.began = who, pipe, time.monotonic()

    def say(self, what: str) -> None:
        os.write(1, f"  {self.who} {time.monotonic() - self.began:6.3f} s {_threads()} threads: {what}\n".encode())
        if self.pipe >= 0:
            os.write(self.pipe, f"{what}\n".encode())


def _threads() -> str:
    names = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread may end meanwhile
            names.append(task.joinpath("comm").read_text().strip())
    return f"{len(names)} ({', '.join(names)})"


def _enter(variant: Variant, steps: Steps) -> Library | None:
    steps.say("has loaded the driver")
    if not variant.subscribes:
        return None
    library = cupti._subscribed()
    steps.say(f"has subscribed, activities {library.activities}")
    if variant.leaves:
        steps.say(f"unsubscribes: {library.stop()}")
    if variant.finalizes:
        steps.say(f"finalizes: {ctypes.CDLL(_library.find_libcupti()).cuptiFinalize()}")
    steps.say("forks")
    return library


def _in_child(variant: Variant, steps: Steps, load: Callable[[], list[int]]) -> NoReturn:
    steps.say("is there")
    library: Library | None = None
    if variant.child is not None:
        steps.say(f"subscribes with activities {variant.child}")
        library = Library(build.library())
        steps.say(f"subscribed: {library.start(_library.find_libcupti(), variant.child)} {library.problem!r}")
    steps.say("loads")
    steps.say(f"loaded: {load()}")
    if library is not None:
        steps.say("flushes")
        steps.say(f"saw: {_seen(library)}")
        steps.say(f"unsubscribes: {library.stop()}")
    faulthandler.cancel_dump_traceback_later()
    steps.say("exits")
    ctypes.CDLL(None).exit(0)
    os._exit(99)


def _afterwards(
    variant: Variant, library: Library | None, steps: Steps, load: Callable[[], list[int]]
) -> dict[str, Any]:
    """Let the parent go on as if nothing had been."""
    told: dict[str, Any] = {"answer": None, "seen": {}}
    if library is not None and variant.leaves:
        told["answer"] = library.start(_library.find_libcupti(), JIT)
        steps.say(f"has subscribed again: {told['answer']} {library.problem!r}, activities {library.activities}")
    told["loaded"] = load()
    if library is not None:
        told["seen"] = _seen(library)
    steps.say(f"went on: {told}")
    return told


def _seen(library: Library) -> dict[str, int]:
    library.flush()
    records = library.take()
    return {kind: sum(r.what == what for r in records) for kind, what in (("calls", CALL), ("compiler", COMPILER))}
