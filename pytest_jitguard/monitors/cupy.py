"""Watch CuPy: NVRTC and nvcc runs for its own kernels and for raw ones, and loads from its kernel cache.

CuPy calls NVRTC from compiled code, so no other monitor sees it. Kernels that the process has never reach these
functions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Tells
from pytest_jitguard.monitors._cuda_source import digest, kernel_name, kernels_in_source, key_of, text_of
from pytest_jitguard.monitors._wrapping import Compiling, HookGone, WrappingMonitor

_COLD: Mapping[str, tuple[str, ...]] = {
    "nvrtc": ("_compile_using_nvrtc_no_warning", "compile_using_nvrtc"),
    "nvcc": ("compile_using_nvcc",),
    "hipcc": ("compile_using_hipcc",),
}
"""The functions that run a compiler, by its name; of several the first that there is, for it is called by the rest."""

_WIDE = "_compile_module_with_cache"


class CupyMonitor(WrappingMonitor):
    """The monitor of `cupy.cuda.compiler`."""

    name: ClassVar[str] = "cupy"
    target: ClassVar[str] = "cupy.cuda.compiler"
    tested: ClassVar[str] = "==14.2.*"
    tells: ClassVar[Tells] = Tells(
        identity="the kernel in the source, or the expression that was asked for",
        key="template arguments, macros, options, target, hash of the source",
        reason="nearest compiled kernel",
        kinds=("compile", "cache_load"),
        cache_load=True,
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._local = threading.local()

    def hook_in(self, module: ModuleType) -> None:
        """Wrap the look-up in the kernel cache, and each compiler below it."""
        self.wrap(module, _WIDE, self._look_up)
        wrapped = 0
        for tool, names in _COLD.items():
            name = next((name for name in names if hasattr(module, name)), "")
            if name:
                self.wrap(module, name, self._runner(tool))
                wrapped += 1
        if not wrapped:
            raise HookGone(f"cupy.cuda.compiler {self.version} has no function that runs a compiler")
        self._hidden = (*self._hidden, f"{Path(module.__file__ or '').parents[2] / 'cupyx'}/")

    @property
    def _open(self) -> list[Compiling]:
        """The look-ups that are under way on this thread."""
        stack: list[Compiling] = self._local.__dict__.setdefault("open", [])
        return stack

    def _look_up(self, look_up: Callable[..., Any], source: Any, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(("options",), args, strict=False)), **kwargs}
        with self.compiling(_name(source, given)) as told:
            told.kind = "cache_load"
            self.guarded("a kernel", _describe, told, source, given)
            self._open.append(told)
            try:
                return look_up(source, *args, **kwargs)
            finally:
                self._open.pop()

    def _runner(self, tool: str) -> Callable[..., Any]:
        def run(compile: Callable[..., Any], source: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._open:
                return self._alone(compile, source, args, kwargs)
            looked_up = self._open[-1]
            if source:  # an empty one asks the compiler for its version, once in a process, whatever the cache has
                looked_up.kind = "compile"
            started = monotonic()
            try:
                return compile(source, *args, **kwargs)
            finally:
                earlier = looked_up.stages.get(tool, 0.0)
                looked_up.stages = {**looked_up.stages, tool: earlier + monotonic() - started}

        return run

    def _alone(self, compile: Callable[..., Any], source: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a compiler that somebody runs past the cache."""
        given = {**dict(zip(("options", "arch"), args, strict=False)), **kwargs}
        with self.compiling(_name(source, given)) as told:
            self.guarded("a kernel", _describe, told, source, given)
            return compile(source, *args, **kwargs)


def _expressions(given: Mapping[str, Any]) -> list[str]:
    return [text_of(expression) for expression in given.get("name_expressions") or ()]


def _name(source: Any, given: Mapping[str, Any]) -> str:
    return kernel_name(_expressions(given), kernels_in_source(source))


def _describe(told: Compiling, source: Any, given: Mapping[str, Any]) -> None:
    arch, backend = text_of(given.get("arch")), text_of(given.get("backend"))
    options = [*([f"-arch=sm_{arch}"] if arch else []), *map(text_of, given.get("options") or ())]
    whole = digest(source)
    told.key = key_of(options, _expressions(given), backend=backend, source=whole[:12])
    told.artifact_hash = digest(whole, backend, *options, *sorted(_expressions(given)))
