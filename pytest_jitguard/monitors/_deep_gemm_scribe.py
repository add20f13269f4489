"""Turns what is known of a compile into an event: name, key, the call, why now."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.keys import Change, SpecializationKey, diff, nearest
from pytest_jitguard.core.kinds import listed
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors._deep_gemm_calls import Call, find_call
from pytest_jitguard.monitors._deep_gemm_roots import Entry
from pytest_jitguard.monitors._deep_gemm_source import Kernel, parse
from pytest_jitguard.monitors._deep_gemm_spool import Compile
from pytest_jitguard.monitors._frames import stack_of

MODULE = "deep_gemm"
"""The module of every kernel, whichever package brought the library: vLLM's copy compiles the same ones."""

_UNREAD = "a kernel whose source cannot be read"
_TOLD_FIRST = ("num_sms", "N", "K", "num_groups", "GemmType", "BLOCK_M", "BLOCK_N", "BLOCK_K", "stages", "cluster")
_NOT_BY_M = ("num_sms", "N", "K", "num_groups", "GemmType", "output", "epilogue")
_MOST_TOLD = 3


class Scribe:
    """Writes the events of one process, and remembers what was compiled for which M."""

    def __init__(self, recorder: Recorder, system: str) -> None:
        self.includes: tuple[Path, ...] = ()
        self.hidden: tuple[str, ...] = ("<",)
        self._recorder = recorder
        self._system = system
        self._calls: dict[str, Call] = {}
        self._variants: list[tuple[str, SpecializationKey, str]] = []

    def begin(self, compile: Compile, frame: FrameType | None) -> None:
        """Record that nvcc was started; `frame` is where the call that wanted it is, or was a moment ago."""
        call, caller = find_call(frame)
        kernel = self._kernel(compile.text, compile.arguments)
        compile.event = self._recorder.begin(
            self._system,
            kernel.family if kernel else _UNREAD,
            MODULE,
            started=compile.started,
            launch=call.launch if call else None,
            stack=stack_of(caller, self.hidden) if caller else (),
        )
        if call:
            self._calls[compile.id] = call

    def end(self, compile: Compile, entry: Entry | None, whose: str = "") -> CompileEvent:
        """Record how nvcc ended; `entry` is what it left in the cache folder, `whose` the process if not this one."""
        assert compile.event is not None
        call = self._calls.pop(compile.id, None)
        kernel = self._kernel(compile.text, compile.arguments)
        family = entry.family if entry else kernel.family if kernel else ""
        ended = monotonic() if compile.ended is None else compile.ended
        self._recorder.end(
            compile.event,
            status="failed" if compile.code else "ok",
            ended=ended,
            key=kernel.key if kernel else None,
            artifact_hash=entry.digest if entry else None,
            stages={"nvcc": ended - compile.started},
            detail="; ".join(filter(None, (whose, _how_it_ended(compile)))),
            reason=self._reason(family, kernel, call) if kernel and call and not compile.code else "",
            cure=call.cure if call else "",
            kernel=family,
        )
        if kernel and not compile.code:
            self._variants.append((family, kernel.key, str(call.shape.get("M", "")) if call else ""))
        return compile.event

    def found(self, entry: Entry, detail: str) -> None:
        """Record a compile of which only the entry in the cache folder tells, with the times of its files."""
        began, ended = (_moment(at) for at in entry.span or (time.time(), time.time()))
        self._record(entry, "compile", began, ended, detail)

    def loaded(self, entry: Entry, at: float, detail: str) -> None:
        """Record a first load from disk, at a time in seconds since the epoch; how long it took is not known."""
        self._record(entry, "cache_load", _moment(at), _moment(at), detail)

    def _record(self, entry: Entry, kind: str, began: float, ended: float, detail: str) -> None:
        kernel = self._kernel(entry.text)
        event = self._recorder.begin(self._system, entry.family, MODULE, kind=kind, started=began)
        key = kernel.key if kernel else None
        self._recorder.end(event, ended=ended, key=key, artifact_hash=entry.digest, detail=detail)
        if key:
            self._variants.append((entry.family, key, ""))

    def _kernel(self, text: str, arguments: Sequence[str] = ()) -> Kernel | None:
        after = [value for name, value in itertools.pairwise(arguments) if name in _INCLUDES]
        joined = [argument[2:] for argument in arguments if argument.startswith("-I") and len(argument) > 2]
        return parse(text, (*joined, *after, *self.includes))

    # -- why -----------------------------------------------------------------------------------------------------------

    def _reason(self, family: str, kernel: Kernel, call: Call) -> str:
        """Say what M changed against the nearest variant compiled before; empty if there is none, or no M."""
        others = [(key, m) for name, key, m in self._variants if name == family]
        closest = nearest(kernel.key, [key for key, _ in others])
        if closest is None or not call.shape:
            return ""
        changes = sorted(diff(closest, kernel.key), key=_importance)
        if not changes:
            return ""
        told = [f"{change.component} {change.transition()}" for change in changes[:_MOST_TOLD]]
        rest = len(changes) - len(told)
        what = listed([*told, *([f"{rest} more"] if rest else [])], " and ")
        shape = ", ".join(f"{name}={size}" for name, size in call.shape.items())
        if any(change.component in _NOT_BY_M for change in changes):
            return f"{what} in {call.op} with {shape}"
        before = next((m for key, m in reversed(others) if key == closest and m), "")
        return f"{what} because M={call.shape['M']}" + (f", nearest is M={before}" if before else "")


_INCLUDES = ("-I", "--include-path")


def _importance(change: Change) -> int:
    return _TOLD_FIRST.index(change.component) if change.component in _TOLD_FIRST else len(_TOLD_FIRST)


def _how_it_ended(compile: Compile) -> str:
    if compile.refused:
        return "refused by jitguard, as the run was told to"
    return f"nvcc ended with code {compile.code}" if compile.code else ""


def _moment(at: float) -> float:
    """Turn seconds since the epoch, which files have, into those of the monotonic clock."""
    return monotonic() - (time.time() - at)


def frame_of_thread(native: int) -> FrameType | None:
    """Return what runs on a thread, by the kernel's number of it."""
    for thread in threading.enumerate():
        if thread.native_id == native and thread.ident is not None:
            return sys._current_frames().get(thread.ident)
    return None
