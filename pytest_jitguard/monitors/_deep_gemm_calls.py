"""The call of DeepGEMM that compiled: which function, with which tensors. Looked at from outside, when it is over.

DeepGEMM's functions are plain Python that calls `torch.ops` (what SGLang ships, and vLLM from 2.8), or C functions
without a frame (vLLM's up to 2.6, upstream): then the caller's own text says what was called with what.
"""

from __future__ import annotations

import ast
import dis
import linecache
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

from pytest_jitguard.core.events import Launch
from pytest_jitguard.monitors._frames import frames_of

PACKAGES = ("deep_gemm", "vllm.third_party.deep_gemm")

_GEMMS = {"nt": (-2, -1, -2), "nn": (-2, -1, -1), "tn": (-1, -2, -1), "tt": (-1, -2, -2)}
"""Where M and K are in the shape of the first matrix, and N in that of the second, by the layout in the name."""

_UNKNOWN = object()
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FAST", "LOAD_DEREF", "LOAD_ATTR", "LOAD_METHOD", "LOAD_FAST_BORROW")


@dataclass(frozen=True)
class Call:
    """A call of a function of DeepGEMM; arguments by position that have no name are called `arg0`, `arg1`."""

    op: str
    package: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> dict[str, int]:
        """M, N and K of a GEMM; empty for anything else."""
        layout = next((part for part in reversed(self.op.split("_")) if part in _GEMMS), "")
        matrices = [_first_tensor(value) for value in list(self.arguments.values())[:2]]
        if not layout or "gemm" not in self.op or len(matrices) < 2 or None in matrices:
            return {}
        m, k, n = _GEMMS[layout]
        a, b = (tuple(map(int, matrix.shape)) for matrix in matrices)
        return {"M": a[m], "N": b[n], "K": a[k]} if min(len(a), len(b)) > 1 else {}

    @property
    def launch(self) -> Launch:
        """What the report shows of it."""
        scalars = {name: repr(value) for name, value in self.arguments.items() if isinstance(value, (int, float, str))}
        tensors = {name: told for name, value in self.arguments.items() for name, told in _told(name, value)}
        values = {**{name: str(size) for name, size in self.shape.items()}, **scalars}
        return Launch(values=values, tensors=tensors, path=f"{self.package}:{self.op}")

    @property
    def cure(self) -> str:
        """A call of the same shapes, for a warmup; empty if an argument is not known."""
        if not self.arguments or not all(map(_is_writable, self.arguments.values())):
            return ""
        shown = (f"{'' if name.startswith('arg') else name + '='}{_code(value)}" for name, value in _given(self))
        lines = ",\n    ".join(shown)
        return f"import torch\nimport {self.package} as deep_gemm\n\ndeep_gemm.{self.op}(\n    {lines},\n)"


def _given(call: Call) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in call.arguments.items() if value is not None or name.startswith("arg")]


def find_call(frame: FrameType | None) -> tuple[Call | None, FrameType | None]:
    """Return the innermost call of DeepGEMM that a frame is in or has just come back from, and who made it."""
    inside: FrameType | None = None
    for one in frames_of(frame):
        package = _package(one)
        if package:
            inside = one
        elif inside is not None and not _is_torch(one):
            break
        elif inside is None and (call := _c_call(one)):
            return call, one
    if inside is None:
        return None, frame
    return _python_call(inside), inside.f_back


def _package(frame: FrameType) -> str:
    module = str(frame.f_globals.get("__name__", ""))
    return next((name for name in PACKAGES if module == name or module.startswith(f"{name}.")), "")


def _is_torch(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == "torch"


def _python_call(frame: FrameType) -> Call:
    code, given = frame.f_code, frame.f_locals
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return Call(code.co_name, _package(frame), {name: given[name] for name in names if name in given})


# -- C functions -------------------------------------------------------------------------------------------------------


def _c_call(frame: FrameType) -> Call | None:
    """Return the call of a C function of DeepGEMM that a frame has just come back from."""
    name = _called_name(frame)
    for package in PACKAGES:
        functions = {id(value): key for key, value in vars(sys.modules.get(package, ast)).items() if callable(value)}
        called = _named(frame, name)
        if package in sys.modules and called is not None and id(called) in functions:
            return Call(getattr(called, "__name__", "") or functions[id(called)], package, _arguments(frame))
    return None


def _called_name(frame: FrameType) -> str:
    """Return the last name of what is called at a frame's place: `b` of `a.b(c)`; empty if that cannot be told."""
    here = _positions(frame.f_code, frame.f_lasti)
    if here is None:
        return ""
    name = ""
    for instruction in dis.get_instructions(frame.f_code):
        if instruction.offset >= frame.f_lasti:
            break
        at = _positions(frame.f_code, instruction.offset)
        if at is not None and at[::2] == here[::2] and instruction.opname in _LOADS:
            name = str(instruction.argval)
    return name


def _positions(code: CodeType, offset: int) -> tuple[int, int, int, int] | None:
    """Return first line, last line, first and last column of an instruction; None before Python 3.11."""
    positions = getattr(code, "co_positions", None)
    first, last, start, end = list(positions())[offset // 2] if positions else (None,) * 4
    if first is None or last is None or start is None or end is None:
        return None
    return first, last, start, end


def _named(frame: FrameType, name: str) -> Any:
    """Return what a name stands for in a frame: a variable, or an attribute of one of DeepGEMM's modules."""
    for names in (frame.f_locals, frame.f_globals):
        if name in names:
            return names[name]
    for package in PACKAGES:
        if package in sys.modules and name in frame.f_code.co_names:
            return getattr(sys.modules[package], name, None)
    return None


def _arguments(frame: FrameType) -> dict[str, Any]:
    call = _call_expression(frame)
    if call is None:
        return {}
    given: dict[str, Any] = {}
    for argument in call.args:
        value = _value(argument.value if isinstance(argument, ast.Starred) else argument, frame)
        spread = isinstance(argument, ast.Starred) and isinstance(value, (tuple, list))
        for part in value if spread else (value,):
            given[f"arg{len(given)}"] = part
    for keyword in call.keywords:
        value = _value(keyword.value, frame)
        given.update(value if keyword.arg is None and isinstance(value, dict) else {keyword.arg or "**": value})
    # What a flag was is told by what was compiled; a matrix that is not known leaves its place open.
    return {name: value for name, value in given.items() if value is not _UNKNOWN or name.startswith("arg")}


def _call_expression(frame: FrameType) -> ast.Call | None:
    """Return the call at a frame's place as its source has it; None where there is no source."""
    at = _positions(frame.f_code, frame.f_lasti)
    if at is None:
        return None
    first, last, start, end = at
    lines = [linecache.getline(frame.f_code.co_filename, n, frame.f_globals).encode() for n in range(first, last + 1)]
    if not lines or not lines[-1]:
        return None
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    try:
        call = ast.parse(b"".join(lines).decode().strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return None
    return call if isinstance(call, ast.Call) else None


def _value(expression: ast.expr, frame: FrameType) -> Any:
    """Return what an expression stands for, as far as no code of anybody's has to run for it."""
    if isinstance(expression, ast.Constant):
        return expression.value
    if isinstance(expression, ast.Name):
        return frame.f_locals.get(expression.id, frame.f_globals.get(expression.id, _UNKNOWN))
    if isinstance(expression, (ast.Tuple, ast.List)):
        return tuple(_value(part, frame) for part in expression.elts)
    if isinstance(expression, ast.Attribute):
        return _attribute(_value(expression.value, frame), expression.attr)
    return _UNKNOWN


def _attribute(owner: Any, name: str) -> Any:
    """Return what an object itself holds under a name; a module of torch keeps its weights one step further in."""
    held = getattr(owner, "__dict__", {})
    for place in (held, held.get("_parameters"), held.get("_buffers")):
        if isinstance(place, dict) and name in place:
            return place[name]
    return _UNKNOWN


# -- tensors -----------------------------------------------------------------------------------------------------------


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "dtype") and hasattr(value, "stride") and hasattr(value, "shape")


def _is_writable(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_writable, value))
    return _is_tensor(value) or value is None or isinstance(value, (int, float, str)) or "torch." in repr(value)


def _first_tensor(value: Any) -> Any:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return parts[0] if parts and _is_tensor(parts[0]) else None


def _told(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if _is_tensor(value):
        yield name, f"{str(value.dtype).removeprefix('torch.')}{list(map(int, value.shape))}"
    elif isinstance(value, (tuple, list)):
        for place, part in enumerate(value):
            yield from _told(f"{name}[{place}]", part)


def _code(value: Any) -> str:
    """Write an argument as code that makes one of the same kind; indices must be valid, so everything is zero."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_code, value))},)"
    if not _is_tensor(value):
        return repr(value)
    shape, strides = tuple(map(int, value.shape)), tuple(map(int, value.stride()))
    rest = f"dtype={value.dtype}, device='cuda'"
    if strides == _contiguous(shape):
        return f"torch.zeros({shape}, {rest})"
    return f"torch.empty_strided({shape}, {strides}, {rest}).zero_()"


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, size = [], 1
    for extent in reversed(shape):
        strides.append(size)
        size *= max(extent, 1)
    return tuple(reversed(strides))
