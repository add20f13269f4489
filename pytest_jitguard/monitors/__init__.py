"""Monitors watch one JIT system each; this module holds their contract and the set of them that a process arms."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

from pytest_jitguard.core.keys import Change
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.patching import PatchSet, is_initialising, when_imported

__all__ = ["AUTO", "BUILTIN", "Builtin", "Monitor", "MonitorError", "MonitorSet", "PatchSet", "Tells", "load"]


class Builtin(NamedTuple):
    """A monitor of ours: where its class is, and the module that it waits for (empty: nothing).

    One that is not `in_children` watches for all processes from the guard. One that is not `auto` has to be asked for.
    `also` are other names of the library: whichever is imported first is watched.
    """

    path: str
    target: str
    in_children: bool = True
    auto: bool = True
    also: tuple[str, ...] = ()


_HERE = "pytest_jitguard.monitors"

BUILTIN: Mapping[str, Builtin] = {
    "triton": Builtin(f"{_HERE}.triton:TritonMonitor", "triton"),
    "dynamo": Builtin(f"{_HERE}.dynamo:DynamoMonitor", "torch._dynamo.convert_frame"),
    "inductor": Builtin(f"{_HERE}.inductor:InductorMonitor", "torch._inductor.compile_fx"),
    "deep_gemm": Builtin(f"{_HERE}.deep_gemm:DeepGemmMonitor", "deep_gemm", also=("vllm.third_party.deep_gemm",)),
    "flashinfer": Builtin(f"{_HERE}.flashinfer:FlashInferMonitor", "flashinfer.jit"),
    "aiter": Builtin(f"{_HERE}.aiter:AiterMonitor", "aiter.jit.core"),
    "tvm_ffi": Builtin(f"{_HERE}.tvm_ffi:TvmFfiMonitor", "tvm_ffi.cpp.extension"),
    "sglang_jit": Builtin(f"{_HERE}.sglang_jit:SglangJitMonitor", "sglang.kernels.jit.utils.compile.loader"),
    "cpp_extension": Builtin(f"{_HERE}.cpp_extension:CppExtensionMonitor", "torch.utils.cpp_extension"),
    "cutedsl": Builtin(f"{_HERE}.cutedsl:CuteDslMonitor", "cutlass.cute"),
    "tilelang": Builtin(f"{_HERE}.tilelang:TileLangMonitor", "tilelang"),
    "nvrtc": Builtin(f"{_HERE}.nvrtc:NvrtcMonitor", "cuda.bindings.nvrtc"),
    "cuda_core": Builtin(f"{_HERE}.nvrtc:CudaCoreMonitor", "cuda.core._program"),
    "torch_nvrtc": Builtin(f"{_HERE}.nvrtc:TorchNvrtcMonitor", "torch.cuda"),
    "cupy": Builtin(f"{_HERE}.cupy:CupyMonitor", "cupy.cuda.compiler"),
    "numba": Builtin(f"{_HERE}.numba:NumbaMonitor", "numba"),
    "numba_cuda": Builtin(f"{_HERE}.numba_cuda:NumbaCudaMonitor", "numba.cuda.dispatcher"),
    "jax": Builtin(f"{_HERE}.jax:JaxMonitor", "jax._src.compiler"),
    # Nets, after the monitors whose events they ask for.
    "toolchain": Builtin(f"{_HERE}.toolchain:ToolchainMonitor", ""),
    "cache_folders": Builtin(f"{_HERE}.cache_folders:CacheFolderMonitor", "", in_children=False),
    "cupti": Builtin("pytest_jitguard.witness.cupti:CuptiWitness", "", auto=False),
}
"""Monitors by name; import strings, so that a child process loads a monitor together with its library, not before."""

AUTO = tuple(name for name, builtin in BUILTIN.items() if builtin.auto)
"""What `--jitguard-monitors=auto` arms when it gets imported."""


class Tells(NamedTuple):
    """What a monitor can tell of its system, for people who choose and for the table in the documentation.

    `identity` says what names a compile, `key` which components of it are known, `reason` how far the cause is known;
    empty for what cannot be told. `kinds` are the kinds of its events, `cache_load` whether a load from disk is told
    from a compile, `children` whether it also watches where pytest does not run.
    """

    identity: str
    key: str = ""
    reason: str = ""
    kinds: tuple[str, ...] = ("compile",)
    cache_load: bool = False
    children: bool = True


class MonitorError(ValueError):
    """A monitor that was asked for by name and cannot be had."""


class Monitor:
    """The contract: wait for a library, observe its misses, report to a recorder, prove to be alive, leave no trace.

    Subclasses set `name` and `target` (the module to wait for) and implement `install`, `uninstall` and `prove`; the
    rest has defaults for systems that cannot tell. No method may raise into the watched library.

    From its hooks, on whatever thread, a monitor calls `recorder.begin` before the compile goes on, `recorder.end` when
    it is over (`status="failed"` if it raised), and `recorder.finished` as its very last act, which may raise.
    `PatchSet` replaces attributes of the library and puts back what is still its own.

    `state` is `waiting` (library not imported) until the set of monitors makes it `unproven` (hook in place, no proof
    yet or none possible) and calls `install`. From then on the monitor itself sets it: `prove` to `armed` (a canary
    went through the library's compiler and was seen) or back to `unproven`; `blind(why)` where it is no longer reached.
    """

    name: ClassVar[str]
    target: ClassVar[str]
    """The module whose import it waits for; empty if it watches no library and hooks in at once."""
    tells: ClassVar[Tells]
    tested: ClassVar[str] = ""
    """The versions of the library that it was tested with, as a specifier (PEP 440); empty if that does not matter."""
    distribution: ClassVar[str] = ""
    """The package on PyPI, where that has another name than what is imported."""
    also: ClassVar[tuple[str, ...]] = ()
    """Other names under which the library may be imported; whichever comes first is watched."""
    looks_always: ClassVar[bool] = False
    """It has something to look at in each phase's end even while its library is not imported here."""
    can_forget: ClassVar[bool] = False
    is_net: ClassVar[bool] = False
    """It watches no system of its own, but what others missed: that it is armed proves nothing."""
    waived: frozenset[str] = frozenset()
    """The findings that this run waived, by name."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.state = "waiting"
        self.detail = ""
        self.version = ""
        self.has_seen = False
        """A compile went through this monitor's hooks, be it a canary: more than that they are in place."""

    def prepare(self) -> None:
        """Do in the guard what must stand before the library is imported, here or in a child: set a variable."""

    def restore(self) -> None:
        """Undo what `prepare` did."""

    def install(self, module: ModuleType) -> None:
        """Take hold of the library, whose import has just finished. Raise to be called blind."""
        raise NotImplementedError

    def uninstall(self) -> None:
        """Remove every hook that is still ours."""
        raise NotImplementedError

    def prove(self) -> None:
        """Send a canary through the library's compiler if the hook is not proven; set the state accordingly."""
        raise NotImplementedError

    def flush(self) -> None:
        """Close the events that are over though nobody said so (compiles that raised)."""

    def resident(self) -> dict[Hashable, str]:
        """Return the variants in the library's in-process caches: opaque token to `module.kernel`."""
        return {}

    def reconcile(self) -> None:
        """Compare what is resident with the events seen; what no event announced makes the monitor blind."""

    def forget(self, tokens: Iterable[Hashable]) -> None:
        """Take variants out of the lookup and keep the objects alive; a captured graph may hold them."""

    def recall(self, tokens: Iterable[Hashable]) -> None:
        """Put forgotten variants back into the lookup."""

    def refuse(self, on: bool) -> None:
        """Switch the library's own "do not compile now" on or off, if it has one (`--jitguard-deny`).

        Called with False only after True, and then also if blind; in the process of pytest, not in children.
        """

    def advice(self, changes: Sequence[Change]) -> str:
        """Say what could be changed in the kernel instead of the warmup, with its price; empty if nothing."""
        return ""

    def version_of(self, module: ModuleType) -> str:
        """Return the version of the library, empty if it cannot be told."""
        top = self.target.partition(".")[0]
        known = getattr(module, "__version__", "") or getattr(sys.modules.get(top), "__version__", "")
        if known:
            return str(known)
        from importlib import metadata  # 40 ms that a child process need not spend at its start

        try:
            return metadata.version(self.distribution or top)
        except metadata.PackageNotFoundError:
            return ""

    def untested(self) -> str:
        """Say that the library's version is none of those that were tested, empty if it is one."""
        from packaging.specifiers import SpecifierSet
        from packaging.version import InvalidVersion, Version

        try:
            known = not self.tested or SpecifierSet(self.tested).contains(Version(self.version), prereleases=True)
        except InvalidVersion:
            known = False
        return "" if known else f"version {self.version or 'unknown'} is untested (tested: {self.tested})"

    def blind(self, why: str) -> None:
        """Note that the library is no longer seen. Blind once is blind for the session."""
        if self.state != "blind":
            self.state, self.detail = "blind", why

    def to_wire(self) -> dict[str, Any]:
        """Return name, state, version and detail, for journal and report."""
        told = {"name": self.name, "state": self.state, "version": self.version, "detail": self.detail}
        return {**told, "has_seen": self.has_seen, "net": self.is_net}


class MonitorSet:
    """The monitors of one process.

    `on_change` hears of each monitor whose name, state, version or detail is not what it heard last. It must not raise.
    """

    def __init__(
        self,
        names: Sequence[str],
        recorder: Recorder,
        waived: frozenset[str] = frozenset(),
        *,
        on_change: Callable[[Monitor], None] | None = None,
    ) -> None:
        self.on_change = on_change
        self._told: dict[str, dict[str, Any]] = {}
        self.explicit = tuple(name for name in names if name != "auto")
        wanted = AUTO if "auto" in names else ()
        self.monitors: list[Monitor] = [load(name)(recorder) for name in dict.fromkeys([*wanted, *self.explicit])]
        for monitor in self.monitors:
            monitor.waived = waived
        self._recorder, self._waived = recorder, waived
        self._pending: list[Monitor] = []
        self._armed = False
        self._denied: frozenset[str] = frozenset()
        self._refusing: set[str] = set()

    def __iter__(self) -> Any:
        return iter(self.monitors)

    def arm(self) -> None:
        """Wait for each library, or hook in at once where it is imported already."""
        self._armed = True
        for monitor in self.monitors:
            if not monitor.target:
                self._installer(monitor)(sys.modules[__name__])
                continue
            if not when_imported(monitor.target, self._installer(monitor)):
                self._pending.append(monitor)
            for name in monitor.also:
                when_imported(name, self._installer(monitor))

    def prepare(self) -> None:
        """Do what must stand before any library is imported; the guard does, its children inherit it."""
        for monitor in self.monitors:
            _quietly(monitor, monitor.prepare)

    def add(self, name: str, module: ModuleType) -> None:
        """Take in one more monitor, whose library has just been imported; MonitorError if it cannot be had."""
        if any(monitor.name == name for monitor in self.monitors):
            return  # its library came under another name
        monitor = load(name)(self._recorder)
        monitor.waived = self._waived
        self.monitors.append(monitor)
        self._installer(monitor)(module)

    def _installer(self, monitor: Monitor) -> Callable[[ModuleType], None]:
        def install(module: ModuleType) -> None:
            # wrapt hooks cannot be unregistered: after disarm() they must do nothing.
            if not self._armed or monitor.state != "waiting":
                return
            try:
                monitor.state = "unproven"
                if monitor.target:
                    monitor.version = monitor.version_of(module)
                    monitor.detail = monitor.untested()
                monitor.install(module)
            except Exception as error:  # noqa: BLE001 - an exception here would make the user's import fail
                monitor.blind(f"could not hook in: {type(error).__name__}: {error}")
            if monitor.name in self._denied:
                self._refuse(monitor, True)
            self.tell()

        return install

    @property
    def unattended(self) -> list[Monitor]:
        """The monitors whose library is half imported: `settle` hooks in when that is done."""
        return list(self._pending)

    def seen(self, system: str) -> None:
        """Take an event of a system for the proof of its monitor: where no canary is sent, the first one is."""
        monitor = self.named(system)
        if monitor is None or (monitor.has_seen and monitor.state != "unproven"):
            return
        monitor.has_seen = True
        if monitor.state == "unproven":
            monitor.state = "armed"
            monitor.detail = "; ".join(filter(None, ("proven by its first event", monitor.untested())))
        self.tell()

    def refuse(self, names: Iterable[str], on: bool) -> None:
        """Switch the libraries' own "do not compile now" on or off; what is imported meanwhile is switched on, too."""
        self._denied = frozenset(names) if on else frozenset()
        for monitor in self.monitors:
            if monitor.name in names:
                self._refuse(monitor, on)

    def _refuse(self, monitor: Monitor, on: bool) -> None:
        """Switch one on where there is something to switch, and off whatever was switched on, also if blind by now."""
        hooked = monitor.state in ("armed", "unproven") or (monitor.looks_always and monitor.state == "waiting")
        if on == (monitor.name in self._refusing) or (on and not hooked):
            return

        def refuse() -> None:
            monitor.refuse(on)

        self._refusing ^= {monitor.name}
        _quietly(monitor, refuse)

    def tell(self) -> None:
        """Tell `on_change` of every library that is watched and whose monitor has changed since."""
        for monitor in self.monitors if self.on_change else ():
            state = monitor.to_wire()
            if monitor.state != "waiting" and self._told.get(monitor.name) != state:
                self._told[monitor.name] = state
                if self.on_change:
                    self.on_change(monitor)

    def tell_anew(self, on_change: Callable[[Monitor], None]) -> None:
        """Tell somebody else how every monitor stands, and what changes from now on: a forked child does."""
        self.on_change = on_change
        self._told.clear()
        self.tell()

    def settle(self) -> None:
        """At a phase's end: hook into what finished importing, close events that are over, check what is resident."""
        for monitor in [m for m in self._pending if not is_initialising(m.target)]:
            self._pending.remove(monitor)
            when_imported(monitor.target, self._installer(monitor))
        self._look(monitor for monitor in self.monitors if not monitor.is_net)

    def account(self) -> None:
        """Let the nets look for what no monitor reported, once everybody else's events are known."""
        self._look(monitor for monitor in self.monitors if monitor.is_net)

    def _look(self, monitors: Iterable[Monitor]) -> None:
        for monitor in monitors:
            looks = self._armed and monitor.looks_always and monitor.state == "waiting"
            if looks or monitor.state in ("armed", "unproven"):
                _quietly(monitor, monitor.flush)
                _quietly(monitor, monitor.reconcile)
        self.tell()

    def prove(self) -> None:
        """Run the canaries that are due."""
        for monitor in self.monitors:
            if monitor.state in ("armed", "unproven"):
                _quietly(monitor, monitor.prove)
        self.tell()

    def disarm(self) -> None:
        """Remove every hook, last armed first."""
        self._armed = False
        for monitor in reversed(self.monitors):
            if monitor.state not in ("waiting", "off"):
                _quietly(monitor, monitor.uninstall)
            _quietly(monitor, monitor.restore)

    def proven(self) -> list[str]:
        """Return the systems that are watched, as some compile has shown: that hooks are in place proves nothing."""
        return sorted(monitor.name for monitor in self if monitor.state == "armed" and monitor.has_seen)

    def named(self, name: str) -> Monitor | None:
        """Return the monitor of a system."""
        return next((monitor for monitor in self.monitors if monitor.name == name), None)


def _quietly(monitor: Monitor, action: Callable[[], None]) -> None:
    try:
        action()
    except Exception as error:  # noqa: BLE001 - a monitor that fails is blind, and must not fail the user's test
        monitor.blind(f"{action.__name__}() failed: {type(error).__name__}: {error}")


def load(name: str) -> type[Monitor]:
    """Return the class of a monitor by its name or `package.module:Class`; MonitorError says why there is none."""
    path = BUILTIN[name].path if name in BUILTIN else name
    module, colon, attribute = path.partition(":")
    if not colon:
        raise MonitorError(f"unknown monitor {name!r}; expected auto, {', '.join(BUILTIN)}, or package.module:Class")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise MonitorError(f"monitor {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Monitor)):
        raise MonitorError(f"monitor {name!r} is not a subclass of pytest_jitguard.monitors.Monitor")
    return found
