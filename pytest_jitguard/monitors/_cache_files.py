"""What a file system tells of a folder and its entries: how to know that something has changed, or is another thing."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

_BORN = 0x800
"""The kernel's STATX_BTIME."""

_HERE = -100
"""The kernel's AT_FDCWD."""


class Stamp(NamedTuple):
    """How a folder was: device, inode, and both times of change, in nanoseconds.

    Programs that unpack set `modified` back. Nobody can set `changed`.
    """

    device: int
    inode: int
    modified: int
    changed: int


def stamp(path: str) -> Stamp:
    """Return the stamp of a folder, behind links; OSError if there is none."""
    told = os.stat(path)  # noqa: PTH116 - thousands of them
    return Stamp(told.st_dev, told.st_ino, told.st_mtime_ns, told.st_ctime_ns)


def born_after(path: str, moment: int) -> bool:
    """Tell whether a file or folder was created after a moment (nanoseconds by its file system's clock).

    Whoever comes after something that was removed often gets the same inode: this tells them apart. False where the
    file system or the kernel (before 4.11) does not keep it.
    """
    ask = _asking()
    return ask is not None and ask(path) > moment


@functools.cache
def _asking() -> Callable[[str], int] | None:
    """Return what asks the kernel when something was created; `os.stat` does not tell on Linux."""
    import ctypes  # 10 ms that most runs need not spend

    try:
        statx: Any = ctypes.CDLL(None).statx
    except (AttributeError, OSError):  # no such C library
        return None

    def ask(path: str) -> int:
        told = ctypes.create_string_buffer(256)
        if statx(_HERE, os.fsencode(path), 0, _BORN, told):
            return 0
        if not int.from_bytes(told.raw[:4], "little") & _BORN:
            return 0
        seconds, nanoseconds = told.raw[80:88], told.raw[88:92]
        return int.from_bytes(seconds, "little", signed=True) * 1_000_000_000 + int.from_bytes(nanoseconds, "little")

    return ask
