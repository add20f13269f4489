"""An autotuned kernel's warmup entry. `.warmup()` compiles its configs but chooses none: the entry has to run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_jitguard.monitors._source import source_of
from pytest_jitguard.monitors._triton_entry import filled
from pytest_jitguard.monitors._triton_keys import kernel_path

_NOT_ARGUMENTS = ("grid", "warmup")
_CHOICE = "# runs the benchmarks of the tuner; better still, call the op that launches this, with its own data"
_GRID = "# its grid is computed by the caller: put it in place of (1,), the choice depends on it"


def tuning_entry(tuner: Any, run_locals: Mapping[str, Any]) -> str:
    """Return an entry in the form of `Entry.text`, from the locals of `Autotuner.run`; keeps no argument."""
    fn = tuner.fn
    while hasattr(fn, "fn") and not hasattr(fn, "params"):
        fn = fn.fn
    module, _, expression = kernel_path(fn).partition(":")
    while expression.endswith(".fn"):
        expression = expression.removesuffix(".fn")
    kernel = expression or str(getattr(fn, "__name__", "kernel"))
    given = dict(zip(tuner.arg_names, run_locals.get("args", ()), strict=False))
    given |= {name: v for name, v in run_locals.get("kwargs", {}).items() if name not in _NOT_ARGUMENTS}
    imports, missing, arguments = {"import torch"}, [], []
    for name, value in given.items():
        source, needed = _source(value)
        imports |= needed
        if not source:
            missing.append(f"# {name} has no source form: fill it in")
        arguments.append(f"{name}={source or f'FILL_IN_{name}'}")
    grid, remarks = _grid(run_locals.get("kwargs", {}).get("grid"))
    if expression:
        imports.add(f"from {module} import {expression.partition('.')[0]}")
    else:
        missing.append(f"# {kernel} cannot be imported from {fn.module}: take the kernel from its factory")
    head = sorted(imports, key=lambda line: (line.startswith("from "), line))
    return "\n".join([*head, "", _CHOICE, *remarks, *missing, f"{kernel}[{grid}](", *filled(arguments), ")"])


def _grid(grid: Any) -> tuple[str, list[str]]:
    if isinstance(grid, (tuple, list)) and all(isinstance(size, int) for size in grid):
        return repr(tuple(grid)), []
    return "(1,)", [_GRID]


def _source(value: Any) -> tuple[str, frozenset[str]]:
    try:
        if hasattr(value, "data_ptr") and hasattr(value, "untyped_storage"):
            return _tensor(value), frozenset()
    except Exception:  # noqa: BLE001 - an argument may be any object
        return "", frozenset()
    return source_of(value)


def _tensor(value: Any) -> str:
    """Return zeros of the same shape, strides, dtype and alignment: an index that is zero reaches nothing foreign."""
    shape, strides = tuple(value.shape), tuple(value.stride())
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if value.numel() else 0
    shift = (value.data_ptr() % 16) // value.element_size()
    zeros = f'torch.zeros({extent + shift}, dtype={value.dtype}, device="cuda")'
    if shift == 0 and value.is_contiguous():
        return f'torch.zeros({list(shape)}, dtype={value.dtype}, device="cuda")'
    return f"{zeros}.as_strided({list(shape)}, {list(strides)}, {shift})"
