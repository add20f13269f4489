"""What Dynamo looks at when it looks a function's code up: the arguments, as components of a key."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from types import CodeType
from typing import Any

from pytest_jitguard.core.keys import Component, SpecializationKey

_MOST_ITEMS = 16
"""How many items of a list or a dictionary are looked at."""

_LONGEST = 60

SCALARS = (int, float, complex, str, bytes, bool, type(None))


def key_of(code: CodeType, given: Mapping[str, Any]) -> SpecializationKey:
    """Return the arguments of a call as components, and the modes that every guard looks at.

    A tensor's type is its dtype, its value shape and device; numbers and texts are constants to Dynamo. Closures and
    globals are left out: if one of them changed, the reason says so.
    """
    with untraced():
        components = [c for name in argument_names(code) if name in given for c in _components(name, given[name])]
        return SpecializationKey((*components, _grad_mode()))


def argument_names(code: CodeType) -> list[str]:
    """Return a function's parameters, without those that Dynamo made for the rest of a function after a break."""
    extra = sum(bool(code.co_flags & flag) for flag in (inspect.CO_VARARGS, inspect.CO_VARKEYWORDS))
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + extra]
    return [name for name in names if not name.startswith(("__", "."))]


def untraced() -> AbstractContextManager[Any]:
    """Keep modes and subclasses of the user's from seeing that we look at tensors."""
    torch = sys.modules.get("torch")
    disable = getattr(getattr(torch, "_C", None), "DisableTorchFunction", None)
    return disable() if disable else contextlib.nullcontext()


def is_tensor(value: Any) -> bool:
    """Tell whether something is a tensor."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def _components(name: str, value: Any) -> Iterator[Component]:
    if isinstance(value, (list, tuple)) and len(value) <= _MOST_ITEMS:
        yield Component(name, "argument", type(value).__name__, f"{len(value)} items")
        for number, item in enumerate(value):
            yield _component(f"{name}[{number}]", item)
    elif isinstance(value, dict) and len(value) <= _MOST_ITEMS:
        yield Component(name, "argument", type(value).__name__, f"{len(value)} items")
        for key, item in value.items():
            yield _component(f"{name}[{key!r}]" if isinstance(key, SCALARS) else f"{name}[...]", item)
    else:
        yield _component(name, value)


def _component(name: str, value: Any) -> Component:
    return Component(name, "constexpr" if type(value) in SCALARS else "argument", *describe(value))


def describe(value: Any) -> tuple[str, str]:
    """Return type and value of anything that a graph or a function is given, as a component shows them."""
    if is_tensor(value):
        return _tensor(value)
    if type(value) in SCALARS:
        return type(value).__name__, _short(value)
    if type(value).__name__ in ("SymInt", "SymFloat", "SymBool"):
        return type(value).__name__, _short(value)
    training = inspect.getattr_static(value, "training", None)  # a property of the user's may raise, or do something
    mode = {True: "training", False: "evaluation"}.get(training, "") if isinstance(training, bool) else ""
    return type(value).__qualname__, mode


def _tensor(tensor: Any) -> tuple[str, str]:
    """Return type and value of a tensor: `float32`, `[64, 32] on cuda:0`."""
    try:
        dtype = str(tensor.dtype).removeprefix("torch.")
        said = [str(list(tensor.shape))]
        if tensor.device.type != "cpu":
            said.append(f"on {tensor.device}")
        if not tensor.is_contiguous():
            said.append(f"with strides {list(tensor.stride())}")
        if tensor.requires_grad:
            said.append("with gradient")
    except Exception:  # noqa: BLE001 - a subclass may refuse to be asked
        return type(tensor).__qualname__, ""
    return dtype, " ".join(said)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _grad_mode() -> Component:
    torch = sys.modules.get("torch")
    if torch is None:
        return Component("grad mode", "option", "", "")
    inference = torch.is_inference_mode_enabled()
    mode = "inference" if inference else "on" if torch.is_grad_enabled() else "off"
    return Component("grad mode", "option", "", mode)
