"""Triton's specialization keys in words, and what a launch looked like. Imports nothing of Triton."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_jitguard.core.events import Launch
from pytest_jitguard.core.keys import NOT, Change, Component, SpecializationKey
from pytest_jitguard.monitors._source import reach, source_of

_LONGEST = 120
_SMALL = ", under 2 GiB"
ADDED_BY_RUN = ("instrumentation_mode", "fpsan_homomorphic_casts")
"""Options that `JITFunction.run` appends by itself (Triton 3.6 and 3.9); a caller does not spell them."""


def text_of(value: Any) -> str:
    """Return a value's text, shortened, whatever the object does when asked; different texts stay different."""
    try:
        text = _text(value)
    except Exception:  # noqa: BLE001 - a constexpr may be any object, with any __repr__
        text = f"<{type(value).__name__}{_hash(value)}>"
    if len(text) <= _LONGEST:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{text[: _LONGEST - 11]}… #{digest}"


def _text(value: Any) -> str:
    if type(value).__module__ == "triton.language.core" and type(value).__name__ == "dtype":
        return repr(value).replace("triton.language.", "tl.")
    if type(value) is tuple:
        return f"({', '.join(map(_text, value))}{',' if len(value) == 1 else ''})"
    name = getattr(value, "__name__", None) if callable(value) else None
    if not name:
        return repr(value)
    # Kernels of one factory share their name; their key is the source together with what it captures.
    source = getattr(value, "cache_key", None)
    return f"{name} #{source[:8]}" if isinstance(source, str) else str(name)


def _hash(value: Any) -> str:
    try:
        return f" #{hash(value) & 0xFFFFFFFF:08x}"
    except Exception:  # noqa: BLE001 - any object
        return ""


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
            if is_annotated_one(src, param, (number,)):
                yield Component(param.name, "argument", str(src.signature[param.name]), "1")
            else:
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
        yield Component(name, "argument", str(type_), value_class(str(type_), src.attrs.get(path)))


def is_annotated_one(src: Any, param: Any, path: tuple[int, ...]) -> bool:
    """Tell whether an integer with an annotated type is 1 in the key: its type stays, its attributes go."""
    unspecialized = path not in src.attrs and re.fullmatch(r"[iu]\d+", str(src.signature[param.name]))
    return bool(unspecialized and str(src.signature[param.name]) not in ("i1", "u1") and not param.do_not_specialize)


def value_class(type_: str, attributes: Sequence[Sequence[Any]] | None) -> str:
    """Say what the key holds of a value; an argument that is not specialized has no attributes at all."""
    if attributes is None:
        return ""
    divisible = any(name == "tt.divisibility" for name, _ in attributes)
    small = _SMALL if any(name == "tt.pointer_range" for name, _ in attributes) else ""
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
    return Launch(values, tensors, _spelled_options(run_locals.get("kwargs") or {}, bound), kernel_path(fn))


def _tensor_form(value: Any) -> str:
    try:
        if not hasattr(value, "data_ptr"):
            return ""
        return f"{str(value.dtype).removeprefix('torch.')}{list(getattr(value, 'shape', []))}"
    except Exception:  # noqa: BLE001 - an argument may be any object
        return ""


def _spelled_options(kwargs: Mapping[str, Any], bound: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the options as the caller spelled them, in order: `run` appends `debug` and others where they miss."""
    names = [name for name in kwargs if name not in bound and name not in ADDED_BY_RUN]
    if names and names[-1] == "debug" and not kwargs["debug"]:
        names.pop()
    return tuple((name, source_of(kwargs[name])[0]) for name in names)


def kernel_path(fn: Any) -> str:
    """Return `module:expression` that reaches this very kernel object by import, empty if nothing does.

    A kernel under `@triton.autotune` or `@triton.heuristics` is reached through their `.fn`.
    """
    module, name = getattr(fn, "module", None) or "", getattr(getattr(fn, "fn", None), "__qualname__", "")
    found = reach(module, name) if module != "__main__" else None
    for _ in range(8):
        if found is fn:
            return f"{module}:{name}"
        found, name = getattr(found, "fn", None), f"{name}.fn"
    return ""


def scalar_advice(changes: Sequence[Change]) -> str:
    """Return what could be done in the kernel where value classes are the only difference, with its price."""
    scalars: list[str] = []
    pointers: list[str] = []
    for change in changes:
        # Elements of a tuple are always specialized, whatever the kernel asks for.
        if change.role != "argument" or change.warmed is None or change.served is None or "[" in change.component:
            return ""
        types = {change.warmed.type, change.served.type} - {""}
        if len(types) != 1 or "None" in (change.warmed.value, change.served.value):
            return ""
        sizes_differ = (_SMALL in change.warmed.value) != (_SMALL in change.served.value)
        # Without specialization on alignment a pointer's range (HIP) stays in the key.
        alignment = types.pop().startswith("*") and not sizes_differ
        (pointers if alignment else scalars).append(change.component)
    parts = [f"do_not_specialize={scalars!r}"] if scalars else []
    parts += [f"do_not_specialize_on_alignment={pointers!r}"] if pointers else []
    return (
        f"possible instead: @triton.jit({', '.join(parts)}) makes these one variant, "
        "but can cost steady-state speed, since the compiler then knows less about the values"
    )
