"""Triton's specialization keys in words, and a variant's warmup entry as source text. Imports nothing of Triton."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_jitguard.core.events import Launch
from pytest_jitguard.core.keys import NOT, Change, Component, SpecializationKey

_LONGEST = 120
ADDED_BY_RUN = ("instrumentation_mode", "fpsan_homomorphic_casts")
"""Options that `JITFunction.run` appends by itself (Triton 3.6 and 3.9); a caller does not spell them."""


def text_of(value: Any) -> str:
    """Return a value's repr, shortened, whatever the object does when asked."""
    try:
        name = getattr(value, "__name__", None) if callable(value) else None
        text = str(name) if name else repr(value)
    except Exception:  # noqa: BLE001 - a constexpr may be any object, with any __repr__
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def key_of(src: Any, options: Mapping[str, Any], target: Any, device: int | None) -> SpecializationKey:
    """Return the key of an ASTSource (or GluonASTSource): arguments first, then options, target and device."""
    components = list(_arguments(src)) if getattr(src, "fn", None) is not None else []
    components += [Component(name, "option", "", text_of(value)) for name, value in options.items()]
    if target is not None:
        components.append(Component("target", "target", "", f"{target.backend}:{target.arch}"))
    components.append(Component("device", "device", "", str(device or 0)))
    return SpecializationKey(tuple(components))


def _arguments(src: Any) -> Iterator[Component]:
    for number, param in enumerate(src.fn.params):
        if param.name in src.signature:
            yield from _argument(src, param.name, src.signature[param.name], (number,), bool(param.is_constexpr))


def _argument(src: Any, name: str, type_: Any, path: tuple[int, ...], is_constexpr: bool) -> Iterator[Component]:
    if isinstance(type_, (tuple, list)):
        for number, element in enumerate(type_):
            yield from _argument(src, f"{name}[{number}]", element, (*path, number), is_constexpr)
    elif type_ == "constexpr":
        # The same word stands for a constexpr parameter and for an integer argument equal to 1 (or None).
        value = text_of(src.constants.get(path))
        yield Component(name, "constexpr" if is_constexpr else "argument", "", value)
    else:
        yield Component(name, "argument", str(type_), _value_class(str(type_), src.attrs.get(path)))


def _value_class(type_: str, attributes: Sequence[Sequence[Any]] | None) -> str:
    """Say what the key holds of a value; an argument that is not specialized has no attributes at all."""
    if attributes is None:
        return ""
    divisible = any(name == "tt.divisibility" for name, _ in attributes)
    small = ", under 2 GiB" if any(name == "tt.pointer_range" for name, _ in attributes) else ""
    if type_.startswith("*"):
        return ("16-byte aligned" if divisible else "unaligned") + small
    return "divisible by 16" if divisible else f"{NOT}divisible by 16"


def tuning_key(names: Sequence[str], key: Sequence[Any]) -> SpecializationKey:
    """Return an autotuner's key: the values of its `key=` arguments, then the dtypes of all tensors in call order."""
    named = [Component(name, "tuning", "", text_of(value)) for name, value in zip(names, key, strict=False)]
    dtypes = enumerate(key[len(names) :])
    return SpecializationKey((*named, *(Component(f"dtype {n}", "tuning", "", str(value)) for n, value in dtypes)))


def launch_of(run_locals: Mapping[str, Any], fn: Any) -> Launch:
    """Describe a launch from the locals of `JITFunction.run`, keeping no reference to any argument."""
    bound = run_locals.get("bound_args")
    bound = bound if isinstance(bound, Mapping) else {}
    values = {name: repr(value) for name, value in bound.items() if value is None or type(value) in (int, float, bool)}
    tensors = {name: form for name, value in bound.items() if (form := _tensor_form(value))}
    return Launch(values, tensors, _spelled_options(run_locals.get("kwargs") or {}, fn, bound), kernel_path(fn))


def _tensor_form(value: Any) -> str:
    try:
        if not hasattr(value, "data_ptr"):
            return ""
        return f"{str(value.dtype).removeprefix('torch.')}{list(getattr(value, 'shape', []))}"
    except Exception:  # noqa: BLE001 - an argument may be any object
        return ""


def _spelled_options(kwargs: Mapping[str, Any], fn: Any, bound: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the options as the caller spelled them, in order: `run` appends `debug` and others where they miss."""
    names = [name for name in kwargs if name not in bound and name not in ADDED_BY_RUN]
    if names and names[-1] == "debug" and not kwargs["debug"]:
        names.pop()
    return tuple((name, source_of(kwargs[name])) for name in names)


def kernel_path(fn: Any) -> str:
    """Return `module:expression` that reaches this very kernel object by import, empty if nothing does.

    A kernel under `@triton.autotune` or `@triton.heuristics` is reached through their `.fn`.
    """
    module, name = getattr(fn, "module", None) or "", getattr(getattr(fn, "fn", None), "__qualname__", "")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    for _ in range(8):
        if found is fn:
            return f"{module}:{name}"
        found, name = getattr(found, "fn", None), f"{name}.fn"
    return ""


_DTYPES = {
    "fp8e4nv": "float8_e4m3fn",
    "fp8e5": "float8_e5m2",
    "fp8e4b8": "float8_e4m3fnuz",
    "fp8e5b16": "float8_e5m2fnuz",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "fp64": "float64",
    "i1": "bool",
    "u1": "bool",
    **{f"{short}{bits}": f"{long}{bits}" for short, long in (("i", "int"), ("u", "uint")) for bits in (8, 16, 32, 64)},
}


def source_of(value: Any) -> str:
    """Return Python source for a constexpr or option, or a remark in angle brackets where there is none."""
    if value is None or type(value) in (int, bool, str):
        return repr(value)
    if type(value) is float:
        return repr(value) if value == value and abs(value) != float("inf") else f'float("{value}")'
    if type(value) is tuple:
        return f"({', '.join(source_of(item) for item in value)}{',' if len(value) == 1 else ''})"
    if type(value).__module__ == "triton.language.core" and type(value).__name__ == "dtype":
        return f"tl.{_TL_NAMES.get(value.name, value.name)}"
    return f"<{text_of(value)}>"


_TL_NAMES = {
    **_DTYPES,
    "fp8e4nv": "float8e4nv",
    "fp8e5": "float8e5",
    "fp8e4b8": "float8e4b8",
    "fp8e5b16": "float8e5b16",
    "int1": "int1",
}


class Entry:
    """Writes `kernel.warmup(...)` for one variant: arguments by name, from the key alone where no value was seen."""

    def __init__(self, src: Any, launch: Launch | None) -> None:
        self.src = src
        self.launch = launch or Launch()
        self.imports = {"import torch", "import triton"}

    def text(self) -> str:
        """Return the entry as source, empty for a kernel that is not a JIT function."""
        fn = getattr(self.src, "fn", None)
        if fn is None:
            return ""
        module, _, expression = (self.launch.path or kernel_path(fn)).partition(":")
        kernel = expression or fn.__name__
        arguments = [
            f"{p.name}={self._argument(n, p)}" for n, p in enumerate(fn.params) if p.name in self.src.signature
        ]
        options = [f"{name}={value}" for name, value in self.launch.options]
        body = "\n".join([f"{kernel}.warmup(", *_filled([*arguments, *options, "grid=(1,)"]), ")"])
        if "tl." in body:
            self.imports.add("import triton.language as tl")
        made = f"# {kernel} is made in a factory of {fn.module}: take the kernel object from there"
        origin = f"from {module} import {expression.split('.')[0]}" if expression else made
        return "\n".join([*sorted(self.imports), origin, "", body])

    def _argument(self, number: int, param: Any) -> str:
        return self._value(param.name, self.src.signature[param.name], (number,))

    def _value(self, name: str, type_: Any, path: tuple[int, ...]) -> str:
        if isinstance(type_, (tuple, list)):
            inner = ", ".join(self._value("", element, (*path, n)) for n, element in enumerate(type_))
            return f"({inner}{',' if len(type_) == 1 else ''})"
        if type_ == "constexpr":
            return source_of(self.src.constants.get(path))
        return self._typed(name, str(type_), self.src.attrs.get(path))

    def _typed(self, name: str, type_: str, attributes: Sequence[Sequence[Any]] | None) -> str:
        if type_.startswith("tensordesc"):
            return self._descriptor(type_)
        if type_.startswith("*"):
            return _pointer(type_.lstrip("*").removeprefix("k"), attributes)
        if name in self.launch.values:
            return self.launch.values[name]
        return _scalar(type_, _value_class(type_, attributes))

    def _descriptor(self, type_: str) -> str:
        dtype, _, block = type_.removeprefix("tensordesc<").rstrip(">").partition("[")
        shape = [int(size) for size in block.split("]")[0].split(",")]
        strides = [1] * len(shape)
        for n in range(len(shape) - 2, -1, -1):
            strides[n] = strides[n + 1] * shape[n + 1]
        self.imports.add("from triton.tools.tensor_descriptor import TensorDescriptor")
        base = f'torch.empty({tuple(shape)}, dtype=torch.{_DTYPES.get(dtype, dtype)}, device="cuda")'
        return f"TensorDescriptor({base}, {shape}, {strides}, {shape})"


def _filled(arguments: Sequence[str], width: int = 100) -> list[str]:
    """Put arguments on as few lines as fit."""
    lines = [""]
    for argument in arguments:
        if lines[-1] and len(lines[-1]) + len(argument) > width:
            lines.append("")
        lines[-1] += f"{' ' if lines[-1] else '    '}{argument},"
    return lines


def _pointer(element: str, attributes: Sequence[Sequence[Any]] | None) -> str:
    dtype = f"torch.{_DTYPES.get(element, element)}"
    if "unaligned" in _value_class("*", attributes):
        # One element past an aligned start; MockTensor has no unaligned form.
        return f'torch.empty(2, dtype={dtype}, device="cuda")[1:]'
    return f"triton.MockTensor({dtype})"


def _scalar(type_: str, value_class: str) -> str:
    if type_.startswith(("fp", "bf")):
        return "1.5"
    if type_ in ("u1", "i1"):
        return "True"
    smallest = {"i64": 2**40, "u64": 2**63}.get(type_, 16)
    return str(smallest + 1 if value_class.startswith(NOT) else smallest)


def scalar_advice(changes: Sequence[Change]) -> str:
    """Return what could be done in the kernel where value classes are the only difference, with its price."""
    scalars: list[str] = []
    pointers: list[str] = []
    for change in changes:
        if change.role != "argument" or change.warmed is None or change.served is None:
            return ""
        types = {change.warmed.type, change.served.type} - {""}
        if len(types) != 1 or "None" in (change.warmed.value, change.served.value):
            return ""
        (pointers if types.pop().startswith("*") else scalars).append(change.component)
    parts = [f"do_not_specialize={scalars!r}"] if scalars else []
    parts += [f"do_not_specialize_on_alignment={pointers!r}"] if pointers else []
    return (
        f"possible instead: @triton.jit({', '.join(parts)}) makes these one variant, "
        "but can cost steady-state speed, since the compiler then knows less about the values"
    )
