"""Watches TileLang: what it compiles, what it loads from its disk cache, and what its autotuner tries."""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import Hashable, Iterator, Sequence
from types import FrameType, ModuleType
from typing import Any, ClassVar

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.keys import Change, Component, SpecializationKey
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Tells
from pytest_jitguard.monitors._frames import frames_of
from pytest_jitguard.monitors._tilelang_keys import Asked, name_of
from pytest_jitguard.monitors._wrapping import Compiling, WrappingMonitor

_AT_ONCE = "another thread was compiling the same kernel, and TileLang holds no lock while it compiles"

# 0.1.15 replaces the negative numbers in a factory's own list when it first compiles, and hashes the list as it is.
_REWRITTEN = "the same kernel was kept under another hash: its out_idx was {before} and is {now} now"


class TileLangMonitor(WrappingMonitor):
    """Hooks sit where only misses pass.

    `JITKernel._compile_and_create_adapter` runs for a cold compile, `_create_adapter_from_database` for a load from
    disk; what is found in memory passes neither. A factory that fails before it has built a program is not seen.
    """

    name: ClassVar[str] = "tilelang"
    target: ClassVar[str] = "tilelang"
    tested: ClassVar[str] = ">=0.1.12,<=0.1.15"
    tells: ClassVar[Tells] = Tells(
        identity="module and name of the factory, and the program's global symbol",
        key="the factory's arguments, buffers (type and shape), out_idx, pass configs, flags, backend, target",
        reason="several threads that compile one kernel at once",
        kinds=("compile", "cache_load", "autotune"),
        cache_load=True,
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._running: dict[Hashable, object] = {}
        self._seen: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._kept: dict[tuple[str, SpecializationKey], tuple[str | None, str]] = {}
        self._runs: dict[int, contextlib.ExitStack] = {}
        self._tuning: dict[int, CompileEvent] = {}

    def hook_in(self, module: ModuleType) -> None:
        """Wrap what compiles, what loads, and what tunes where the version has an autotuner."""
        for cache in _caches():
            self._seen.update({kernel: _called(kernel) for kernel in cache.values()})
        kernels = sys.modules.get("tilelang.jit.kernel")
        self.wrap(kernels, "JITKernel._compile_and_create_adapter", self._compile)
        self.wrap(kernels, "JITKernel._create_adapter_from_database", self._load)
        tuner = sys.modules.get("tilelang.autotuner.tuner")
        if hasattr(getattr(tuner, "AutoTuner", None), "_prepare_compile_execution"):
            self.wrap(tuner, "AutoTuner.run", self._run)
            self.wrap(tuner, "AutoTuner._prepare_compile_execution", self._tune)

    # -- compiles and loads --------------------------------------------------------------------------------------------

    def _compile(self, original: Any, kernel: Any, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        with self._recorded("compile", kernel, frame, _of(args, kwargs, 0, "func"), _of(args, kwargs, 1, "out_idx")):
            del frame
            return original(kernel, *args, **kwargs)

    def _load(self, original: Any, kernel: Any, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        program, out_idx = _of(args, kwargs, 3, "func_or_mod"), _of(args, kwargs, 1, "result_idx")
        with self._recorded("cache_load", kernel, frame, program, out_idx) as told:
            told.detail = str(kwargs.get("kernel_lib_path", ""))
            del frame
            return original(kernel, *args, **kwargs)

    @contextlib.contextmanager
    def _recorded(self, kind: str, kernel: Any, frame: FrameType, program: Any, out_idx: Any) -> Iterator[Compiling]:
        asked: Asked | None = self.guarded("what is compiled", Asked.at, frame, kernel, program, out_idx)
        name, module = (asked.name, asked.module) if asked else ("unknown", "")
        with contextlib.ExitStack() as around:
            tuned = self.guarded("who tunes", self._tuned_by, frame)
            if tuned is not None:  # on a thread of the autotuner's pool
                around.enter_context(self.recorder.inside(tuned))
            told = around.enter_context(self.compiling(name, module, kind=kind, frame=frame))
            del frame
            if asked is not None:
                self.guarded("a compile's key", self._learn, told, asked)
                if kind == "compile":
                    around.enter_context(self._alone(told, asked))
            self._seen[kernel] = f"{module}.{name}" if module else name
            yield told

    def _learn(self, told: Compiling, asked: Asked) -> None:
        told.key, told.artifact_hash = asked.key(), asked.artifact_hash
        told.cure = asked.factory.cure() if asked.factory else ""
        told.reason = self._reason((f"{asked.module}.{asked.name}", told.key), asked)

    def _reason(self, kernel: tuple[str, SpecializationKey], asked: Asked) -> str:
        """Say why a kernel that was compiled is compiled again; empty if it was not, or its key tells why."""
        hash_, out_idx = self._kept.get(kernel, (asked.artifact_hash, ""))
        self._kept[kernel] = (asked.artifact_hash, str(asked.out_idx))
        if hash_ == asked.artifact_hash or out_idx == str(asked.out_idx):
            return ""
        return _REWRITTEN.format(before=out_idx, now=asked.out_idx)

    @contextlib.contextmanager
    def _alone(self, told: Compiling, asked: Asked) -> Iterator[None]:
        """Say so if another thread is compiling the same kernel already."""
        running = (os.getpid(), f"{asked.module}.{asked.name}", asked.artifact_hash, told.key)
        mine = object()
        if self._running.setdefault(running, mine) is not mine:
            told.reason = _AT_ONCE
        try:
            yield
        finally:
            if self._running.get(running) is mine:
                del self._running[running]

    # -- the autotuner -------------------------------------------------------------------------------------------------

    def _run(self, original: Any, tuner: Any, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as run:
            self._runs[id(tuner)] = run
            try:
                return original(tuner, *args, **kwargs)
            finally:
                self._runs.pop(id(tuner), None)
                self._tuning.pop(id(tuner), None)

    def _tune(self, original: Any, tuner: Any, *args: Any, **kwargs: Any) -> Any:
        """Begin the event: whatever was tuned before, in memory or on disk, has been looked for in vain."""
        run = self._runs.get(id(tuner))
        if run is not None:
            name, module = self.guarded("what is tuned", name_of, getattr(tuner, "fn", None)) or ("", "")
            told = run.enter_context(self.compiling(name or "unknown", module, kind="autotune", frame=sys._getframe(1)))
            self.guarded("a tuning key", self._learn_tuning, told, tuner)
        return original(tuner, *args, **kwargs)

    def _learn_tuning(self, told: Compiling, tuner: Any) -> None:
        if told.event is not None:
            self._tuning[id(tuner)] = told.event
        args, kwargs = getattr(tuner, "_kernel_parameters", None) or ((), ())
        positional = [(str(number), value) for number, value in enumerate(args)]
        names = list(getattr(tuner, "_function_parameters", None) or {})
        named = [(names[int(number)] if int(number) < len(names) else number, value) for number, value in positional]
        told.key = SpecializationKey(
            tuple(Component(str(name), "tuning", "", str(value)[:120]) for name, value in (*named, *kwargs))
        )
        configs = getattr(tuner, "configs", ())
        told.detail = f"{len(configs)} configurations" if isinstance(configs, Sequence) else ""

    def _tuned_by(self, frame: FrameType) -> CompileEvent | None:
        """Return the autotuner's event of whose pool a thread is."""
        if not self._tuning or self.recorder.enclosing() is not None:
            return None
        held = (id(above.f_locals.get("self")) for above in frames_of(frame))
        return next((self._tuning[tuner] for tuner in held if tuner in self._tuning), None)

    # -- what is resident ----------------------------------------------------------------------------------------------

    def resident(self) -> dict[Hashable, str]:
        """Return what TileLang's memory cache holds."""
        return {
            hash_: self._seen.get(kernel) or _called(kernel) for cache in _caches() for hash_, kernel in cache.items()
        }

    def reconcile(self) -> None:
        """Look whether the hooks are reached, and whether they saw all that is resident."""
        super().reconcile()
        for cache in _caches():
            unseen = [kernel for kernel in cache.values() if kernel not in self._seen]
            if unseen:
                self.blind(f"{_called(unseen[0])} is resident in TileLang's cache, and no event announced it")

    def advice(self, changes: Sequence[Change]) -> str:
        """Say that a dimension need not be fixed."""
        served = [change.served for change in changes if change.served is not None]
        shapes = [c.name for c in served if c.role == "argument" and c.value.startswith("[")]
        if not shapes:
            return ""
        return f"a dimension of {' and '.join(shapes)} that varies can be T.dynamic(...): one kernel for all its values"


def _of(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, kwargs.get("tilelang_func"))


def _caches() -> list[dict[str, Any]]:
    """Return the memory caches, of which there is one for each execution backend; copies, since threads fill them."""
    found = sys.modules.get("tilelang.cache")
    maps = (getattr(found, name, {}) for name in ("_dispatch_map", "_ascend_dispatch_map"))
    return [dict(getattr(cache, "_memory_cache", {})) for by_backend in maps for cache in by_backend.values()]


def _called(kernel: Any) -> str:
    attributes = getattr(getattr(kernel, "prim_func", None), "attrs", None) or {}
    return str(attributes.get("global_symbol", "unknown"))
