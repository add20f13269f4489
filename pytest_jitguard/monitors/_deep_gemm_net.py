"""The net below our compiler: what came into DeepGEMM's cache folders, and whose doing it was."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable

from pytest_jitguard.monitors._deep_gemm_door import FOLDER_VARIABLE, is_bypassed
from pytest_jitguard.monitors._deep_gemm_nvcc import MOST_TEXT, start_of
from pytest_jitguard.monitors._deep_gemm_roots import CLOCK_STEP, Entry, Folders
from pytest_jitguard.monitors._deep_gemm_spool import Compile, Spool, neighbours, text_hash
from pytest_jitguard.monitors._toolchain_files import wall

_LEAST_WORK = 0.1
"""CPU seconds of our children per second of a compile, below which it was not ours: nvcc keeps a core busy."""


class Net:
    """Looks at the cache folders for one process. Entries wait here until somebody knows where they come from."""

    def __init__(self) -> None:
        self._folders = Folders(wall())
        self._folders.look(os.environ)
        self._new: list[Entry] = []
        self._loads: list[tuple[Entry, float]] = []
        self._work = _work_of_children()
        self._used_since = float("inf")
        self.used: set[str] = set()

    def look(self) -> None:
        """Take in what has changed in the folders."""
        new, loads = self._folders.look(os.environ)
        self._new += new
        self._loads += loads

    def used_from_now(self) -> None:
        """Note that this process has imported the library: what was loaded before, somebody else loaded."""
        self._used_since = min(self._used_since, wall())

    def entry_of(self, compile: Compile) -> Entry | None:
        """Return what a compile left in a cache folder, and count it as explained."""
        self.look()
        wanted = text_hash(compile.text)
        for entry in self._new:
            if _hash_of(entry) == wanted:
                self._new.remove(entry)
                self.used.add(entry.digest)
                return entry
        return None

    def strangers(self, spool: Spool | None, *, is_guard: bool, is_in_use: bool) -> list[tuple[Entry, str]]:
        """Return the new entries that no compiler of ours told of and that are this run's, with how that is known.

        `is_in_use` says whether this process has imported the library. A guard answers for its whole tree. What is new
        is what `look` has found.
        """
        new, self._new = self._new, []
        work, self._work = _work_of_children() - self._work, _work_of_children()
        if not new:
            return []
        explained = set(_hashes([spool, *neighbours(spool.folder)] if spool else []))
        found = []
        for entry in new:
            if _hash_of(entry) in explained:
                continue
            why = _whose(entry, spool, work, is_guard=is_guard, is_in_use=is_in_use)
            if why and (spool is None or spool.claim(f"entry-{entry.digest}")):
                found.append((entry, why))
                self.used.add(entry.digest)
        return found

    def loads(self, spool: Spool | None, *, is_guard: bool, is_in_use: bool) -> list[tuple[Entry, float, str]]:
        """Return the first loads from disk since the last time, with the moment of each and who may have done it."""
        others = _others(spool) if spool and is_guard else []
        if not (is_in_use or others):
            return []  # nobody to load anything: the entries need not be looked at
        since = min(self._used_since, spool.watched_since() if spool else self._used_since) - CLOCK_STEP
        loads, self._loads = [load for load in (*self._loads, *self._folders.loads()) if load[1] >= since], []
        others = _others(spool) if spool and loads else []
        found = []
        for entry, at in loads:
            # A process loads a kernel from disk once: what this one has, somebody else loaded now.
            mine = is_in_use and entry.digest not in self.used
            if (mine or (is_guard and others)) and (spool is None or spool.claim(f"load-{entry.digest}-{at:.6f}")):
                self.used.add(entry.digest)
                found.append((entry, at, "" if mine and not others else f"by one of {_numbers(others, mine)}"))
        return found


def _whose(entry: Entry, spool: Spool | None, work: float, *, is_guard: bool, is_in_use: bool) -> str:
    """Say how it is known that an entry is this run's doing; empty if it is not: folders are shared by many."""
    builder, span = entry.builder, entry.span or (0.0, 0.0)
    if builder:
        others = _others(spool) if spool else []
        if builder == os.getpid():
            return is_bypassed() or "our compiler was not asked"
        return f"compiled by pid {builder}" if is_guard and (builder in others or _is_of(builder)) else ""
    if is_in_use and (work >= _LEAST_WORK * (span[1] - span[0]) or os.environ.get("DG_JIT_USE_NVRTC", "0") != "0"):
        return is_bypassed() or "our compiler was not asked"
    others = _others(spool) if spool else []
    return f"compiled by one of {_numbers(others, mine=False)}" if is_guard and others else ""


def _is_of(pid: int) -> bool:
    """Tell whether a process belongs to this run, by the environment that it was started with."""
    mine = f"{FOLDER_VARIABLE}={os.environ.get(FOLDER_VARIABLE)}".encode()
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            return mine in file.read().split(b"\0")
    except OSError:
        return False


def _others(spool: Spool) -> list[int]:
    """Return the other processes of the run that have imported DeepGEMM, those that ended among them."""
    watchers = spool.watchers()
    me = (os.getpid(), start_of(os.getpid())) if watchers else (0, 0)
    return sorted(pid for pid, _ in watchers - {me})


def _numbers(others: Iterable[int], mine: bool) -> str:
    return "pids " + ", ".join(map(str, [*([os.getpid()] if mine else []), *others]))


def _hashes(spools: Iterable[Spool]) -> Iterable[str]:
    for spool in spools:
        yield from spool.texts()


def _hash_of(entry: Entry) -> str:
    return text_hash(entry.text[:MOST_TEXT])


def _work_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
