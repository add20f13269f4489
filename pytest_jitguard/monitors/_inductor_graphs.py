"""What is learned of a graph while Inductor compiles or loads it: its name, its key, what came from a cache."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.keys import Component, SpecializationKey
from pytest_jitguard.monitors._dynamo_keys import describe, untraced
from pytest_jitguard.monitors._wrapping import Compiling

_MOST_OPERATIONS = 4
_MOST_INPUTS = 64


@dataclass(eq=False)
class Graph:
    """One request to Inductor: how often code was generated, how often found in a cache, and under which hashes."""

    told: Compiling
    generated: int = 0
    loads: int = 0
    hashes: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def entered(self, graphs: list[Graph]) -> Iterator[None]:
        """Be the graph that the calling thread works on."""
        graphs.append(self)
        try:
            yield
        finally:
            graphs.remove(self)

    def found(self, hash: str, *, loaded: bool) -> None:
        """Note the code of one graph: its hash, empty if it has none, and whether it came from a cache."""
        if hash:
            self.hashes.append(hash)
            self.loads += loaded

    def conclude(self, events: Sequence[CompileEvent]) -> None:
        """Tell what it was in the end: a load, unless code was generated or a compiler ran on the way."""
        parts = _parts(self.told.event, events)
        compiled = self.generated or any(part.kind == "compile" for part in parts)
        self.told.kind = "cache_load" if self.loads and not compiled else "compile"
        self.told.artifact_hash = self.hashes[0] if self.hashes else None
        if self.loads and not self.generated and compiled:
            self.told.detail = "its code was found in a cache, what that calls was not"


def _parts(event: CompileEvent | None, events: Sequence[CompileEvent]) -> list[CompileEvent]:
    parts: list[CompileEvent] = []
    for other in reversed(events):
        if other is event or event is None:
            break
        if other.parent == event.id:
            parts.append(other)
    return parts


def hash_of(compiled: Any) -> str:
    """Return the key of a compiled graph in Inductor's cache, empty if it has none."""
    return str(getattr(compiled, "_fx_graph_cache_key", None) or "")


def artifact_name(entry: Any) -> str:
    """Return the key of the forward graph of an entry in AOTAutograd's cache."""
    forward = getattr(entry, "compiled_fw", None)
    info = getattr(forward, "fx_graph_cache_info", None)
    if isinstance(info, tuple) and info:
        return str(info[0])
    return hash_of(getattr(forward, "result", None))


def kernel_of(module: str, path: str) -> Any:
    """Call a function without arguments in a module that may not be there."""
    found: Any = sys.modules.get(module)
    for step in path.split("."):
        found = getattr(found, step, None)
    return found() if callable(found) else None


# -- names and keys ----------------------------------------------------------------------------------------------------


def graph_name(model: Any) -> str:
    """Return a name for a graph that nobody named: its first operations, as in Inductor's names for kernels."""
    names = [_operation(node) for node in _nodes(model) if str(node.op).startswith("call_")]
    if not names:
        return "graph"
    more = "_" if len(names) > _MOST_OPERATIONS else ""
    return "_".join(["graph", *names[:_MOST_OPERATIONS]]) + more


def _operation(node: Any) -> str:
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return str(name).partition(".")[0]


def _nodes(model: Any) -> list[Any]:
    return list(getattr(getattr(model, "graph", None), "nodes", ()))


def graph_key(model: Any, inputs: Any) -> SpecializationKey | None:
    """Return the inputs of a graph as components: dtypes, shapes, devices."""
    if not isinstance(inputs, (list, tuple)):
        return None
    names = [str(node.target) for node in _nodes(model) if node.op == "placeholder"]
    names += [f"input {number}" for number in range(len(names), len(inputs))]
    with untraced():
        return SpecializationKey(tuple(_input(n, v) for n, v in list(zip(names, inputs, strict=False))[:_MOST_INPUTS]))


def _input(name: str, value: Any) -> Component:
    type_, text = describe(value)
    return Component(name, "argument", type_, text)
