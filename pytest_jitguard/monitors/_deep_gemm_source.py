"""What DeepGEMM's generated `kernel.cu` says: which kernel it instantiates, with which template arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pytest_jitguard.core.keys import Component, SpecializationKey

_KERNEL = re.compile(r"&\s*(?:\w+::)*(\w+)\s*(<)?")
_INCLUDE = re.compile(r"#include\s*<(deep_gemm/[\w/.]+)>")
_SHAPES = ("M", "N", "K")

_NAMES = {
    "kNumSMs": "num_sms",
    "kNumStages": "stages",
    "kNumLastStages": "last_stages",
    "kNumTMAMulticast": "cluster",
    "kIsTMAMulticastOnA": "multicast_on_a",
    "kNumTMAThreads": "tma_threads",
    "kNumMathThreads": "math_threads",
    "kMajorSFB": "major_sfb",
    "kGemmType": "GemmType",
    "cd_dtype_t": "output",
    "epilogue_type_t": "epilogue",
}
"""Template parameters whose plain name the rule of `_plain` would not give."""

_OF_1D2D = (
    *("major_sfb", "M", "N", "K", "num_groups", "BLOCK_M", "BLOCK_N", "BLOCK_K", "swizzle_a", "swizzle_b", "swizzle_d"),
    *("stages", "tma_threads", "math_threads", "cluster", "multicast_on_a", "num_sms", "GemmType", "epilogue"),
)
"""Parameters of `sm90_fp8_gemm_1d2d_impl` (2.4.2 to 2.8.1), for where the library's headers are not found."""


class Kernel(NamedTuple):
    """One instantiation: its family (`sm90_fp8_gemm_1d2d`) and named template arguments, in the library's order."""

    family: str
    arguments: tuple[tuple[str, str], ...]

    @property
    def key(self) -> SpecializationKey:
        """The arguments as components. A dimension that is not compiled in is no component: it is 0 in the source."""
        shown = (pair for pair in self.arguments if pair[0] not in _SHAPES or pair[1] != "0")
        return SpecializationKey(tuple(Component(name, "constexpr", "", value) for name, value in shown))

    def value(self, name: str) -> str:
        """Return an argument, empty if the kernel has none of that name."""
        return dict(self.arguments).get(name, "")


def parse(text: str, includes: Iterable[str | Path] = ()) -> Kernel | None:
    """Read a `kernel.cu`; parameters get their names from the library's headers below `includes`, if found there."""
    found = _KERNEL.search(text)
    if found is None:
        return None
    function = found[1]
    given = _split(_bracketed(text, found.end() - 1)) if found[2] else []
    names = _parameters(function, _headers(text, includes)) or (_OF_1D2D if "1d2d" in function else ())
    pairs = tuple((_name(names, place), _value(value)) for place, value in enumerate(given))
    return Kernel(function.removesuffix("_impl"), pairs)


def _name(names: Sequence[str], place: int) -> str:
    return names[place] if place < len(names) else f"template argument {place + 1}"


def _value(text: str) -> str:
    """Return an argument without the namespaces that every variant shares: `GemmType::Normal` is `Normal`."""
    return re.sub(r"\b\w+::", "", text)


def _headers(text: str, includes: Iterable[str | Path]) -> list[str]:
    found = []
    for name in _INCLUDE.findall(text):
        for folder in includes:
            try:
                found.append(Path(folder, name).read_text(encoding="utf-8", errors="replace"))
                break
            except OSError:
                continue
    return found


def _parameters(function: str, headers: Iterable[str]) -> tuple[str, ...]:
    """Return the names of a function template's parameters, as people say them."""
    for header in headers:
        declared = re.search(rf"\b{re.escape(function)}\s*\(", header)
        start = header.rfind("template <", 0, declared.start()) if declared else -1
        if start >= 0:
            return tuple(map(_plain, _split(_bracketed(header, header.index("<", start)))))
    return ()


def _plain(parameter: str) -> str:
    """Turn `uint32_t kSwizzleAMode` into `swizzle_a`, `uint32_t SHAPE_M` into `M`."""
    declared = parameter.partition("=")[0].split()[-1]
    name = declared.rstrip("_").removeprefix("SHAPE_")
    if declared in _NAMES or name in _NAMES:
        return _NAMES.get(declared) or _NAMES[name]
    if not re.match(r"k[A-Z]", name):
        return name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name[1:].removesuffix("Mode")).lower()


def _bracketed(text: str, start: int) -> str:
    """Return what stands between the angle bracket at `start` and its partner."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"<": 1, ">": -1}.get(text[place], 0)
        if not depth:
            return text[start + 1 : place]
    return ""


def _split(text: str) -> list[str]:
    """Split at commas outside of brackets."""
    parts, depth, part = [], 0, ""
    for character in text:
        depth += (character in "<({") - (character in ">)}")
        if character == "," and not depth:
            parts.append(part)
            part = ""
        else:
            part += character
    return [part.strip() for part in [*parts, part] if part.strip()]
