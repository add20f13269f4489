"""What a loaded image is: a cubin, a fat binary, PTX; how large, and which kernels are in it."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

CUBIN, PTX, FATBIN, FILE = "cubin", "PTX", "fat binary", "file"
WRAPPER, UNKNOWN = "fat binary of a library", "of a form that is not known"

LARGE = 4 * 1024 * 1024
"""Bytes from which an image is a library's and not one that a JIT system has just made."""

_WRAPPER_MAGIC, _FATBIN_MAGIC = struct.pack("<I", 0x466243B1), struct.pack("<I", 0xBA55ED50)
_CUDA_MACHINE = 190
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SECTION_TABLE = struct.Struct("<Q10xHHH")
_ENTRY = re.compile(rb"\.entry\s+([A-Za-z_$%][\w$]*)")
_TEXT, _PARAMETERS = ".text.", ".nv.constant0."


class Image(NamedTuple):
    """An image that the driver was given: its kind, its size in bytes (0 if unknown) and its kernels' symbols."""

    kind: str
    size: int = 0
    kernels: tuple[str, ...] = ()

    @property
    def is_generated(self) -> bool:
        """Whether a JIT system may have made it: it is not large, nor wrapped as the CUDA runtime wraps libraries."""
        return self.kind != WRAPPER and self.size < LARGE


def image_of(data: bytes, size: int = 0) -> Image:
    """Describe an image by its bytes, of which the end may be missing; `size` is that of the whole, if known."""
    kind = kind_of(data)
    read = {CUBIN: kernels_of_elf, PTX: kernels_of_ptx}.get(kind)
    return Image(kind, size or len(data), read(data) if read else ())


def kind_of(head: bytes) -> str:
    """Tell an image's kind by its first bytes."""
    if head.startswith(b"\x7fELF"):
        return CUBIN
    if head.startswith(_WRAPPER_MAGIC):
        return WRAPPER
    if head.startswith(_FATBIN_MAGIC):
        return FATBIN
    return PTX if head.lstrip()[:1] in (b"/", b".") else UNKNOWN


def kernels_of_ptx(text: bytes) -> tuple[str, ...]:
    """Return the names of a PTX text's entry points."""
    return tuple(dict.fromkeys(name.decode("ascii") for name in _ENTRY.findall(text)))


def kernels_of_elf(data: bytes) -> tuple[str, ...]:
    """Return the symbols of a cubin's kernels: they have code and parameters, each in a section named after them."""
    try:
        names = list(_section_names(data))
    except (struct.error, ValueError):
        return ()
    code = [name.removeprefix(_TEXT) for name in names if name.startswith(_TEXT)]
    entries = {name.removeprefix(_PARAMETERS) for name in names if name.startswith(_PARAMETERS)}
    return tuple(name for name in code if not entries or name in entries)


def _section_names(data: bytes) -> Iterator[str]:
    """Yield the names of an ELF file's sections; struct.error or ValueError if the file is cut off or no cubin."""
    table, size, count, names_at = _SECTION_TABLE.unpack_from(data, 0x28)
    if struct.unpack_from("<H", data, 18)[0] != _CUDA_MACHINE:
        raise ValueError("this is no code for a GPU of NVIDIA's")
    offset = _SECTION.unpack_from(data, table + size * names_at)[4]
    for index in range(count):
        start = offset + _SECTION.unpack_from(data, table + size * index)[0]
        yield data[start : data.index(b"\0", start)].decode("utf-8", "replace")


_NESTED = re.compile(r"\d+")


def identifiers(symbol: str) -> tuple[str, ...]:
    """Return the names in a kernel's symbol: of `_ZN2ns5scaleILi3EEEvPf` they are `ns` and `scale`.

    They stand before the template arguments; a symbol that C++ did not make is a name itself.
    """
    if not symbol.startswith("_Z"):
        return (symbol,)
    names: list[str] = []
    at = 3 if symbol.startswith("_ZN") else 2
    while number := _NESTED.match(symbol, at):
        at = number.end() + int(number[0])
        names.append(symbol[number.end() : at])
    return tuple(names) or (symbol,)


def shown(symbol: str) -> str:
    """Return a kernel's symbol as people write it: `ns::scale`."""
    return "::".join(identifiers(symbol))
