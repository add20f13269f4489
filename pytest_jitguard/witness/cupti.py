"""The witness: what the NVIDIA driver loads and compiles in this process must be accounted for by some monitor's event.

It subscribes to CUPTI's callbacks for module loads and to its records of the driver's compiler, in each process for
itself, and compares at each phase's end. A module that nobody accounts for is an event of the system `unattributed`.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from pathlib import Path
from types import ModuleType

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.kinds import UNATTRIBUTED
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Monitor, Tells
from pytest_jitguard.patching import when_imported
from pytest_jitguard.witness import _library, accounting, build
from pytest_jitguard.witness._library import HELD, JIT, OVERHEAD, Library
from pytest_jitguard.witness._order import Backlog
from pytest_jitguard.witness.accounting import Ledger, Sighting
from pytest_jitguard.witness.images import LARGE, shown
from pytest_jitguard.witness.records import Record

DRIVER_USERS = (
    "torch",
    "triton",
    "cupy",
    "cuda.bindings.driver",
    "numba.cuda.cudadrv.driver",
    "jaxlib.xla_client",
    "tilelang",
    "cutlass",
)
"""Modules behind whose import the driver may be used. Subscribing creates no CUDA context and needs none."""

_PROFILERS = {
    "CUDA_INJECTION64_PATH": "a tool that CUDA was told to load",
    "NSYS_PROFILING_SESSION_ID": "Nsight Systems",
    "NV_NSIGHT_INJECTION_TRANSPORT_TYPE": "Nsight Compute",
}

_living: weakref.WeakSet[CuptiWitness] = weakref.WeakSet()


_subscriber = 0
"""The process that subscribed to CUPTI, be it for a moment: this one or one that it was forked from."""


def _step_aside() -> None:
    for witness in _living:
        witness.about_to_fork()


def _step_back() -> None:
    for witness in _living:
        witness.has_forked()


def _renew() -> None:
    for witness in _living:
        witness.renew()


os.register_at_fork(before=_step_aside, after_in_parent=_step_back, after_in_child=_renew)

FORKED = "forked: modules are seen, the driver's own compiler is not told of"
"""What a forked child can do. CUPTI starts a thread for its records in the process that subscribes first, a fork copies
no threads, and a child that asks for records waits for that thread for ever. Callbacks need no thread."""


def _is_forked() -> bool:
    return _subscriber not in (0, os.getpid())


class Refused(RuntimeError):
    """The witness cannot testify here; the message says why."""


def refusal() -> str:
    """Say why there can be no witness in this process; empty if there can.

    It really subscribes, for a moment. Asked before monitors are armed: it may run the user's C compiler.
    """
    try:
        library = _subscribed()
    except Refused as refused:
        return str(refused)
    library.stop()
    return ""


def _subscribed() -> Library:
    """Subscribe in this process, without records where it is a forked one; Refused says why that cannot be done."""
    global _subscriber
    _check_platform()
    activities = 0 if _is_forked() else JIT
    libcupti = _library.find_libcupti()
    if not libcupti:
        raise Refused(f"{_LEAD} libcupti is not installed (it comes with torch for CUDA and with the CUDA toolkit)")
    try:
        library = Library(build.library())
    except (build.BuildError, OSError) as error:
        raise Refused(f"{_LEAD} {error}") from error
    _subscriber = _subscriber or os.getpid()
    answer = library.start(libcupti, activities)
    if answer == 0 and activities and not library.activities & activities:
        library.stop()
        answer = library.start(libcupti, OVERHEAD)
    if answer:
        raise Refused(_words(answer, library.problem, libcupti))
    return library


_LEAD = "the CUPTI witness cannot testify:"


def _check_platform() -> None:
    if not sys.platform.startswith("linux"):
        raise Refused(f"{_LEAD} it works on Linux only")
    if not _library.has_driver():
        raise Refused(f"{_LEAD} there is no NVIDIA driver (libcuda.so.1)")


def _words(answer: int, problem: str, libcupti: str) -> str:
    """Say why CUPTI did not take us."""
    if answer == HELD:
        holder = next((tool for variable, tool in _PROFILERS.items() if os.environ.get(variable)), "")
        who = holder or "torch.profiler, Nsight, cuda-gdb, compute-sanitizer or another guard"
        return f"{_LEAD} a profiler holds CUPTI, which serves one at a time ({who}); {problem}"
    return f"{_LEAD} {libcupti} refuses: {problem}" + (f" (CUPTI's error {answer})" if answer > 0 else "")


class CuptiWitness(Monitor):
    """Sees every module that is loaded, and what the driver compiles, on any thread, whoever asked for it.

    It waits until something is imported that uses the driver, subscribes, and stays subscribed. What was loaded before
    is unknown to it, and asks for no event.
    """

    name = "cupti"
    target = ""
    is_net = True
    tells = Tells(identity="symbols of the kernels in the image", kinds=("compile", "cache_load"), cache_load=True)

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.library: Library | None = None
        self.accounted = 0
        """Modules, and compiles of the driver's, that some monitor's event accounts for."""
        self.unattributed: list[CompileEvent] = []
        self.lazily_loaded = 0
        """Modules of libraries, built ahead of time."""
        self._ledger = Ledger()
        self._backlog = Backlog()
        self._names: dict[int, str] = {}
        self._pending: list[Sighting] = []
        self._wanted = self._is_aside = False
        self._lock = threading.Lock()
        _living.add(self)

    # -- subscribing ---------------------------------------------------------------------------------------------------

    def install(self, module: ModuleType) -> None:
        """Wait for whatever uses the driver, or subscribe where it is there already."""
        self._wanted = True
        if _library.mapped("libcuda.so"):
            self._subscribe()
            return
        self.state, self.detail = "waiting", ""
        for name in DRIVER_USERS:
            when_imported(name, self._imported)

    def _imported(self, module: ModuleType) -> None:
        # A hook on an import cannot be taken back; it must not fail the import.
        if self._wanted and self.library is None and self.state == "waiting":
            try:
                self._subscribe()
            except Exception as error:  # noqa: BLE001 - told as blind, never to the program
                self.blind(f"{type(error).__name__}: {error}")

    def _subscribe(self) -> None:
        if not _library.has_driver():
            self.state, self.detail = "off", "there is no NVIDIA driver: nothing can be loaded"
            return
        try:
            self.library = _subscribed()
        except Refused as refused:
            self.blind(str(refused))
            return
        self.state = "unproven"
        self.prove()

    def uninstall(self) -> None:
        """Unsubscribe. What CUPTI costs it costs until the process ends."""
        self._wanted = False
        library, self.library = self.library, None
        if library is not None:
            library.stop()

    def restore(self) -> None:
        """Stop waiting: a set of monitors does not uninstall what it takes for waiting."""
        self.uninstall()

    def about_to_fork(self) -> None:
        """Leave CUPTI for the time of the fork, unless CUDA is used: so a child that can use it finds CUPTI idle.

        Otherwise the child's driver would call into a CUPTI whose thread is not there.
        """
        with self._lock:
            if self.library is not None and not _library.driver_is_initialised():
                self._is_aside = True
                self.library.stop()

    def has_forked(self) -> None:
        """Subscribe again, in the process that forked."""
        if self._is_aside:
            self._return()

    def _return(self) -> None:
        try:
            self.library = _subscribed()
        except Refused as refused:
            self.library = None
            self.blind(str(refused))
        self._is_aside = False

    def renew(self) -> None:
        """Start anew in the forked child that calls this; be off where its parent uses CUDA, so that it cannot."""
        self._lock = threading.Lock()
        self._pending, self._ledger, self.unattributed = [], Ledger(), []
        self._backlog, self._names = Backlog(), {}
        self.accounted = self.lazily_loaded = 0
        if self.library is None:
            return
        self.library.forked()
        if self._is_aside:
            self.state, self.detail = "unproven", ""
            self._return()
            self.prove()
        else:
            self.library = None
            self.state, self.detail = "off", "forked from a process that uses CUDA, this one cannot"

    # -- looking -------------------------------------------------------------------------------------------------------

    def prove(self) -> None:
        """Look whether CUPTI still calls us. A canary would need a CUDA context, so there is none."""
        if self.library is None or self._is_aside:
            return
        if not self.library.is_alive():
            self.blind("CUPTI calls no more: somebody finalised it or took the subscription away")
        elif self.state == "unproven":
            self.state, self.detail = "armed", FORKED if _is_forked() else ""

    def flush(self) -> None:
        """Take over what CUPTI has told since."""
        with self._lock:
            library = self.library
            if library is None:
                return
            records = self._take(library)
            seen = accounting.gather(records, self._names, _read)
            self._pending += seen.sightings
            self.lazily_loaded += seen.library
        lost = library.lost()
        if lost:
            self.blind(f"{lost} records of CUPTI's came faster than they could be kept")

    def _take(self, library: Library) -> list[Record]:
        """Return the records that are complete. A thread may be gone when its last call is."""
        before = library.take()
        library.flush()
        waited = {record.thread for record in self._backlog.waiting}
        self._names = {number: name for number, name in self._names.items() if number in waited} | _names()
        return self._backlog.complete(before, library.take())

    def reconcile(self) -> None:
        """Hold what was loaded and compiled against the events of all monitors; what is left over is unattributed."""
        self.prove()
        with self._lock:
            pending, self._pending = self._pending, []
        if not pending:
            return
        living = [thread.name for thread in threading.enumerate()]
        left: list[Sighting] = []
        for sighting, event in self._ledger.account(pending, list(self.recorder.events), living):
            if event is None:
                left.append(sighting)
            else:
                self.accounted += 1
                self.recorder.corroborate(event, self.name)
        self.unattributed += [self._report(sighting) for sighting in accounting.joined(left)]

    def _report(self, seen: Sighting) -> CompileEvent:
        kernel = shown(seen.kernels[0]) if seen.kernels else "a kernel without a name"
        event = self.recorder.begin(UNATTRIBUTED, kernel, "", kind=seen.kind, started=seen.started, thread=seen.thread)
        if seen.image:
            self._ledger.close(event)  # a compile without a load has that to come
        what = told(seen)
        status = "failed" if seen.failed else "ok"
        reason = f"{what}, and no monitor accounts for it"
        self.recorder.end(
            event, ended=seen.ended, status=status, stages=seen.stages, detail=f"{what} (CUPTI)", reason=reason
        )
        return event


def _read(path: str) -> bytes:
    """Return what a file begins with that the driver has loaded; nothing if it is gone."""
    try:
        with Path(path).open("rb") as file:
            return file.read(LARGE)
    except OSError:
        return b""


def _names() -> dict[int, str]:
    """Return threads' names by their numbers: the system's, and those of pthreads, which older CUPTIs tell."""
    running = threading.enumerate()
    names = {(thread.ident or 0) & 0xFFFFFFFF: thread.name for thread in running}
    names |= {thread.native_id: thread.name for thread in running if thread.native_id}
    # A forked child's main thread has its parent's number in Python 3.11.
    return names | {
        os.getpid(): threading.main_thread().name,
        threading.get_native_id(): threading.current_thread().name,
    }


def told(seen: Sighting) -> str:
    """Say what was seen: `a module of 14 KB (cubin, 2 kernels) was loaded by cuModuleLoadData on thread worker`."""
    where = f"on thread {seen.thread}" if seen.is_known else f"on {seen.thread}"
    compiled = ", ".join(f"{stage} in {seconds * 1e3:.0f} ms" for stage, seconds in seen.stages.items())
    by_driver = f"the driver's compiler ran ({compiled})" if compiled else ""
    if not seen.image:
        return f"{by_driver} {where}"
    size = f" of {_kilobytes(seen.image.size)}" if seen.image.size else ""
    more = f", {len(seen.kernels)} kernels" if len(seen.kernels) > 1 else ""
    verb = "could not be loaded" if seen.failed else "was loaded"
    text = f"a module{size} ({seen.image.kind}{more}) {verb} by {seen.call} {where}"
    return f"{text}; {by_driver}" if by_driver else text


def _kilobytes(size: int) -> str:
    return f"{size / 1024:.0f} KB" if size >= 1024 else f"{size} bytes"
