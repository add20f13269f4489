"""Watches DeepGEMM: nvcc in the middle of a GEMM, first loads of kernels from disk, in this process and its children.

Nothing of the library is patched, so nothing of ours runs in a call that compiles nothing. Its compiler is ours: a
program that DeepGEMM is led to by its own variable, that writes down what is compiled and has the real nvcc do it. It
then sends SIGURG, which everybody ignores, to the process that waits for it; the signal is handled as soon as the call
that compiled is back in Python, where its arguments can still be seen. What that misses, because somebody led DeepGEMM
to another compiler, is found in its cache folders at the end of a phase.

Python handles signals in the main thread. A compile on another thread is looked at while it runs, if the library lets
go of the GIL and the main thread is not stuck in a lock; else the end of the phase finds it, without its call.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, ClassVar

import pytest_jitguard
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Monitor, Tells
from pytest_jitguard.monitors._deep_gemm_door import FOLDER_VARIABLE, Door, is_bypassed
from pytest_jitguard.monitors._deep_gemm_net import Net
from pytest_jitguard.monitors._deep_gemm_nvcc import start_of
from pytest_jitguard.monitors._deep_gemm_scribe import Scribe, frame_of_thread
from pytest_jitguard.monitors._deep_gemm_spool import Compile, Spool
from pytest_jitguard.monitors._frames import frames_of, hidden_folders

FOLDERS = "cache folder"
"""The witness that DeepGEMM's cache folders are."""

_OURS = f"{Path(pytest_jitguard.__file__).parent}/"

_living: weakref.WeakSet[DeepGemmMonitor] = weakref.WeakSet()


def _renew_in_fork() -> None:
    for monitor in _living:
        monitor.forked()


os.register_at_fork(after_in_child=_renew_in_fork)


class DeepGemmMonitor(Monitor):
    """The monitor of DeepGEMM: upstream's, SGLang's and the one inside vLLM."""

    name: ClassVar[str] = "deep_gemm"
    target: ClassVar[str] = "deep_gemm"
    also: ClassVar[tuple[str, ...]] = ("vllm.third_party.deep_gemm",)
    """Other names under which the same library is imported: vLLM brings a copy."""
    looks_always: ClassVar[bool] = True
    """What it hears comes from processes that have imported the library, also where this one has not."""
    tested: ClassVar[str] = "==2.5.0"
    tells: ClassVar[Tells] = Tells(
        identity="kernel family, digest of the entry in the cache folder",
        key="template arguments by name (M, N, K where compiled in, blocks, stages, cluster, num_sms, GemmType)",
        reason="what the M of the call changed against the nearest variant",
        kinds=("compile", "cache_load"),
        cache_load=True,
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._door: Door | None = None
        self._spool: Spool | None = None
        self._net: Net | None = None
        self._scribe = Scribe(recorder, self.name)
        self._open: list[Compile] = []
        self._orphans: list[Compile] = []
        self._taking = threading.Lock()
        self._is_due = False
        self._handler: Any = None
        self._handler_before: Any = None
        _living.add(self)

    # -- hooking in and out --------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Lead DeepGEMM to our compiler, here and in whatever is started from here."""
        if self._door is not None:
            return
        try:
            self._door = Door()
        except OSError as error:
            self.detail = f"there is no compiler of ours in DeepGEMM's place: {error}"
        self._join()

    def restore(self) -> None:
        """Take the compiler away, and what was written down."""
        if self._door is not None:
            self._door.close()
        self._door = self._spool = self._net = None

    def install(self, module: ModuleType) -> None:
        """Listen to the compiler. The library itself is left as it is."""
        self._scribe.hidden = hidden_folders(module)
        self._scribe.includes = tuple(Path(place, "include") for place in getattr(module, "__path__", ()))
        if self._net is None:
            self._join()
        if self._net is not None:
            self._net.used_from_now()
        self._watch()
        self._listen()

    def _join(self) -> None:
        """Find the spool of this run, and note what is in the cache folders already."""
        folder = os.environ.get(FOLDER_VARIABLE)
        if folder and Path(folder).is_dir():
            self._spool = Spool(Path(folder))
        self._net = Net()

    def _watch(self) -> None:
        if self._spool is not None:
            self._spool.watch(os.getpid(), start_of(os.getpid()))

    def _listen(self) -> None:
        """Have SIGURG handled. Python lets only the main thread do that; elsewhere the end of the phase has to do."""
        if self._handler is None and threading.current_thread() is threading.main_thread():
            self._handler_before, self._handler = signal.getsignal(signal.SIGURG), self._woken
            signal.signal(signal.SIGURG, self._handler)
            # Whoever waits for nvcc, in `read` below `fgets`, goes on waiting.
            signal.siginterrupt(signal.SIGURG, False)

    def uninstall(self) -> None:
        """Give the signal back, unless somebody else has taken it since: then ours finds nothing to do."""
        if self._handler is not None and signal.getsignal(signal.SIGURG) is self._handler:
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGURG, signal.SIG_DFL if self._handler_before is None else self._handler_before)
        self._handler = None
        self._spool = self._net = None

    def forked(self) -> None:
        """Start anew in a forked child: what its parent began is not its to end, nor is the compiler its to take."""
        self._open, self._orphans, self._door = [], [], None
        self._taking = threading.Lock()
        if self._spool is not None:
            self._spool = Spool(self._spool.folder)
            if self._is_in_use:
                self._watch()

    def refuse(self, on: bool) -> None:
        """Have nvcc refused in every process of the run: DeepGEMM raises, and keeps nothing of it."""
        if self._spool is not None:
            self._spool.refuse(on)

    @property
    def _is_in_use(self) -> bool:
        return self.state not in ("waiting", "off")

    @property
    def _is_guard(self) -> bool:
        """Whether this process led everybody to our compiler, and answers for those that cannot speak."""
        return self._door is not None

    # -- liveness ------------------------------------------------------------------------------------------------------

    def prove(self) -> None:
        """Look whether DeepGEMM is still led to our compiler. A canary would need a GPU."""
        self._tell_bypass()
        if self.state == "unproven" and not self.untested():
            self.state = "armed"
            self.detail = self._bypass()

    def _tell_bypass(self) -> None:
        # Not blind: the cache folders tell of every compile, if only at the end of a phase and without the call.
        if self.state != "blind" and (bypass := self._bypass()):
            self.detail = bypass

    def _bypass(self) -> str:
        why = is_bypassed() if self._spool is not None else "there is no compiler of ours in DeepGEMM's place"
        return f"{why}; compiles are seen in the cache folders only" if why else ""

    # -- what our compiler tells ---------------------------------------------------------------------------------------

    def _woken(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGURG in the main thread: a call has compiled and is back in Python, or one on a thread compiles."""
        if callable(self._handler_before):
            self._handler_before(number, frame)
        if _is_in_ours(frame):  # in the middle of writing, maybe; the end of the phase sees to it
            return
        for event in self._guarded("a compile", self._take, frame) or ():
            self.recorder.finished(event)

    def _guarded(self, what: str, action: Callable[..., Any], *args: Any) -> Any:
        try:
            return action(*args)
        except Exception as error:  # noqa: BLE001 - raising here would fail whatever the main thread is at
            self.blind(f"{what} could not be recorded: {type(error).__name__}: {error}")
            return None

    def flush(self) -> None:
        """Take in what no signal told of: compiles that still run, those of other threads, of who died, of nobody."""
        if self._is_in_use:
            self._listen()
        self._take(None)
        if self._is_guard:
            self._adopt()

    def _take(self, frame: FrameType | None) -> list[CompileEvent]:
        """Record what this process compiled; return what ended on the thread that is here."""
        self._is_due = True
        events: list[CompileEvent] = []
        # A signal may come while the one before is still handled: who is at it then looks once more.
        while self._is_due and self._spool is not None and self._taking.acquire(blocking=False):
            try:
                self._is_due = False
                events += self._taken(self._spool, frame)
            finally:
                self._taking.release()
        return events

    def _taken(self, spool: Spool, frame: FrameType | None) -> list[CompileEvent]:
        spool.read()
        self._begin_mine(spool, frame)
        ended = [compile for compile in self._open if compile.code is not None]
        self._open = [compile for compile in self._open if compile.code is None]
        events = [self._end(compile) for compile in ended]
        return [event for event, c in zip(events, ended, strict=True) if frame and c.thread == os.getpid()]

    def _begin_mine(self, spool: Spool, frame: FrameType | None) -> None:
        if not spool.waiting:
            return
        me = (os.getpid(), start_of(os.getpid()))
        for compile in spool.take_out(lambda compile: (compile.owner, compile.owner_start) == me):
            if spool.claim(compile.id):
                here = compile.thread in (0, os.getpid())  # 0 where the kernel does not list the children of threads
                self._scribe.begin(compile, frame if here else frame_of_thread(compile.thread))
                self._open.append(compile)

    def _end(self, compile: Compile, whose: str = "") -> CompileEvent:
        entry = self._net.entry_of(compile) if self._net is not None else None
        event = self._scribe.end(compile, entry, whose)
        if entry is not None:
            self.recorder.corroborate(event, FOLDERS)
        return event

    def _adopt(self) -> None:
        """Record, as the guard, compiles of processes that report to nobody, or died before they could."""
        assert self._spool is not None
        if not self._spool.waiting and not self._orphans:
            return
        watchers = self._spool.watchers()
        for compile in self._spool.take_out(lambda compile: not _will_report(compile, watchers)):
            if self._spool.claim(compile.id):
                self._scribe.begin(compile, None)
                self._orphans.append(compile)
        still = []
        for compile in self._orphans:
            if compile.code is None and start_of(compile.pid):
                still.append(compile)
            else:
                compile.code = -9 if compile.code is None else compile.code
                self._end(compile, f"in {_described(compile)}")
        self._orphans = still

    # -- what the cache folders tell -----------------------------------------------------------------------------------

    def reconcile(self) -> None:
        """Find in the cache folders what our compiler was not asked for, and what was loaded from there."""
        if self._net is None:
            return
        who = {"is_guard": self._is_guard, "is_in_use": self._is_in_use}
        self._net.look()
        for entry, why in self._net.strangers(self._spool, **who):
            self._scribe.found(entry, f"found in the cache folder: {why}")
            self._tell_bypass()
        for entry, at, why in self._net.loads(self._spool, **who):
            self._scribe.loaded(entry, at, "; ".join(filter(None, (f"from {entry.folder.parent.parent}", why))))


def _is_in_ours(frame: FrameType | None) -> bool:
    """Tell whether code of ours was interrupted, or what it calls in the standard library."""
    for one in frames_of(frame):
        if one.f_code.co_filename.startswith(_OURS):
            return True
        if not _is_stdlib(one):
            return False
    return False


def _is_stdlib(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in sys.stdlib_module_names - {"__main__"}


def _will_report(compile: Compile, watchers: set[tuple[int, int]]) -> bool:
    owner = (compile.owner, compile.owner_start)
    return owner in watchers and start_of(compile.owner) == compile.owner_start


def _described(compile: Compile) -> str:
    command = " ".join(compile.argv)[:200]
    scope = f" of {compile.scope}" if compile.scope else ""
    return f"pid {compile.owner}{scope}, which did not report it: {command}"
