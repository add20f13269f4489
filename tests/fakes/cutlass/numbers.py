"""The DSL's numbers, whose values no program is specialized for."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

T = TypeVar("T")

traced: list[str] = []
"""What the program that is being traced has done so far."""


class Number:
    mlir_type = ""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __add__(self, other: Any) -> Number:
        traced.append(f"add {other}")
        return type(self)(None)

    def __str__(self) -> str:
        return "?"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value!r})"


class Int32(Number):
    mlir_type = "i32"


class Float32(Number):
    mlir_type = "f32"


class Boolean(Number):
    mlir_type = "i1"


class Constexpr(Generic[T]):
    pass
