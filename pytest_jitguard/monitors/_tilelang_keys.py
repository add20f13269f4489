"""What TileLang is asked to compile, read from one call: kernel, factory and its arguments, buffers, target."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from pytest_jitguard.core.keys import Component, SpecializationKey
from pytest_jitguard.monitors._frames import frames_of
from pytest_jitguard.monitors._source import reach, source_of

_DEEPEST = 25
_LONGEST = 120


@dataclass(frozen=True)
class Factory:
    """The function decorated with `@tilelang.jit` that made a kernel, and what it was called with."""

    impl: Any
    name: str
    module: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def components(self) -> Iterator[Component]:
        """Yield the arguments, each of which is fixed when the kernel is built; tensors are known by their buffers."""
        for name, value in self.arguments.items():
            if not _is_tensor(value):
                yield Component(name, "constexpr", "", _short(value))

    def cure(self) -> str:
        """Return the call to put into a warmup; empty if it cannot be written down, or would also run the kernel."""
        written = {name: source_of(value)[0] for name, value in self.arguments.items()}
        if not all(written.values()) or self.module == "__main__" or reach(self.module, self.name) is not self.impl:
            return ""
        if getattr(self.impl, "mode", "") != "lazy":
            return ""
        passed = ", ".join(f"{name}={text}" for name, text in written.items())
        return f"from {self.module} import {self.name.partition('.')[0]}\n{self.name}({passed})"


def factory_above(frame: FrameType) -> Factory | None:
    """Return whose call led to a compile, None if a program was compiled that somebody had built before."""
    kind = getattr(sys.modules.get("tilelang.jit"), "JITImpl", None)
    if not isinstance(kind, type):
        return None
    for above in itertools.islice(frames_of(frame), _DEEPEST):
        if above.f_code.co_name in ("compile", "__call__") and isinstance(above.f_locals.get("self"), kind):
            held = above.f_locals
            return _factory(held["self"], held.get("args", ()), held.get("kwargs", {}))
    return None


def _factory(impl: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Factory:
    name, module = name_of(getattr(impl, "func", impl))
    try:
        bound = impl.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return Factory(impl, name, module, bound.arguments)
    except (TypeError, AttributeError):  # parameters of the frontend that are no arguments of the function
        return Factory(impl, name, module, kwargs)


def name_of(function: Any) -> tuple[str, str]:
    """Return name and module of a factory's function."""
    function = getattr(function, "orig_func", function)
    name = str(getattr(function, "__qualname__", "") or getattr(function, "__name__", ""))
    return name.rpartition("<locals>.")[2], str(getattr(function, "__module__", "") or "")


@dataclass(frozen=True)
class Asked:
    """One compile or load of one kernel."""

    kernel: Any
    program: Any
    out_idx: Any
    factory: Factory | None
    artifact_hash: str | None

    @classmethod
    def at(cls, frame: FrameType, kernel: Any, program: Any, out_idx: Any) -> Asked:
        """Read the call that runs in a frame."""
        return cls(kernel, program, out_idx, factory_above(frame), hash_above(frame))

    @property
    def name(self) -> str:
        """The kernel's name in the program, after its factory's: most kernels are called `main`."""
        attributes = getattr(self.program, "attrs", None) or {}
        symbol = str(attributes.get("global_symbol", "")) or "unknown"
        made_by = self.factory.name if self.factory else ""
        return f"{made_by}.{symbol}" if made_by not in ("", symbol) else symbol

    @property
    def module(self) -> str:
        """The module of the factory, empty if that was not seen."""
        return self.factory.module if self.factory else ""

    def key(self) -> SpecializationKey:
        """Return the named components of what TileLang looks up."""
        made = self.factory.components() if self.factory else ()
        return SpecializationKey((*made, *self._buffers(), *self._options(), *self._target()))

    def _parameters(self) -> list[Any]:
        return list(getattr(self.program, "params", ()))

    def _buffers(self) -> Iterator[Component]:
        buffers = getattr(self.program, "buffer_map", {})
        for parameter in self._parameters():
            buffer = buffers.get(parameter) if hasattr(buffers, "get") else None
            if buffer is None:
                yield Component(str(parameter), "argument", str(getattr(parameter, "dtype", "")), "")
            else:
                shape = ", ".join(str(extent) for extent in buffer.shape)
                yield Component(str(buffer.name), "argument", str(buffer.dtype), f"[{shape}]")

    def _options(self) -> Iterator[Component]:
        yield Component("out_idx", "option", "", str(self._out_idx()))
        yield Component("execution_backend", "option", "", str(getattr(self.kernel, "execution_backend", "")))
        for name, value in sorted((str(k), v) for k, v in (getattr(self.kernel, "pass_configs", None) or {}).items()):
            yield Component(name, "option", "", _short(value))
        if getattr(self.kernel, "compile_flags", None):
            yield Component("compile_flags", "option", "", " ".join(map(str, self.kernel.compile_flags)))

    def _out_idx(self) -> Any:
        """Return which arguments are returned, counted from the front: -1 and 2 are one kernel's."""
        if isinstance(self.out_idx, (list, tuple)):
            many = len(self._parameters())
            return [index + many if index < 0 else index for index in map(int, self.out_idx)]
        return self.out_idx

    def _target(self) -> Iterator[Component]:
        target = getattr(self.kernel, "target", None)
        kind = getattr(getattr(target, "kind", None), "name", "")
        attributes = getattr(target, "attrs", None) or {}
        arch = str(attributes.get("arch", "")) if hasattr(attributes, "get") else ""
        yield Component("target", "target", "", f"{kind} {arch}".strip() or _short(target))


def hash_above(frame: FrameType) -> str | None:
    """Return the hash by which TileLang's cache keeps what is being compiled, None if its cache is off."""
    for above in itertools.islice(frames_of(frame), _DEEPEST):
        if above.f_code.co_name == "cached" and isinstance(above.f_locals.get("key"), str):
            return str(above.f_locals["key"])
    return None


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _short(value: Any) -> str:
    text = value.__qualname__ if isinstance(value, type) else str(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
