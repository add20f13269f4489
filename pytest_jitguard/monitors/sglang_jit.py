"""The monitor of SGLang's own kernel loader, `load_jit`: ninja builds into a cache of SGLang's layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.keys import Component, SpecializationKey
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Tells
from pytest_jitguard.monitors._builds import BuildMonitor, Switch, TellingLock, identity

_DENY = "SGLANG_CRASH_ON_JIT_COMPILE"


class SglangJitMonitor(BuildMonitor):
    """Sees compiles at `ninja.build`, which only misses reach, and loads of what was built at `_load`."""

    name: ClassVar[str] = "sglang_jit"
    target: ClassVar[str] = "sglang.kernels.jit.utils.compile.loader"
    tested: ClassVar[str] = ">=0.5.23,<0.5.24"
    tells: ClassVar[Tells] = Tells(
        identity="name of the module",
        key="arguments of the module",
        reason="no build in the cache that fits sources, flags and compiler",
        kinds=("compile", "cache_load", "lock_wait"),
        cache_load=True,
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._switch = Switch(_DENY, self.name)

    def hook_in(self, module: ModuleType) -> None:
        """Take the build, the load, the lock that serialises builds of several ranks, and what refuses to build."""
        self.wrap(module, "ninja.build", self._build)
        self.wrap(module, "_load", self._load)
        self.wrap(module, "_build_lock", self._lock)
        self.wrap(module, "load_jit", self._load_jit)

    def _build(self, build: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        spec, folder = kwargs.get("spec"), kwargs.get("build_dir")
        name = getattr(spec, "module_name", "a module")
        with self.compiling(name) as told:
            told.key = self.guarded("a key", _key, spec)
            told.reason = self.against_nearest(name) + (self.guarded("a reason", _why, folder) or "")
            library = build(*args, **kwargs)
            built = identity(library)
            if built is not None:  # it is renamed when it is published, and keeps its identity
                self.known[built] = name
                told.artifact_hash = str(built)
            return library

    def _load(self, load: Callable[..., Any], library: Any, *args: Any, **kwargs: Any) -> Any:
        with self.loading(Path(library).stem, library):
            return load(library, *args, **kwargs)

    def _lock(self, lock: Callable[..., Any], scope: Any, *args: Any, **kwargs: Any) -> Any:
        held, file = lock(scope, *args, **kwargs), Path(scope, ".lock")
        return TellingLock(held, lambda: self.perhaps_waiting(file.parent.parent.name, file))

    def refuse(self, on: bool) -> None:
        """Make `load_jit` raise RuntimeError where it would compile; builds in the cache are still loaded."""
        self._switch.turn(on)

    def _load_jit(self, load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        started = monotonic()
        try:
            return load(*args, **kwargs)
        except RuntimeError as error:
            if _DENY in str(error):
                reason = f"{self._switch.why()}; the cache has no build of it that can be used"
                name, key = _refused(str(error)), self.guarded("a key", _key_of, args)
                self.record(name, kind="compile", started=started, status="failed", reason=reason, key=key)
                self._switch.tell(error)
            raise


def _refused(message: str) -> str:
    found = re.search(r"JIT module '([^']+)'", message)
    return found.group(1) if found else "a module"


def _key(spec: Any) -> SpecializationKey | None:
    return _key_of(getattr(spec, "module_args", ()))


def _key_of(arguments: Iterable[Any]) -> SpecializationKey | None:
    found = [Component(f"argument {n}", "constexpr", "", str(value)) for n, value in enumerate(arguments, 1)]
    return SpecializationKey(tuple(found)) if found else None


def _why(staging: Any) -> str:
    """Tell a first build from one whose sources, headers or flags changed, by what else the cache holds.

    A module's folder has one `build-KEY` per set of sources and flags, with one `deps-KEY` per state of the headers.
    """
    scope = Path(staging).parent
    if any(entry.name.startswith("deps-") for entry in scope.iterdir()):
        return f"a file that the build in {scope} was made of has changed since"
    others = [entry for entry in scope.parent.iterdir() if entry != scope and any(entry.glob("deps-*"))]
    if others:
        return f"the cache has builds of it for other sources, flags or compilers, none for these ({scope})"
    return f"it was never built in this cache ({scope})"
