"""DeepGEMM's cache folders: where they are, what came into them, and what was loaded from them."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

_NAME = re.compile(r"(?:kernel\.)?(.+)\.([0-9a-f]{12,32})")
_BUILDER = re.compile(r"/tmp/(\d+)-[0-9a-f]{8}-")

_VARIABLES = (
    *("HOME", "SGLANG_DG_CACHE_DIR", "SGLANG_CACHE_DIR", "VLLM_CACHE_ROOT"),
    *("DG_JIT_CACHE_DIR", "DJ_JIT_CACHE_DIR", "DG_CACHE_DIR"),
)

_CLOCK_STEP = 0.02
"""Seconds by which times of files may be behind the clock: the kernel stamps them with its last tick."""


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


class Folders:
    """The cache folders of a process. What was in them at the first look is known; a root once seen is kept.

    `since` is the moment from which on entries in a root that shows up later count as new, in seconds since the epoch.
    """

    def __init__(self, since: float) -> None:
        self._since = since - _CLOCK_STEP
        self._known: dict[Path, dict[str, float]] = {}
        self._unfinished: set[Path] = set()
        self._stamps: dict[Path, int] = {}

    def look(self, environment: Mapping[str, str]) -> tuple[list[Entry], list[tuple[Entry, float]]]:
        """Return what is new since the last look, and what G3 loaded from disk with the time of that."""
        new: list[Entry] = []
        loaded: list[tuple[Entry, float]] = []
        for root in dict.fromkeys([*self._known, *roots(environment)]):
            first = root not in self._known
            known = self._known.setdefault(root, {})
            loaded += self._touched(root, known)
            for entry in self._entries(root, known):
                if not first or self._is_recent(entry):
                    new.append(entry)
                elif known[entry.folder.name] >= self._since:
                    loaded.append((entry, known[entry.folder.name]))
        return new, loaded

    def _entries(self, root: Path, known: dict[str, float]) -> Iterator[Entry]:
        """Yield whole entries that are not known yet; one that is half published (before 2.4) is asked again."""
        stamp = _changed(root / "cache")
        if self._stamps.get(root) == stamp and root not in self._unfinished:
            return
        self._unfinished.discard(root)
        self._stamps[root] = stamp
        for name in _names(root / "cache"):
            entry = _entry(root, name) if name not in known else None
            if entry is not None and entry.span is None:
                self._unfinished.add(root)
            elif entry is not None:
                known[name] = _mtime(entry.folder / ".committed") or 0.0
                yield entry

    def _touched(self, root: Path, known: dict[str, float]) -> Iterator[tuple[Entry, float]]:
        for name, before in known.items():
            now = _mtime(root / "cache" / name / ".committed") if before else None
            if now is not None and now != before:
                known[name] = now
                entry = _entry(root, name)
                if entry is not None:
                    yield entry, now

    def _is_recent(self, entry: Entry) -> bool:
        span = entry.span
        return span is not None and span[1] >= self._since


def _entry(root: Path, name: str) -> Entry | None:
    found = _NAME.fullmatch(name)
    return Entry(root / "cache" / name, found[1], found[2]) if found else None


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except OSError:
        return []


def _mtime(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _changed(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0
