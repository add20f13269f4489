"""Python source for values: what an expression in another process has to say to get an equal one."""

from __future__ import annotations

import dataclasses
import enum
import sys
from typing import Any


def reach(module: str, path: str) -> Any:
    """Return what `module.path` holds in this process, None if nothing; imports nothing."""
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def source_of(value: Any) -> tuple[str, frozenset[str]]:
    """Return an expression and the imports it needs; ("", ...) where there is none."""
    try:
        return _Writer().write(value)
    except Exception:  # noqa: BLE001 - any object, with any __repr__, __eq__ or __getattr__
        return "", frozenset()


class _Unspeakable(Exception):
    """There is no expression for this value."""


class _Writer:
    def __init__(self) -> None:
        self._imports: set[str] = set()

    def write(self, value: Any) -> tuple[str, frozenset[str]]:
        return self._expression(value), frozenset(self._imports)

    def _expression(self, value: Any) -> str:
        kind = type(value)
        if value is None or kind in (int, bool, str, bytes):
            return repr(value)
        if kind is float:
            return repr(value) if value == value and abs(value) != float("inf") else f'float("{value}")'
        if kind is tuple:
            return f"({self._list(value)}{',' if len(value) == 1 else ''})"
        if kind is frozenset:
            return f"frozenset([{self._list(value)}])"
        if kind.__name__ == "dtype" and kind.__module__ in ("torch", "triton.language.core"):
            return self._dtype(value)
        return self._named(value, kind)

    def _list(self, values: Any) -> str:
        return ", ".join(self._expression(item) for item in values)

    def _dtype(self, value: Any) -> str:
        if type(value).__module__ == "torch":
            self._imports.add("import torch")
            return str(value)
        self._imports.add("import triton.language as tl")
        # Its repr is the name by which the module offers it: triton.language.float16 for fp16.
        name = repr(value).rpartition(".")[2]
        if reach("triton.language", name) != value:
            raise _Unspeakable
        return f"tl.{name}"

    def _named(self, value: Any, kind: type) -> str:
        if isinstance(value, enum.Enum):
            return f"{self._import(kind)}.{value.name}" if value.name else self._refuse()
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return f"{self._import(kind)}({self._list(value)})"
        if dataclasses.is_dataclass(kind):
            fields = [field for field in dataclasses.fields(kind) if field.init]
            arguments = [f"{field.name}={self._expression(getattr(value, field.name))}" for field in fields]
            again = kind(**{field.name: getattr(value, field.name) for field in fields})
            return f"{self._import(kind)}({', '.join(arguments)})" if again == value else self._refuse()
        # A function, a class, or a kernel; a kernel function knows its name by the function that it was made from.
        return self._import(value)

    def _import(self, thing: Any) -> str:
        function = getattr(thing, "fn", thing)
        module, path = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
        if not isinstance(module, str) or module == "__main__" or reach(module, path) is not thing:
            self._refuse()
        first = path.partition(".")[0]
        if module != "builtins":
            self._imports.add(f"from {module} import {first}")
        return path

    def _refuse(self) -> str:
        raise _Unspeakable
