"""Reading /proc without letting other threads run meanwhile.

Python gives its lock away for each system call. Where another thread computes, each takes 5 ms to come back, and a look
at all processes some seconds, while a compiler comes and goes. These calls take microseconds, so nobody has to wait.
"""

from __future__ import annotations

import functools
import os
import struct
from typing import Any

_open = open
"""Not looked up at the time: tests replace `builtins.open`."""

_PIECE = 16384
_ENTRY = struct.Struct("=QqHB")
"""How an entry of a folder begins (`struct linux_dirent64`): inode, offset, its length, type, and then its name."""


def prepare() -> None:
    """Get ready before there is something to be missed: importing takes long where another thread computes."""
    _library()


def read(path: str) -> bytes:
    """Return what is in a small file, nothing if it cannot be read."""
    libc, buffer = _libc()
    if libc is None:
        return _read_by_python(path)
    file = libc.open(path.encode(), os.O_RDONLY | os.O_CLOEXEC)
    if file < 0:
        return b""
    pieces = []
    while (size := libc.read(file, buffer, _PIECE)) > 0:
        pieces.append(buffer.raw[:size])
    libc.close(file)
    return b"".join(pieces)


def pids() -> list[int]:
    """Return the processes of this machine, none where there is no /proc."""
    return [int(name) for name in names("/proc") if name.isdigit()]


def names(path: str) -> list[bytes]:
    """Return what is in a folder, nothing if it cannot be read."""
    libc, buffer = _libc()
    if libc is None or not hasattr(libc, "getdents64"):
        return _names_by_python(path)
    folder = libc.open(os.fsencode(path), os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    found: list[bytes] = []
    if folder >= 0:
        while (size := libc.getdents64(folder, buffer, _PIECE)) > 0:
            found += _names(buffer.raw[:size])
        libc.close(folder)
    return found


def link(path: str) -> str:
    """Return where a link of the kernel's leads, empty if that cannot be told."""
    libc, buffer = _libc()
    if libc is None or not hasattr(libc, "readlink"):
        return _link_by_python(path)
    size = libc.readlink(path.encode(), buffer, _PIECE)
    return os.fsdecode(buffer.raw[:size]) if size > 0 else ""


def _names(entries: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(entries):
        length = _ENTRY.unpack_from(entries, at)[2]
        found.append(entries[at + _ENTRY.size : at + length].partition(b"\0")[0])
        at += length
    return found


@functools.cache
def _library() -> Any:
    """Return the C library, None where Python has no ctypes. Imported late: most processes start no program."""
    try:
        import ctypes

        libc = ctypes.PyDLL(None)
        for name in ("read", "getdents64", "readlink"):
            if hasattr(libc, name):
                getattr(libc, name).restype = ctypes.c_ssize_t
                first = ctypes.c_char_p if name == "readlink" else ctypes.c_int
                getattr(libc, name).argtypes = [first, ctypes.c_char_p, ctypes.c_size_t]
    except (ImportError, OSError, AttributeError):
        return None
    return libc


def _libc() -> tuple[Any, Any]:
    """Return the C library and a buffer to read into."""
    libc = _library()
    if libc is None:
        return None, None
    import ctypes

    return libc, ctypes.create_string_buffer(_PIECE)


def _read_by_python(path: str) -> bytes:
    try:
        with _open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _names_by_python(path: str) -> list[bytes]:
    try:
        return os.listdir(os.fsencode(path))  # noqa: PTH208 - pathlib is slow
    except OSError:
        return []


def _link_by_python(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - a link of the kernel's
    except OSError:
        return ""
