"""The monitor of `torch.utils.cpp_extension.load` and `load_inline`: C++ and CUDA extensions built at run time."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, ClassVar, NamedTuple

from pytest_jitguard.monitors import Tells
from pytest_jitguard.monitors._builds import BuildMonitor, baton_holder
from pytest_jitguard.monitors._frames import find_frame

_NEAR = 8
"""How many frames away, at most, the function is that waits for a lock in order to load a library."""


class _Asked(NamedTuple):
    """What torch was asked to build."""

    name: str
    artifact: Path
    sources: tuple[str, ...]


class CppExtensionMonitor(BuildMonitor):
    """Sees builds, first loads of what another process built, and waits for its lock, which a dead process leaves.

    torch runs ninja for each extension that the process asks for the first time, if only to find that nothing is to be
    done. So it is enough to watch that, and the waits: the function that loads runs for each repeated `load()` as well.
    """

    name: ClassVar[str] = "cpp_extension"
    target: ClassVar[str] = "torch.utils.cpp_extension"
    tested: ClassVar[str] = ">=2.13,<2.14"
    tells: ClassVar[Tells] = Tells(
        identity="name of the extension",
        reason="no library in the folder, sources or flags that changed, a source that is newer",
        kinds=("compile", "cache_load", "lock_wait"),
        cache_load=True,
    )

    def hook_in(self, module: ModuleType) -> None:
        """Take what runs ninja for an extension, and the wait for another one who does."""
        self.wrap(module, "_write_ninja_file_and_build_library", self._build)
        self.wrap(module, "FileBaton.wait", self._wait)

    def _build(self, build: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        asked = self.guarded("a build", self._asked, build, args, kwargs)
        if asked is None:
            return build(*args, **kwargs)
        with self.building(asked.name, asked.artifact, inputs=asked.sources, missing=lambda: self._missing(asked)):
            return build(*args, **kwargs)

    def _asked(self, build: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Asked:
        # torch gives them by name; whoever wrapped the function below us may have hidden its signature.
        given = kwargs if "name" in kwargs else inspect.signature(build).bind(*args, **kwargs).arguments
        suffix = "EXEC_EXT" if given.get("is_standalone") else "LIB_EXT"
        file = f"{given['name']}{getattr(sys.modules[self.target], suffix)}"
        return _Asked(given["name"], Path(given["build_directory"], file), tuple(given["sources"]))

    def _missing(self, asked: _Asked) -> str:
        base, version, number = asked.name.rpartition("_v")
        if version and re.fullmatch(r"\d+", number) and self._versions(base) == int(number):
            return f"sources or flags of {base} changed since this process loaded it, so torch built it as {asked.name}"
        return ""

    def _versions(self, name: str) -> int | None:
        """Return which version of an extension torch counts in this process."""
        versioner = getattr(sys.modules[self.target], "JIT_EXTENSION_VERSIONER", None)
        version: int | None = versioner.get_version(name) if versioner is not None else None
        return version

    def _wait(self, wait: Callable[..., Any], baton: Any) -> Any:
        lock = baton.lock_file_path
        with self.waiting(Path(lock).parent.name, lock, baton_holder(lock)):
            answer = wait(baton)
        self.guarded("what another process built", self._find, Path(lock).parent, sys._getframe(1))
        return answer

    def _find(self, folder: Path, frame: FrameType) -> None:
        """Take the library that somebody else has built; whoever waited loads it next."""
        library = sys.modules[self.target]
        asked = getattr(getattr(library, "_jit_compile", None), "__code__", None)
        caller = find_frame(frame, [asked] if asked else [], _NEAR)
        name = caller.f_locals.get("name", folder.name) if caller else folder.name
        self.found(name, folder / f"{name}{getattr(library, 'LIB_EXT', '.so')}")
