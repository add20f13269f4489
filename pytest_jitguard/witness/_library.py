"""The compiled witness as Python sees it, and where libcupti and the driver are. Nothing here imports torch."""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from pytest_jitguard.witness.records import CALL, CALLS, COMPILER, Record

JIT, OVERHEAD = 1, 2
"""Activities: of the driver's compiler, and of what it spends on something else (lazy loading, its compiler again)."""

HELD = 39
"""CUPTI's answer to a second subscriber, and under Nsight, cuda-gdb and the like."""


class _Node(ctypes.Structure):
    """`struct record` of _cupti.c."""


_Node._fields_ = [
    ("next", ctypes.POINTER(_Node)),
    ("started", ctypes.c_uint64),
    ("ended", ctypes.c_uint64),
    ("size", ctypes.c_uint64),
    ("call", ctypes.c_uint64),
    ("copied", ctypes.c_uint64),
    ("copy", ctypes.c_void_p),
    ("what", ctypes.c_uint32),
    ("id", ctypes.c_uint32),
    ("pid", ctypes.c_uint32),
    ("thread", ctypes.c_uint32),
    ("result", ctypes.c_int32),
]


class Library:
    """The witness's compiled part, of which a process has one: loading it twice gives the same."""

    def __init__(self, path: Path) -> None:
        self.code = code = ctypes.CDLL(str(path))
        code.jitguard_problem.restype = ctypes.c_char_p
        code.jitguard_size_of_record.restype = ctypes.c_size_t
        code.jitguard_activities.restype = ctypes.c_uint32
        code.jitguard_lost.restype = ctypes.c_uint64
        code.jitguard_start.argtypes = [ctypes.c_char_p, ctypes.c_uint32]
        code.jitguard_take.restype = ctypes.POINTER(_Node)
        code.jitguard_release.argtypes = [ctypes.POINTER(_Node)]
        if code.jitguard_size_of_record() != ctypes.sizeof(_Node):
            raise OSError(f"{path} was compiled from another version of the witness")

    def start(self, libcupti: str, activities: int) -> int:
        """Subscribe; return 0, or CUPTI's answer, or -1 if libcupti cannot be used. `problem` has the words."""
        return int(self.code.jitguard_start(os.fsencode(libcupti), activities))

    @property
    def problem(self) -> str:
        """Why `start` failed."""
        return os.fsdecode(self.code.jitguard_problem())

    @property
    def activities(self) -> int:
        """The activities that CUPTI records, of those that were asked for."""
        return int(self.code.jitguard_activities())

    def stop(self) -> int:
        """Unsubscribe; return CUPTI's answer."""
        return int(self.code.jitguard_stop())

    def is_alive(self) -> bool:
        """Tell whether CUPTI would still call."""
        return bool(self.code.jitguard_is_alive())

    def lost(self) -> int:
        """Return how many records did not fit since this was last asked."""
        return int(self.code.jitguard_lost())

    def forked(self) -> None:
        """Drop what the parent of this forked process saw."""
        self.code.jitguard_forked()

    def flush(self) -> None:
        """Have CUPTI hand over its records of the driver's compiler, to be taken."""
        self.code.jitguard_flush()

    def take(self) -> list[Record]:
        """Take all records out that are there, oldest first."""
        first = self.code.jitguard_take()
        try:
            return [_record(node) for node in _nodes(first)]
        finally:
            self.code.jitguard_release(first)


def _nodes(node: ctypes._Pointer[_Node]) -> Iterator[_Node]:
    while node:
        yield node.contents
        node = node.contents.next


def _record(node: _Node) -> Record:
    compiler, name = node.what == COMPILER, CALLS.get(node.id, "") if node.what == CALL else ""
    return Record(
        what=node.what,
        started=node.started / 1e9,
        ended=node.ended / 1e9,
        thread=node.thread,
        call=node.call,
        name=name,
        size=node.size,
        data=ctypes.string_at(node.copy, node.copied) if node.copy else b"",
        result=node.result,
        stage=node.id >> 8 if compiler else 0,
        operation=node.id & 0xFF if compiler else 0,
    )


# -- where things are --------------------------------------------------------------------------------------------------


def mapped(name: str) -> str:
    """Return the path of a library that this process has loaded, by the beginning of its file name; else empty."""
    try:
        text = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(rf"(/\S*/{re.escape(name)}\S*)$", text, re.MULTILINE)
    return found[1] if found else ""


def has_driver() -> bool:
    """Tell whether there is an NVIDIA driver; loads its library, which initialises nothing."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def find_libcupti() -> str:
    """Return the libcupti that this process uses or will: torch's own before a toolkit's; empty if there is none."""
    return mapped("libcupti.so") or next((str(path) for path in _candidates() if path.is_file()), "")


def _candidates() -> Iterator[Path]:
    major = _major_of_torch()
    for folder in filter(None, sys.path):
        found = [Path(path) for path in glob.glob(f"{folder}/nvidia/*/lib/libcupti.so.*")]  # noqa: PTH207 - not made yet
        yield from sorted(found, key=lambda path: (path.suffix != f".{major}", path.suffix), reverse=False)
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        for place in ("extras/CUPTI/lib64", "lib64", "lib") if home else ():
            yield Path(str(home), place, "libcupti.so")


def _major_of_torch() -> str:
    """Return the major version of the CUDA that torch was built for, without importing torch; empty if unknown."""
    try:
        spec = importlib.util.find_spec("torch")
        text = Path(str((spec.submodule_search_locations or [""])[0]), "version.py").read_text() if spec else ""
    except (ImportError, OSError, ValueError):
        return ""
    found = re.search(r"^cuda\b[^=]*=\s*['\"](\d+)", text, re.MULTILINE)
    return found[1] if found else ""


def driver_is_initialised() -> bool:
    """Tell whether this process uses CUDA already, so that its forked children cannot."""
    count = ctypes.c_int()
    try:
        return int(ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count))) == 0
    except (OSError, AttributeError):
        return False
