"""What a CUDA source, its compiler's options and its binary say of themselves: kernels, and the parts of a key."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

from pytest_jitguard.core.keys import Component, SpecializationKey

UNNAMED = "unnamed program"

_COMMENTS = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_ATTRIBUTES = re.compile(r"__\w+__\s*\([^()]*(?:\([^()]*\)[^()]*)*\)")
_NAME_BEFORE_PARENTHESIS = re.compile(r"(\w+)\s*\(")
_SECTIONS = re.compile(rb"\0\.text\.([A-Za-z_$][\w$]*)\0")
_ENTRIES = re.compile(rb"\.entry\s+([\w$]+)")

_TARGETS = ("gpu-architecture", "arch", "offload-arch")
_MACROS = ("define-macro", "D")
_FOLDERS = ("include-path", "I")
_WITH_VALUE = {f"-{name}" for name in ("D", "I", "arch")} | {
    f"--{name}" for name in (*_TARGETS, "define-macro", "include-path")
}
"""Options whose value may come as the next argument."""


def text_of(source: object) -> str:
    """Return a source or a name as text; compilers take both."""
    return bytes(source).decode(errors="replace") if isinstance(source, (bytes, bytearray)) else str(source or "")


def kernels_in_source(source: object) -> tuple[str, ...]:
    """Return the names of the functions that are marked `__global__`, in the order of their first mention."""
    found: dict[str, None] = {}
    for marked in _COMMENTS.sub(" ", text_of(source)).split("__global__")[1:]:
        name = _NAME_BEFORE_PARENTHESIS.search(_ATTRIBUTES.sub(" ", re.split("[{;]", marked, maxsplit=1)[0]))
        if name:
            found[name.group(1)] = None
    return tuple(found)


def kernels_in_image(image: object) -> tuple[str, ...]:
    """Return the names of the kernels in a cubin or in PTX, as they are there: C++ names are mangled."""
    data = bytes(image) if isinstance(image, (bytes, bytearray)) else b""
    return tuple(
        dict.fromkeys(name.decode() for name in (_SECTIONS if data[:4] == b"\x7fELF" else _ENTRIES).findall(data))
    )


def kernel_name(expressions: Sequence[str], kernels: Sequence[str], program: object = "") -> str:
    """Name a program: by its only kernel, else by its file, else by its first kernel.

    `expressions` are those that were asked for, such as `scale<float>`; `kernels` what the source or the binary has.
    """
    asked = list(dict.fromkeys(plain(expression) for expression in expressions)) or list(kernels)
    name = text_of(program).rpartition("/")[2].removesuffix(".cu")
    stem = "" if name == "default_program" else name
    return asked[0] if len(asked) == 1 else stem or (asked[0] if asked else UNNAMED)


def plain(expression: str) -> str:
    """Return the function that an expression names, without template arguments: `scale` of `&scale<float, 4>`."""
    return expression.partition("<")[0].lstrip("&( ").strip() or expression


def key_of(options: Iterable[object], expressions: Sequence[str] = (), **more: str) -> SpecializationKey:
    """Return template arguments, macros, options and target as a key. Folders to include from are left out.

    `more` are options that the caller knows by name; those that are empty are left out.
    """
    arguments = [expression.partition("<")[2].rpartition(">")[0] for expression in expressions]
    template = [Component("template arguments", "constexpr", "", " | ".join(arguments))] if any(arguments) else []
    given = [component for option in _joined(options) for component in _component(option)]
    named = [Component(name, "option", "", value) for name, value in more.items() if value]
    return SpecializationKey((*template, *given, *named))


def _joined(options: Iterable[object]) -> Iterator[str]:
    """Yield options with their values: some write `-arch sm_90` as two."""
    waiting = ""
    for option in map(text_of, options):
        if waiting:
            option, waiting = f"{waiting}={option}", ""
        if option in _WITH_VALUE:
            waiting = option
        else:
            yield option


def _component(option: str) -> Iterator[Component]:
    name, _, value = option.lstrip("-").partition("=")
    if option.startswith(("-D", "-I")) and name not in _MACROS + _FOLDERS:
        name, value = option[1], option[2:]
    if name in _MACROS:
        macro, _, content = value.partition("=")
        yield Component(macro, "constexpr", "", content or "1")
    elif name in _TARGETS:
        yield Component("arch", "target", "", value)
    elif name not in _FOLDERS:
        yield Component(name, "option", "", value or "on")


def digest(*parts: object) -> str:
    """Return a hash of texts and bytes, in this order."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(text_of(part).encode())
        whole.update(b"\0")
    return whole.hexdigest()
