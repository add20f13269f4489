"""What JAX looks up: the computation's arguments, the platform, and what the call gave for static arguments.

A computation does not say which values it was specialized for. The call does, whose frame is still there while a miss
is compiled; what is lowered in one call and compiled in another (`.lower(...).compile()`) has none.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from pytest_jitguard.core.keys import Component, SpecializationKey

_TENSOR = re.compile(r"tensor<((?:[\d?]+x)*)([^<>x][^<>]*)>")
_LOCATION = re.compile(r'loc\("([^"]*)"')
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")

_FARTHEST = 60
"""How many frames there may be between a call that misses and its compile."""

_LONGEST = 100
"""Characters of a value."""


def name_of(computation: Any) -> str:
    """Return the function's name."""
    try:
        name = str(computation.operation.attributes["sym_name"]).strip('"')
    except Exception:  # noqa: BLE001 - an MLIR module of another release: its compile is an event all the same
        name = ""
    return name.removeprefix("jit_") or "unnamed computation"


def key_of(backend: Any, computation: Any) -> SpecializationKey | None:
    """Return arguments of the computation's main function, static ones and platform; None if its form is not known."""
    try:
        operations = [operation.operation for operation in computation.body.operations]
        main = next(o for o in operations if str(o.attributes["sym_name"]).strip('"') == "main")
        arguments = [
            Component(_argument(str(given.location), number), "argument", _short(str(given.type)), "")
            for number, given in enumerate(main.regions[0].blocks[0].arguments)
        ]
        platform = str(getattr(backend, "platform", ""))
    except Exception:  # noqa: BLE001 - as above
        return None
    static = _static_arguments(name_of(computation))
    return SpecializationKey((*arguments, *static, Component("platform", "target", "", platform)))


def _argument(location: str, number: int) -> str:
    found = _LOCATION.match(location)
    return found.group(1) if found else f"argument {number}"


def _short(type: str) -> str:
    """Write a type as JAX does: `f32[8,16]` for `tensor<8x16xf32>`."""
    found = _TENSOR.fullmatch(type)
    return f"{found.group(2)}[{found.group(1).rstrip('x').replace('x', ',')}]" if found else type


def _static_arguments(name: str) -> list[Component]:
    """Return the static arguments of the call that is being compiled for, none if it is not on this thread."""
    frame = _call(sys._getframe())
    try:
        if frame is None:
            return []
        known = frame.f_locals  # JAX 0.10: of `cache_miss` in `_cpp_pjit`
        if getattr(known["fun"], "__name__", "") != name:
            return []
        given = dict(_given(known["jit_info"], known["args"], known["kwargs"]))
        return [Component(name, "constexpr", "", _value(value)) for name, value in given.items()]
    except Exception:  # noqa: BLE001 - JAX changes, and values have a `__repr__` of their own
        return []
    finally:
        del frame  # it keeps its locals


def _call(frame: FrameType | None) -> FrameType | None:
    """Return the frame of JAX's that looks for the innermost function to compile, as far as it is known."""
    for _ in range(_FARTHEST):
        if frame is None or {"fun", "jit_info"} <= set(frame.f_code.co_freevars):
            return frame
        frame = frame.f_back
    return None


def _given(info: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield static arguments by name; JAX resolves numbers and names into each other as far as there is a signature."""
    names = list(getattr(info.fun_signature, "parameters", ()))
    for number in info.static_argnums:
        if -len(args) <= number < len(args):
            place = number % len(args)
            yield names[place] if place < len(names) else f"argument {place}", args[place]
    for name in info.static_argnames:
        if name in kwargs:
            yield name, kwargs[name]


def _value(value: Any) -> str:
    text = _ADDRESS.sub("", repr(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
