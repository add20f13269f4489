"""A variant's warmup entry: `kernel.warmup(...)` to paste, that fills the lookup for the launch that missed it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pytest_jitguard.core.events import Launch
from pytest_jitguard.core.keys import NOT
from pytest_jitguard.monitors._source import source_of
from pytest_jitguard.monitors._triton_keys import is_annotated_one, kernel_path, text_of, value_class

_TORCH_DTYPES = {
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

_LARGE = 'Large = type("Large", (triton.MockTensor,), {"ptr_range": staticmethod(lambda: 2**31)})  # over 2 GiB'

NOT_BY_WARMUP = (
    "# compiled by a direct call of triton.compile(): no warmup of the kernel makes that a hit;\n"
    "# call it once in the warmup and keep the compiled kernel"
)


class Entry:
    """Writes the entry of one variant: arguments by name, from the key alone where no value was seen.

    What has no source form gets a name that does not exist, so that the entry fails rather than warms something else.
    `launches` says that this Triton compiles a launcher for each signature, which the entry is to do as well. The text
    is imports, one empty line, and the call with its remarks: reports put several under one set of imports.
    """

    def __init__(
        self, src: Any, launch: Launch | None, *, device: int = 0, backend: str = "", launches: bool = False
    ) -> None:
        self.src = src
        self.launch = launch or Launch()
        self.device = device
        self.backend = backend
        self._end = ").run  # .run: the launcher as well, which .warmup() does not compile" if launches else ")"
        self._imports = {"import triton"}
        self._helpers: set[str] = set()
        self._remarks: list[str] = []

    def text(self) -> str:
        """Return the entry as source, empty for what is not a kernel function."""
        fn = getattr(self.src, "fn", None)
        if fn is None:
            return ""
        module, _, expression = (self.launch.path or kernel_path(fn)).partition(":")
        if expression:
            self._imports.add(f"from {module} import {expression.partition('.')[0]}")
        else:
            self._remarks.append(f"{fn.__name__} cannot be imported from {fn.module}: take the kernel from its factory")
        call = self._call(expression or str(fn.__name__), fn)
        if self.device:
            self._imports.add("import torch")
            call = [f"with torch.cuda.device({self.device}):", *(f"    {line}" for line in call)]
        remarks = [f"# {remark}" for remark in self._remarks]
        imports = sorted(self._imports, key=lambda line: (line.startswith("from "), line))
        return "\n".join([*imports, "", *remarks, *sorted(self._helpers), *call])

    def _call(self, kernel: str, fn: Any) -> list[str]:
        given = [p for p in fn.params if p.name in self.src.signature]
        arguments = [f"{p.name}={self._argument(p)}" for p in given]
        options = [f"{name}={value or self._missing(name, '')}" for name, value in self.launch.options]
        return [f"{kernel}.warmup(", *filled([*arguments, *options, "grid=(1,)"]), self._end]

    def _argument(self, param: Any) -> str:
        one = is_annotated_one(self.src, param, (param.num,))
        return "1" if one else self._value(param.name, self.src.signature[param.name], (param.num,))

    def _value(self, name: str, type_: Any, path: tuple[int, ...]) -> str:
        if isinstance(type_, (tuple, list)):
            return self._tuple(name, type_, path)
        if type_ == "constexpr":
            value = self.src.constants.get(path)
            source, imports = source_of(value)
            self._imports |= imports
            return source or self._missing(name, text_of(value))
        return self._typed(name, str(type_), self.src.attrs.get(path))

    def _tuple(self, name: str, types: Sequence[Any], path: tuple[int, ...]) -> str:
        inner = ", ".join(self._value(f"{name}_{n}", element, (*path, n)) for n, element in enumerate(types))
        if type(types) in (tuple, list):
            return f"({inner}{',' if len(types) == 1 else ''})"
        made, imports = source_of(type(types))  # a namedtuple: the signature has its class
        self._imports |= imports
        return f"{made}({inner})" if made else self._missing(name, f"a {type(types).__name__}")

    def _missing(self, name: str, shown: str) -> str:
        self._remarks.append(f"{name}{'=' if shown else ''}{_one_line(shown)} has no source form: fill it in")
        return f"FILL_IN_{name}"

    def _typed(self, name: str, type_: str, attributes: Sequence[Sequence[Any]] | None) -> str:
        if type_.startswith("*"):
            return self._pointer(name, type_.lstrip("*").removeprefix("k"), attributes)
        if name in self.launch.values:
            return _scalar_text(self.launch.values[name])
        return self._descriptor(type_) or _scalar(type_, value_class(type_, attributes)) or self._missing(name, type_)

    def _pointer(self, name: str, element: str, attributes: Sequence[Sequence[Any]] | None) -> str:
        if element not in _TORCH_DTYPES:
            return self._missing(name, f"a pointer to {element}")
        self._imports.add("import torch")
        dtype, seen = f"torch.{_TORCH_DTYPES[element]}", value_class("*", attributes)
        large = self.backend == "hip" and attributes is not None and "GiB" not in seen
        if "unaligned" in seen and large:
            return self._missing(name, "an unaligned tensor of more than 2 GiB")
        if "unaligned" in seen:
            # One element past an aligned start; MockTensor has no unaligned form.
            return f'torch.empty(2, dtype={dtype}, device="cuda")[1:]'
        if large:
            self._helpers.add(_LARGE)
        return f"{'Large' if large else 'triton.MockTensor'}({dtype})"

    def _descriptor(self, type_: str) -> str:
        """Return a descriptor of the same block; empty for Gluon's, which carry a layout."""
        match = re.fullmatch(r"tensordesc<(\w+)\[([\d, ]+)\]>", type_)
        if match is None or match[1] not in _TORCH_DTYPES:
            return ""
        block = [int(size) for size in match[2].split(",")]
        # Strides must be multiples of 16 bytes, the last one 1.
        shape = [*block[:-1], -(-block[-1] // 16) * 16]
        strides = [1] * len(shape)
        for n in range(len(shape) - 2, -1, -1):
            strides[n] = strides[n + 1] * shape[n + 1]
        self._imports |= {"import torch", "from triton.tools.tensor_descriptor import TensorDescriptor"}
        base = f'torch.empty({tuple(shape)}, dtype=torch.{_TORCH_DTYPES[match[1]]}, device="cuda")'
        return f"TensorDescriptor({base}, {shape}, {strides}, {block})"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def filled(arguments: Sequence[str], width: int = 100) -> list[str]:
    """Put arguments on as few lines as fit."""
    lines = [""]
    for argument in arguments:
        if lines[-1] and len(lines[-1]) + len(argument) > width:
            lines.append("")
        lines[-1] += f"{' ' if lines[-1] else '    '}{argument},"
    return lines


def _scalar_text(value: str) -> str:
    return f'float("{value}")' if value.lstrip("-") in ("inf", "nan") else value


def _scalar(type_: str, class_: str) -> str:
    if type_.startswith(("fp", "bf")):
        return "1.5"
    if type_ in ("u1", "i1"):
        return "True"
    if type_ not in _TORCH_DTYPES:
        return ""
    smallest = {"i64": 2**40, "u64": 2**63}.get(type_, 16)
    return str(smallest + 1 if class_.startswith(NOT) else smallest)
