"""What would have kept a function from being compiled while serving: a call to paste, or a dynamic dimension."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType
from typing import Any

from pytest_jitguard.core.keys import Change
from pytest_jitguard.monitors._dynamo_keys import SCALARS, argument_names, is_tensor, untraced

_RESUMED = "torch_dynamo_resume_in_"


def entry_of(code: CodeType, globals: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return the call that compiles the same variant, to be put into a warmup.

    Arguments that have no source form get their own name, which does not exist: the entry fails rather than warms
    something else.
    """
    if code.co_name.startswith(_RESUMED):
        return f"# the rest of a function after a graph break ({_place(code)}): call the whole function in the warmup"
    name, names = _compiled_name(code, globals), argument_names(code)
    with untraced():
        method = bool(names) and is_method(code, given, names[0])
        arguments = [f"{n}={_source(n, given[n])}" for n in names[method:] if n in given]
    module = str(globals.get("__name__", ""))
    imports = ["import torch"] + ([f"from {module} import {name}"] if name and module != "__main__" else [])
    remarks = [] if name else [f"# call what torch.compile() returned for this function ({_place(code)})"]
    call = f"{name or _plain(code)}({', '.join(arguments)})"
    return "\n".join([*imports, "", *remarks, *_in_grad_mode(call)])


def is_method(code: CodeType, given: Mapping[str, Any], first: str) -> bool:
    """Tell whether the first argument is the object whose method this is."""
    method = getattr(type(given.get(first)), code.co_name, None)
    return getattr(method, "__code__", None) is code


def _compiled_name(code: CodeType, globals: Mapping[str, Any]) -> str:
    """Return the name by which the function's module holds what `torch.compile` made of it."""
    for name, value in list(globals.items()):
        if not name.startswith("__") and code in _codes_of(value):
            return name
    return ""


def _codes_of(value: Any) -> Iterator[Any]:
    try:
        held = vars(value)
    except TypeError:
        return
    for original in (held.get("_torchdynamo_orig_callable"), held.get("_orig_mod")):
        yield getattr(original, "__code__", None)
        yield getattr(getattr(type(original), "forward", None), "__code__", None)
    modules = held.get("_modules")
    if isinstance(modules, dict) and "_orig_mod" in modules:
        yield getattr(getattr(type(modules["_orig_mod"]), "forward", None), "__code__", None)


def _plain(code: CodeType) -> str:
    return str(getattr(code, "co_qualname", code.co_name)).rpartition(">.")[2]


def _place(code: CodeType) -> str:
    return f"{code.co_filename}:{code.co_firstlineno}"


def _source(name: str, value: Any) -> str:
    if is_tensor(value):
        return _tensor(name, value)
    if type(value) in SCALARS:
        return repr(value)
    if type(value) in (list, tuple) and len(value) <= 16:
        inner = ", ".join(_source(f"{name}_{number}", item) for number, item in enumerate(value))
        return f"[{inner}]" if type(value) is list else f"({inner}{',' if len(value) == 1 else ''})"
    return name


def _tensor(name: str, tensor: Any) -> str:
    try:
        options = [f"dtype={tensor.dtype}", f'device="{tensor.device}"']
        if tensor.requires_grad and tensor.is_leaf:
            options.append("requires_grad=True")
        shape = list(tensor.shape)
        if tensor.is_contiguous():
            return f"torch.zeros({shape}, {', '.join(options)})"
        return f"torch.empty_strided({shape}, {list(tensor.stride())}, {', '.join(options)})"
    except Exception:  # noqa: BLE001 - a subclass may refuse to be asked
        return name


def _in_grad_mode(call: str) -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None:
        return [call]
    if torch.is_inference_mode_enabled():
        return ["with torch.inference_mode():", f"    {call}"]
    return [call] if torch.is_grad_enabled() else ["with torch.no_grad():", f"    {call}"]


_SHAPE = re.compile(r"^\[(?P<sizes>[\d, ]*)\](?P<rest>.*)$")


def advice_on(changes: Sequence[Change]) -> str:
    """Offer `mark_dynamic` if sizes are all that changed, and none of them is 0 or 1; empty otherwise."""
    told = [_dynamic(change) for change in changes]
    if not told or not all(told):
        return ""
    calls = ", ".join(call for one in told for call in one)
    return f"in the warmup, before the call: {calls}; one variant is then for every size but 0 and 1"


def _dynamic(change: Change) -> list[str]:
    """Return the calls that make the sizes dynamic in which two tensors differ; none if they differ in more."""
    if change.warmed is None or change.served is None or change.warmed.type != change.served.type:
        return []
    before, after = _SHAPE.match(change.warmed.value), _SHAPE.match(change.served.value)
    if not before or not after or before["rest"] != after["rest"]:
        return []
    old, new = before["sizes"].split(", "), after["sizes"].split(", ")
    dims = [dim for dim, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
    if len(old) != len(new) or any(size in ("0", "1") for dim in dims for size in (old[dim], new[dim])):
        return []
    return [f"torch._dynamo.mark_dynamic({change.component}, {dim})" for dim in dims]
