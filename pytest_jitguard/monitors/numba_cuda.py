"""Watch numba.cuda: versions of kernels and device functions, compiled or loaded from a kernel's disk cache.

The same module comes from the package numba-cuda or, up to some release, from numba itself.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Tells
from pytest_jitguard.monitors._numba_types import hash_of, key_of, names_of
from pytest_jitguard.monitors._wrapping import Compiling, WrappingMonitor


class _Thread(threading.local):
    """How the kernel was had that a thread asked for last; empty if another thread had just made it."""

    kind: str = ""


class NumbaCudaMonitor(WrappingMonitor):
    """The monitor of `numba.cuda.dispatcher.CUDADispatcher`, and of explicit compiles such as `cuda.compile_ptx`."""

    name: ClassVar[str] = "numba_cuda"
    target: ClassVar[str] = "numba.cuda.dispatcher"
    distribution: ClassVar[str] = "numba-cuda"
    tested: ClassVar[str] = "==0.30.*"
    tells: ClassVar[Tells] = Tells(
        identity="module and qualified name of the function",
        key="types of the arguments, flags",
        reason="nearest compiled version",
        kinds=("compile", "cache_load", "lock_wait"),
        cache_load=True,
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._here = _Thread()
        self._is_numbas = False

    def hook_in(self, module: ModuleType) -> None:
        """Wrap what a launch asks for a version, what a caller of device code asks, and explicit compiles."""
        self._hidden = (*self._hidden, f"{Path(module.__file__ or '').parent}/")
        self._module = module
        self.wrap(module, "CUDADispatcher.compile", self._compile)
        self.wrap(module, "_Kernel.__init__", self._made)
        self.wrap(module, "CUDACache.load_overload", self._load)
        if hasattr(module.CUDADispatcher, "compile_device"):
            self.wrap(module, "CUDADispatcher.compile_device", self._compile_device)
        compiler = sys.modules.get("numba.cuda.compiler")
        if compiler is not None:
            explicit = "_compile_pyfunc_with_fixup" if hasattr(compiler, "_compile_pyfunc_with_fixup") else "compile"
            self.wrap(compiler, explicit, self._compile_explicitly)

    def version_of(self, module: ModuleType) -> str:
        """Return the version of numba-cuda, or of numba if that is where the module comes from."""
        self._is_numbas = "numba_cuda" not in (module.__file__ or "")
        try:
            return metadata.version("numba" if self._is_numbas else "numba-cuda")
        except metadata.PackageNotFoundError:
            return ""

    def untested(self) -> str:
        """Say that the version is none of those that were tested; that of numba is not compared with numba-cuda's."""
        if self._is_numbas:
            return (
                f"numba's own numba.cuda, here of numba {self.version}, is untested; numba-cuda {self.tested} is tested"
            )
        return super().untested()

    def _compile(self, compile: Callable[..., Any], dispatcher: Any, signature: Any, *args: Any, **kwargs: Any) -> Any:
        types = self.guarded("a kernel", self._types, signature)
        if types is None or getattr(dispatcher, "specialized", False) or types in dispatcher.overloads:
            return compile(dispatcher, signature, *args, **kwargs)
        with self.compiling(*names_of(dispatcher.py_func)) as told:
            self.guarded("a kernel", _describe, told, dispatcher.py_func, types, dispatcher.targetoptions)
            self._here.kind = ""
            version = compile(dispatcher, signature, *args, **kwargs)
            told.kind = self._here.kind or "lock_wait"
            return version

    def _made(self, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._here.kind = "compile"
        return make(*args, **kwargs)

    def _load(self, load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        kernel = load(*args, **kwargs)
        if kernel is not None:  # and if it turns out to be unfit, it is made after all
            self._here.kind = "cache_load"
        return kernel

    def _compile_device(
        self, compile: Callable[..., Any], dispatcher: Any, types: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if types in dispatcher.overloads:
            return compile(dispatcher, types, *args, **kwargs)
        with self.compiling(*names_of(dispatcher.py_func)) as told:
            self.guarded("a device function", _describe, told, dispatcher.py_func, types, dispatcher.targetoptions)
            return compile(dispatcher, types, *args, **kwargs)

    def _compile_explicitly(
        self, compile: Callable[..., Any], function: Any, signature: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Record a compile whose result the caller gets: there is no cache, it compiles at every call."""
        with self.compiling(*names_of(function)) as told:
            types = self.guarded("a function", self._types, signature) or ()
            self.guarded("a function", _describe, told, function, types, kwargs)
            return compile(function, signature, *args, **kwargs)

    def _types(self, signature: Any) -> tuple[Any, ...]:
        return tuple(self._module.sigutils.normalize_signature(signature)[0])


def _describe(told: Compiling, function: Any, types: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    told.key = key_of(function, types, options)
    told.artifact_hash = hash_of(function, types, options)
