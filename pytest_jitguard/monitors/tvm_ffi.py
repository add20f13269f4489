"""The monitor of tvm-ffi's inline modules: `tvm_ffi.cpp.load_inline` and `load`, which run ninja on every call."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pytest_jitguard.monitors import Tells
from pytest_jitguard.monitors._builds import AnyPath, BuildMonitor, TellingLock, plan_of

_HASHED = re.compile(r"\w+_[0-9a-f]{16}")
"""How tvm-ffi names a folder of its cache: the module, and a hash of its sources and flags."""


class TvmFfiMonitor(BuildMonitor):
    """Sees every run of ninja; one that has nothing to do is a load in a fresh process, and nothing in the same one."""

    name: ClassVar[str] = "tvm_ffi"
    target: ClassVar[str] = "tvm_ffi.cpp.extension"
    distribution: ClassVar[str] = "apache-tvm-ffi"
    tested: ClassVar[str] = ">=0.1.12,<0.1.16"
    tells: ClassVar[Tells] = Tells(
        identity="name of the module",
        reason="no library in the cache, or a source that is newer",
        kinds=("compile", "cache_load", "lock_wait"),
        cache_load=True,
    )

    def hook_in(self, module: ModuleType) -> None:
        """Take the run of ninja, and the lock around it."""
        self.wrap(module, "build_ninja", self._build)
        self.wrap(module, "FileLock", self._lock)

    def _build(self, build: Callable[..., Any], build_dir: str, *args: Any, **kwargs: Any) -> Any:
        folder = Path(build_dir)
        plan = plan_of(folder / "build.ninja")
        artifact = folder / (plan.target or f"{folder.name}.so")
        hashed = folder.name if _HASHED.fullmatch(folder.name) else ""
        inputs: list[AnyPath] = [*plan.sources, folder / "build.ninja"]
        with self.building(artifact.stem, artifact, inputs=inputs, artifact_hash=hashed):
            return build(build_dir, *args, **kwargs)

    def _lock(self, lock: Callable[..., Any], path: str, *args: Any, **kwargs: Any) -> Any:
        return TellingLock(lock(path, *args, **kwargs), lambda: self.perhaps_waiting(_module_of(Path(path)), path))


def _module_of(lock: Path) -> str:
    """Return the module that a lock is for: what its folder builds, or, while that is empty, the folder's name."""
    target = plan_of(lock.parent / "build.ninja").target
    return Path(target).stem or re.sub(r"_[0-9a-f]{16}$", "", lock.parent.name)
