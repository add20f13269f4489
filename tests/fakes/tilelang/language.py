"""What programs are written in. A program is known by its name and the buffers that its annotations declare."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class PrimFunc:
    def __init__(self, name: str, buffers: list[Any]) -> None:
        self.attrs = {"global_symbol": name}
        self.params = [f"{buffer.name}_handle" for buffer in buffers]
        self.buffer_map = dict(zip(self.params, buffers, strict=True))

    def script(self) -> str:
        return f"{self.attrs['global_symbol']}({[vars(buffer) for buffer in self.buffer_map.values()]})"


def Tensor(shape: tuple[int, ...], dtype: str) -> Any:
    return SimpleNamespace(name="", shape=list(shape), dtype=dtype)


def prim_func(function: Any) -> PrimFunc:
    for name, buffer in function.__annotations__.items():
        buffer.name = name
    return PrimFunc(function.__name__, list(function.__annotations__.values()))
