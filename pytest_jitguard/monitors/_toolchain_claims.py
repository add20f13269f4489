"""Whose compile a child process is: the event of a monitor that it is part of, a mere probe, or nobody's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import FrameType

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.kinds import RECORDED_KINDS, UNATTRIBUTED
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import BUILTIN
from pytest_jitguard.monitors._frames import frames_of

_LATEST = 200
"""How many events are looked through for the one that a compiler works for."""

_AFTERWARDS = 1.0
"""Seconds after an event in which its library, on the same thread, may still compile for it: Triton up to 3.6 builds
the launcher of a kernel, with gcc, when it has told its listener that the kernel is compiled."""

_PROBES = (
    ("torch/_inductor/cpu_vec_isa.py", "check_build", ""),
    ("cuda/tile/_compile.py", "_get_max_supported_bytecode_version", ""),
    ("triton/backends/nvidia/driver.py", "__init__", "CudaUtils"),
    ("triton/backends/amd/driver.py", "__init__", "HIPUtils"),
    ("pytest_jitguard/monitors/__init__.py", "prove", ""),
    ("pytest_jitguard/witness/build.py", "_compile", ""),
)
"""Functions, of a class, whose compiles nobody serves: what instructions there are, Triton's own helper (once per
machine), whether our monitors live, our own witness."""


def is_probe(frame: FrameType | None) -> bool:
    """Tell whether a call is under way that compiles only to find something out."""
    for f in frames_of(frame):
        for file, function, kind in _PROBES:
            is_it = f.f_code.co_name == function and f.f_code.co_filename.endswith(file)
            if is_it and (not kind or type(f.f_locals.get("self")).__name__ == kind):
                return True
    return False


def claimant(recorder: Recorder, frame: FrameType | None) -> CompileEvent | None:
    """Return the event that a compiler started here and now works for, None if no monitor has one.

    That is the one under way on this thread; or one of the library that is calling, which may have asked a pool of
    threads, or may have told its monitor a moment ago that it is done.
    """
    around = recorder.enclosing(without=RECORDED_KINDS)
    if around is not None:
        return around
    thread, now = threading.current_thread().name, monotonic()
    calling: set[str] | None = None
    for event in _latest(recorder):
        if event.status == "running" and event.thread == thread:
            return event
        lately = event.thread == thread and now - (event.ended or 0.0) < _AFTERWARDS
        if event.status == "running" or lately:
            calling = _modules(frame) if calling is None else calling
            if _is_calling(event.system, calling):
                return event
    return None


def around(recorder: Recorder, started: float, ended: float, thread: str = "") -> CompileEvent | None:
    """Return an event of this process that was under way at some moment of a span, on a thread if one is named."""
    for event in _latest(recorder):
        overlaps = event.started <= ended and started <= (monotonic() if event.ended is None else event.ended)
        if overlaps and thread in ("", event.thread):
            return event
    return None


def _latest(recorder: Recorder) -> Iterator[CompileEvent]:
    """Yield the events of this process's monitors, the latest first. What only waits or captures compiles nothing."""
    for event in recorder.events[: -_LATEST - 1 : -1]:
        if (
            event.system != UNATTRIBUTED
            and event.kind not in RECORDED_KINDS
            and event.id.rpartition("-")[0] == recorder.image
        ):
            yield event


def _modules(frame: FrameType | None) -> set[str]:
    return {str(f.f_globals.get("__name__", "")) for f in frames_of(frame)}


def _is_calling(system: str, modules: set[str]) -> bool:
    library = _library(system)
    return any(name == library or name.startswith(f"{library}.") for name in modules)


def _library(system: str) -> str:
    """Return the package of a system. Nearly everything has torch on its stack; its compilers are packages in it."""
    target = BUILTIN[system].target if system in BUILTIN else system
    top, _, rest = target.partition(".")
    return (
        f"{top}.{rest.partition('.')[0]}"
        if top == "torch" and rest.startswith("_")
        else target
        if top == "torch"
        else top
    )
