"""What numba and numba-cuda have in common: keys from argument types and flags, names, and a warmup entry to paste."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import Any

from pytest_jitguard.core.keys import Component, SpecializationKey
from pytest_jitguard.monitors._cuda_source import digest

_LAYOUTS: Mapping[str, Callable[[int], list[str]]] = {
    "C": lambda ndim: [*[":"] * (ndim - 1), "::1"],
    "F": lambda ndim: ["::1", *[":"] * (ndim - 1)],
    "A": lambda ndim: [":"] * ndim,
}


def names_of(function: Any) -> tuple[str, str]:
    """Return (kernel, module) of a Python function."""
    name = getattr(function, "__qualname__", "") or getattr(function, "__name__", "") or "unnamed function"
    return str(name), str(getattr(function, "__module__", "") or "")


def key_of(function: Any, types: Iterable[Any], options: Mapping[str, Any], returns: Any = None) -> SpecializationKey:
    """Return the key of a version: the type of each argument by its name, and the flags that are not off.

    `function` is the Python function, or None if the types are not those of its parameters.
    """
    types = tuple(types)
    arguments = [_argument(name, type) for name, type in zip(_parameters(function, len(types)), types, strict=False)]
    wanted = [Component("return type", "option", "", str(returns))] if returns is not None else []
    flags = [Component(name, "option", "", str(options[name])) for name in sorted(options) if _is_on(options[name])]
    return SpecializationKey((*arguments, *wanted, *flags))


def _is_on(value: Any) -> bool:
    return bool(value) and value != "never"  # how numba-cuda writes inline=False


def _parameters(function: Any, count: int) -> list[str]:
    code = getattr(function, "__code__", None)
    known = list(code.co_varnames[: code.co_argcount]) if isinstance(code, CodeType) else []
    return [*known, *(f"argument {number}" for number in range(len(known), count))][:count]


def _argument(name: str, type: Any) -> Component:
    kind = str(type)
    if kind.startswith("omitted(") and hasattr(type, "value"):
        return Component(name, "argument", "omitted", f"default {type.value!r}")
    if hasattr(type, "literal_type") and hasattr(type, "literal_value"):
        return Component(name, "argument", str(type.literal_type), f"literal {type.literal_value!r}")
    return Component(name, "argument", kind, "")


def hash_of(function: Any, types: Iterable[Any], options: Mapping[str, Any] | None = None) -> str:
    """Return what identifies a version in any process: the function's code, its argument types and its flags."""
    code = getattr(function, "__code__", None)
    body = (code.co_code, str(code.co_names), str(_constants(code))) if isinstance(code, CodeType) else ()
    flags = sorted(f"{name}={value}" for name, value in (options or {}).items() if _is_on(value))
    return digest(*names_of(function), *map(str, types), *flags, *body)


def _constants(code: CodeType) -> list[str]:
    """Return the constants as texts that are the same in every process."""
    plain = (constant for constant in code.co_consts if not isinstance(constant, CodeType))
    return [str(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant) for constant in plain]


def entry_of(dispatcher: Any, types: Iterable[Any], read: Callable[[str], Iterable[Any]]) -> str:
    """Return the call that compiles this version ahead of time; empty if it cannot be written as text.

    `read` is how numba reads a signature: an entry that means other types is not given.
    """
    types = tuple(types)
    name, module = names_of(getattr(dispatcher, "py_func", None))
    if module == "__main__" or _reached(module, name) is not dispatcher:
        return ""
    signature = f"({', '.join(map(_written, types))}{',' if len(types) == 1 else ''})"
    try:
        means = tuple(read(signature))
    except Exception:  # noqa: BLE001 - types of third parties may be written as anything
        return ""
    return f"from {module} import {name.partition('.')[0]}\n\n{name}.compile({signature!r})" if means == types else ""


def _written(type: Any) -> str:
    """Write a type as signatures have it: `float64[:, ::1]` for an array, else its name."""
    layout = _LAYOUTS.get(str(getattr(type, "layout", "")))
    if layout is None or not hasattr(type, "dtype"):
        return str(type)
    return f"{type.dtype}[{', '.join(layout(type.ndim))}]" if type.ndim else ""


def _reached(module: str, name: str) -> Any:
    thing: Any = sys.modules.get(module)
    for part in name.split("."):
        thing = getattr(thing, part, None)
    return thing
