"""What the CuTe DSL is asked to compile, read from one call: whose program, with which arguments, for which target."""

from __future__ import annotations

import inspect
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_jitguard.core.keys import Change, Component, SpecializationKey
from pytest_jitguard.monitors._source import reach, source_of

SCALARS: Mapping[str, str] = {"int": "Int32", "bool": "Boolean", "float": "Float32"}
"""Plain Python types, whose values become part of the program's name, and the DSL's types, whose values do not."""

_PARAMETERS = ("self", "module", "module_hash", "function_name", "pipeline", "sig", "no_cache")
"""What 4.3 to 4.8 take by position; a stranger may have replaced the function, so its signature is not asked."""

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,16}\b")
_LONGEST = 120
_MOST_ATTRIBUTES = 40


@dataclass(frozen=True)
class Named:
    """What a compile is called: `kernel` within `module`."""

    kernel: str = "unknown"
    module: str = ""


def named(function: Any) -> Named:
    """Return how people call a program: its function, or the class whose `__call__` it is."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    if not hasattr(function, "__qualname__"):
        function = type(function)
    qualname = function.__qualname__.rpartition("<locals>.")[2]
    return Named(qualname.removesuffix(".__call__"), function.__module__ or "")


@dataclass(frozen=True)
class Asked:
    """One call of `BaseDSL.compile_and_cache`: all that tells one compiled program from another."""

    dsl: Any
    module: Any
    module_hash: str | None
    entry: str
    signature: Any
    no_cache: bool
    function: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic: tuple[Any, ...] = ()

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any], function: Any) -> Asked:
        """Read a call, whose later parameters differ from version to version; `function` if it does not pass one."""
        told = {**dict(zip(_PARAMETERS, args, strict=False)), **kwargs}
        return cls(
            dsl=told["self"],
            module=told.get("module"),
            module_hash=told.get("module_hash"),
            entry=str(told.get("function_name") or ""),
            # In 4.3 it is what inspect.getfullargspec returns, and no signature.
            signature=told.get("sig") or told.get("args_spec"),
            no_cache=bool(told.get("no_cache")),
            function=told.get("funcBody") or function,
            args=tuple(told.get("full_args") or ()),
            kwargs=told.get("full_kwargs") or {},
            dynamic=tuple(
                _referred(value)
                for value in (*(told.get("dynamic_args") or ()), *(told.get("dynamic_kwargs") or {}).values())
            ),
        )

    def arguments(self) -> list[tuple[str, Any]]:
        """Return what the program was called with, by name."""
        parameters = getattr(self.signature, "parameters", None)
        names = [*(parameters if parameters is not None else getattr(self.signature, "args", ()))]
        return [*zip(names, self.args, strict=False), *self.kwargs.items()]

    def key(self) -> SpecializationKey:
        """Return the named components by which this compile differs from others."""
        return SpecializationKey((*self._arguments(), *self._options(), *target_of(self.dsl)))

    def _arguments(self) -> Iterator[Component]:
        dynamic = list(self.dynamic)
        types = self._types(len([value for value in dynamic if value is not None]))
        for name, value in self.arguments():
            if dynamic and dynamic[0] is value and not self._is_constexpr(name):
                kind = next(types, "") if dynamic.pop(0) is not None else ""
                yield from components(name, value, "argument", kind)
            else:
                yield from components(name, value, "constexpr")
        signature = "".join(types)  # what could not be told apart
        if signature:
            yield Component("signature", "argument", "", signature)

    def _is_constexpr(self, name: str) -> bool:
        parameter = getattr(self.signature, "parameters", {}).get(name)
        annotation = getattr(parameter, "annotation", getattr(self.signature, "annotations", {}).get(name))
        return "Constexpr" in str(annotation)

    def _types(self, arguments: int) -> Iterator[str]:
        """Yield the MLIR types of the dynamic arguments, if there is one for each, else all of them as one text."""
        inputs = [_shortened(str(kind)) for kind in self._entry_type()]
        return iter(inputs if len(inputs) == arguments else ["" for _ in range(arguments)] + [" ".join(inputs)])

    def _entry_type(self) -> Iterable[Any]:
        for operation in getattr(getattr(self.module, "body", None), "operations", ()):
            if str(getattr(operation, "name", "")).strip('"') == self.entry and hasattr(operation, "type"):
                return list(operation.type.inputs)
        return []

    def _options(self) -> Iterator[Component]:
        options = getattr(getattr(self.dsl, "compile_options", None), "to_str", None)
        for option in str(options()).split() if options else ():
            name, equals, value = option.partition("=")
            if equals:
                yield Component(name, "option", "", value)

    def cure(self) -> str:
        """Return the call to put into a warmup, if it can be written down: a direct one, of scalars."""
        where = named(self.function)
        path = getattr(self.function, "__qualname__", "")
        if self.no_cache or getattr(reach(where.module, path), "__wrapped__", None) is not self.function:
            return ""
        written = [_written(value) for _, value in self.arguments()]
        if not all(written) or where.module == "__main__":
            return ""
        needs = ["import cutlass"] if any(text.startswith("cutlass.") for text in written) else []
        first = path.partition(".")[0]
        return "\n".join([*needs, f"from {where.module} import {first}", f"{path}({', '.join(written)})"])


def _referred(value: Any) -> Any:
    """Return what a weak proxy stands for: 4.3 passes those of arguments."""
    return getattr(value.__repr__, "__self__", value) if isinstance(value, weakref.ProxyTypes) else value


def target_of(dsl: Any) -> Iterator[Component]:
    """Yield the GPU architecture that is compiled for."""
    asked = getattr(getattr(dsl, "compile_options", None), "gpu_arch", None)
    arch = asked or getattr(getattr(dsl, "envar", None), "arch", None)
    if arch:
        yield Component("arch", "target", "", str(arch))


def components(name: str, value: Any, role: str, kind: str = "") -> Iterator[Component]:
    """Yield what one argument contributes to a key; `kind` is its type in MLIR's words, where it is known."""
    plain = type(value).__name__
    if value is None or plain in SCALARS or plain == "str":
        bare = role == "constexpr" or value is None
        yield Component(name, role, "", _short(value) if bare else _shortened(f"{plain} {value!r}"))
    elif _is_scalar(value):
        yield Component(name, role, type(value).__name__, "")
    elif kind:
        yield Component(name, role, "", kind)
    elif _is_users(value):
        yield Component(name, role, type(value).__qualname__, "")
        yield from _attributes(name, value)
    else:
        yield Component(name, role, "", _short(value))


def _is_scalar(value: Any) -> bool:
    """Tell whether a value is one of the DSL's numbers: their values are no part of the program."""
    return hasattr(value, "value") and hasattr(type(value), "mlir_type")


def _is_users(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, type) and not _is_librarys(type(value))


def _is_librarys(kind: type) -> bool:
    return (kind.__module__ or "").partition(".")[0] in ("cutlass", "torch", "builtins")


def _attributes(name: str, value: Any) -> Iterator[Component]:
    """Yield the attributes of a kernel object that are fixed when it is compiled: tile sizes and the like."""
    for attribute, held in list(vars(value).items())[:_MOST_ATTRIBUTES]:
        if held is None or isinstance(held, (int, float, str, tuple, type)):
            yield Component(f"{name}.{attribute}", "constexpr", "", _short(held))


def _short(value: Any) -> str:
    return _shortened(value.__qualname__ if isinstance(value, type) else _ADDRESS.sub("0x…", repr(value)))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _written(value: Any) -> str:
    """Return an expression for a scalar, empty for anything else."""
    if _is_scalar(value) and type(value.value) in (int, bool, float):
        return f"cutlass.{type(value).__name__}({value.value!r})"
    return source_of(value)[0] if value is None or type(value) in (int, bool, float, str) else ""


def advice(changes: Sequence[Change]) -> str:
    """Say which arguments need not be compiled for each value."""
    plain = {change.component: kind for change in changes for kind in [_plain_type(change)] if kind}
    if not plain:
        return ""
    kinds = sorted(set(plain.values()))
    passed = " and ".join(f"cutlass.{SCALARS[kind]}({name})" for name, kind in plain.items())
    return f"a plain Python {' or '.join(kinds)} compiles for every value; pass {passed}, which compiles once"


def _plain_type(change: Change) -> str:
    if change.served is None or change.served.role != "argument" or change.served.type:
        return ""
    kind = change.served.value.partition(" ")[0]
    return kind if kind in SCALARS else ""
