"""The monitor of AITER: modules that `compile_ops` builds on first use, and the template kernels of cpp_itfs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Tells
from pytest_jitguard.monitors._builds import BuildMonitor, baton_holder, identity, parameters

_TEMPLATES = "csrc.cpp_itfs.utils"
_BATON = "aiter.jit.utils.file_baton"


class _Asked(threading.local):
    """What this thread asked AITER to build: the name of the module, the file that it becomes."""

    name = ""
    artifact: Path | None = None


class AiterMonitor(BuildMonitor):
    """Sees builds where they begin: inside AITER's lock. Who comes second waits for the lock and builds nothing."""

    name: ClassVar[str] = "aiter"
    target: ClassVar[str] = "aiter.jit.core"
    distribution: ClassVar[str] = "amd-aiter"
    tested: ClassVar[str] = "==0.1.7.post2.dev18"
    tells: ClassVar[Tells] = Tells(
        identity="name of the module, variants named after dtypes",
        key="parameters in the name",
        reason="no library in the folder, or one for another GPU",
        kinds=("compile", "cache_load", "lock_wait"),
        cache_load=True,
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._asked = _Asked()

    def hook_in(self, module: ModuleType) -> None:
        """Take module builds, the lock around them, first imports, and, once imported, the templates' builds."""
        self._jit_dir = getattr(module, "get_user_jit_dir", None)
        self.wrap(module, "build_module", self._build_module)
        self.wrap(module, "mp_lock", self._locked)
        self.wrap(module, "FileBaton.wait", self._wait)
        if callable(getattr(module, "get_module_custom_op", None)):
            self.wrap(module, "get_module_custom_op", self._load)
        self.hook_later(_TEMPLATES, self._hook_templates)
        self.hook_later(_BATON, self._hook_baton)

    def _hook_templates(self, module: ModuleType) -> None:
        self._hidden += (f"{Path(module.__file__ or '').parent}/",)
        self.wrap(module, "compile_lib", self._compile_lib)
        self.wrap(module, "mp_lock", self._locked)
        if callable(getattr(module, "compile_hsaco", None)):  # not in the wheels of 0.1.7
            self.wrap(module, "compile_hsaco", self._compile_hsaco)

    def _hook_baton(self, module: ModuleType) -> None:
        # AITER imports this file under two names, so there are two classes.
        self.wrap(module, "FileBaton.wait", self._wait)

    # -- what is asked for ---------------------------------------------------------------------------------------------

    def _build_module(self, build: Callable[..., Any], md_name: str, *args: Any, **kwargs: Any) -> Any:
        folder = self.guarded("AITER's folder", self._jit_dir) if self._jit_dir else None
        return self._ask(md_name, Path(folder, f"{md_name}.so") if folder else None, build, md_name, *args, **kwargs)

    def _compile_lib(self, build: Callable[..., Any], src_file: str, folder: str, *args: Any, **kwargs: Any) -> Any:
        artifact = Path(build.__globals__.get("BUILD_DIR", ""), folder, "lib.so")
        return self._ask(folder, artifact, build, src_file, folder, *args, **kwargs)

    def _compile_hsaco(self, build: Callable[..., Any], kernel_name: str, *args: Any, **kwargs: Any) -> Any:
        return self._ask(kernel_name, None, build, kernel_name, *args, **kwargs)

    def _ask(self, name: str, artifact: Path | None, build: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        asked = self._asked
        before = asked.name, asked.artifact
        asked.name, asked.artifact = name, artifact
        try:
            return build(*args, **kwargs)
        finally:
            asked.name, asked.artifact = before

    # -- what happens --------------------------------------------------------------------------------------------------

    def _locked(self, lock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run what AITER does under a lock; what it does under the lock of what it was asked to build is the build."""
        path = str(args[0] if args else kwargs.get("lockPath", kwargs.get("lock_path", "")))
        main = next((name for name in ("MainFunc", "main_func") if name in kwargs), "")
        if not self._asked.name or not main or Path(path).name.startswith("lock_3rdparty"):
            return lock(*args, **kwargs)
        build = kwargs[main]
        return lock(*args, **{**kwargs, main: lambda: self._build(build)})

    def _build(self, build: Callable[[], Any]) -> Any:
        name, artifact = self._asked.name, self._asked.artifact
        inner = self._inner(name)
        before = identity(inner) if inner else None
        with self.compiling(name) as told:
            told.key = parameters(name)
            told.reason = self.guarded("a reason", self._why, name, artifact) or ""
            result = build()
            built = identity(artifact) if artifact else None
            if built is not None:
                self.known[built] = name
                told.artifact_hash = str(built)
            if inner and before is not None and identity(inner) == before:
                told.kind, told.reason = "cache_load", f"ninja had nothing to do: {inner} was up to date"
            return result

    def _inner(self, name: str) -> Path | None:
        """Return where ninja builds a module, which is then copied to where it is imported from."""
        folder = getattr(sys.modules.get(self.target), "bd_dir", "")
        return Path(folder, name, "build", f"{name}.so") if folder else None

    def _why(self, name: str, artifact: Path | None) -> str:
        if artifact is None:
            return ""
        if artifact.exists():
            return f"{artifact.name} was there, but for another GPU, or AITER_REBUILD asked for it to be built again"
        return f"{self.against_nearest(name)}there was no {artifact.name} in {artifact.parent}"

    def _load(self, load: Callable[..., Any], md_name: str, *args: Any, **kwargs: Any) -> Any:
        folder = self.guarded("AITER's folder", self._jit_dir) if self._jit_dir else None
        with self.loading(md_name, Path(folder or "", f"{md_name}.so")):
            return load(md_name, *args, **kwargs)

    def _wait(self, wait: Callable[..., Any], baton: Any) -> Any:
        lock = str(baton.lock_file_path)
        name = self._asked.name or Path(lock).name.removeprefix("lock_")
        with self.waiting(name, lock, baton_holder(lock)):
            return wait(baton)
