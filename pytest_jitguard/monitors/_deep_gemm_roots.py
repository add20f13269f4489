"""DeepGEMM's cache folders: where they are, what came into them, and what was loaded from them."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.monitors._cache_files import Stamp, born_after
from pytest_jitguard.monitors._cache_files import stamp as stamp_of

_NAME = re.compile(r"(?:kernel\.)?(.+)\.([0-9a-f]{12,32})")
_BUILDER = re.compile(r"/tmp/(\d+)-[0-9a-f]{8}-")

_VARIABLES = (
    *("HOME", "SGLANG_DG_CACHE_DIR", "SGLANG_CACHE_DIR", "VLLM_CACHE_ROOT"),
    *("DG_JIT_CACHE_DIR", "DJ_JIT_CACHE_DIR", "DG_CACHE_DIR"),
)

CLOCK_STEP = 0.02
"""Seconds by which times of files may be behind the clock: the kernel stamps them with its last tick."""

_TICK = 0.05
"""Seconds within which a folder may change again and show the same time of change."""


class Entry(NamedTuple):
    """One compiled kernel on disk. G2 calls the folder `kernel.FAMILY.HASH`, G3 `FAMILY.HASH`."""

    folder: Path
    family: str
    digest: str

    @property
    def text(self) -> str:
        """Its source, empty if it cannot be read."""
        try:
            return (self.folder / "kernel.cu").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    @property
    def span(self) -> tuple[float, float] | None:
        """When it was compiled, from source to binary, in seconds since the epoch; None if one of them is missing."""
        began, ended = (_mtime(self.folder / name) for name in ("kernel.cu", "kernel.cubin"))
        if ended is None:
            ended = _mtime(self.folder / "kernel.so")  # the first releases
        return None if began is None or ended is None else (began, ended)

    @property
    def builder(self) -> int:
        """The pid of the process that compiled it, as G3 keeps it in the compiler's command; 0 where nothing shows."""
        try:
            found = _BUILDER.search((self.folder / "meta.json").read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return 0
        return int(found[1]) if found else 0


def roots(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Return where the library, SGLang and vLLM would keep kernels, given these variables."""
    return _roots(*(environment.get(name, "") for name in _VARIABLES))


@functools.lru_cache(maxsize=8)  # asked at each phase's end, of each test
def _roots(home: str, sglang: str, sglang_cache: str, vllm_cache: str, *own: str) -> tuple[Path, ...]:
    cache = f"{home}/.cache"
    sglang = sglang or f"{sglang_cache or cache + '/sglang'}/deep_gemm"
    vllm = f"{vllm_cache or cache + '/vllm'}/deep_gemm"
    lists = [*own, sglang, vllm, f"{home}/.dj", f"{home}/.deep_gemm"]
    return tuple(dict.fromkeys(Path(part) for value in lists for part in value.split(":") if part))


class _Folder:
    """One cache folder: its entries by name, and how it was when it was last read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = f"{root}/cache"
        self.committed: dict[str, float] = {}
        """When each entry was last published or, in G3, loaded; 0 where nothing shows."""
        self._known: dict[str, tuple[int, int]] = {}
        self._stamp: Stamp | None = None
        self._noticed = 0.0
        self._is_settled = False
        self._unfinished = False

    def changed(self) -> Iterator[Entry]:
        """Yield whole entries that are new, or others than they were; half published ones are asked again."""
        before, stamp = self._stamp, _stamp(self.path)
        if stamp == before and self._is_settled and not self._unfinished:
            return
        self._noticed = monotonic() if stamp != before else self._noticed
        # What is written in the same tick of the file system's clock leaves the same stamp.
        self._stamp, self._is_settled = stamp, monotonic() - self._noticed > _TICK
        self._unfinished = False
        names = _names(self.path) if stamp else {}
        for gone in self._known.keys() - names:
            del self._known[gone]
            self.committed.pop(gone, None)
        for name, identity in names.items():
            if self._is_new(name, identity) and (entry := self._whole(name)):
                self._known[name] = identity
                self.committed[name] = _mtime(f"{entry.folder}/.committed") or 0.0
                yield entry

    def _is_new(self, name: str, identity: tuple[int, int]) -> bool:
        """Tell whether an entry is not known, or not the one that is: it may have got the inode of that one."""
        known = self._known.get(name)
        if known is None or known[0] != identity[0]:
            return True
        return known != identity and born_after(f"{self.path}/{name}", known[1])

    def _whole(self, name: str) -> Entry | None:
        entry = _entry(self.root, name)
        if entry is not None and entry.span is None:
            self._unfinished = True
            return None
        return entry

    def loaded(self) -> Iterator[tuple[Entry, float]]:
        """Yield the entries that were loaded from disk since they were last asked for, with the time of that."""
        for name, before in self.committed.items():
            now = _mtime(f"{self.path}/{name}/.committed") if before else None
            if now is not None and now != before:
                self.committed[name] = now
                entry = _entry(self.root, name)
                if entry is not None:
                    yield entry, now


class Folders:
    """The cache folders of a process. What was in them at the first look is known; a root once seen is kept.

    `since` is the moment from which on entries in a root that shows up later count as new, in seconds since the epoch.
    """

    def __init__(self, since: float) -> None:
        self._since = since - CLOCK_STEP
        self._folders: dict[Path, _Folder] = {}

    def look(self, environment: Mapping[str, str]) -> tuple[list[Entry], list[tuple[Entry, float]]]:
        """Return what is new since the last look; and what of roots that came later was loaded from them before."""
        new: list[Entry] = []
        loaded: list[tuple[Entry, float]] = []
        for root in roots(environment):
            if root not in self._folders:
                self._folders[root] = folder = _Folder(root)
                for entry in folder.changed():
                    at = folder.committed[entry.folder.name]
                    if self._is_recent(entry):
                        new.append(entry)
                    elif at >= self._since:
                        loaded.append((entry, at))
        for folder in self._folders.values():
            new += folder.changed()
        return new, loaded

    def loads(self) -> list[tuple[Entry, float]]:
        """Return the entries that were known and have been loaded from disk since this was last asked."""
        return [load for folder in self._folders.values() for load in folder.loaded()]

    def _is_recent(self, entry: Entry) -> bool:
        span = entry.span
        return span is not None and span[1] >= self._since


def _entry(root: Path, name: str) -> Entry | None:
    found = _NAME.fullmatch(name)
    return Entry(root / "cache" / name, found[1], found[2]) if found else None


def _names(folder: str) -> dict[str, tuple[int, int]]:
    """Return what is in a folder, with inode and time of change."""
    names = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # gone meanwhile
                told = entry.stat()
                names[entry.name] = (told.st_ino, told.st_ctime_ns)
    return names


def _stamp(folder: str) -> Stamp | None:
    try:
        return stamp_of(folder)
    except OSError:
        return None


def _mtime(path: Path | str) -> float | None:
    try:
        return os.stat(path).st_mtime  # noqa: PTH116 - thousands of them
    except OSError:
        return None
