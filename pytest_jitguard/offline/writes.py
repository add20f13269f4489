"""Which arguments a compiled kernel writes through, read from the IR that Triton keeps beside the binary.

Only used to word a warning, and only when memory that a kernel was given is read back. Whatever the IR does not say
plainly counts as written.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME = re.compile(r"%[\w.$-]+(?:#\d+)?")
_LOCATION = re.compile(r"\s*loc\((?:[^()]|\([^()]*\))*\)")
_STATEMENT = re.compile(r'\s*(?:(?P<result>%[\w.$-]+)(?::\d+)? = )?"?(?P<operation>[a-z_]+\.[\w.]+)"?(?P<rest>.*)')
_ITER_ARGS = re.compile(r"(%[\w.$-]+) = (%[\w.$-]+(?:#\d+)?)")

_STORES = ("tt.store", "tt.atomic_", "tt.descriptor_store", "tt.descriptor_reduce", "tt.descriptor_scatter")
_LOADS = ("tt.load", "tt.descriptor_load", "tt.descriptor_gather")
# Pointers that come from where a backward search through the text cannot follow.
_OPAQUE = re.compile(r"scf\.while|\bcf\.|tt\.call|tt\.int_to_ptr|!tt\.ptr<!tt\.ptr")
_OPAQUE_WITH_POINTERS = ("inline_asm", "extern_elementwise")


def written_arguments(src: Any, metadata: Any) -> frozenset[int]:
    """Return the positions of the arguments that the kernel may write through: all of them where that is unknown."""
    parameters = list(getattr(src, "signature", {}))
    everything = frozenset(range(len(parameters)))
    ir = _kept_ir(metadata)
    written = written_names(ir) if ir else None
    if ir is None or written is None:
        return everything
    known = set(_NAME.findall(_header(ir)))
    return frozenset(i for i in everything if f"%{parameters[i]}" in written or f"%{parameters[i]}" not in known)


def _kept_ir(metadata: Any) -> str | None:
    """Return the TTIR from Triton's disk cache (Gluon kernels have none)."""
    from triton.runtime.cache import get_cache_manager

    name = str(getattr(metadata, "name", ""))[:150]  # the compiler cuts file names there
    group = get_cache_manager(metadata.hash).get_group(f"{name}.json") or {}
    path = group.get(f"{name}.ttir")
    return Path(path).read_text(encoding="utf-8") if path and Path(path).exists() else None


def _header(ir: str) -> str:
    return next((line for line in _lines(ir) if "tt.func public" in line), "")


def _lines(ir: str) -> list[str]:
    return [_LOCATION.sub("", line) for line in ir.splitlines() if not line.startswith("#")]


def written_names(ir: str) -> set[str] | None:
    """Return the names in the IR that some store's pointer was computed from; None where that cannot be followed."""
    flow = _Flow()
    for line in _lines(ir):
        if _OPAQUE.search(line):
            return None
        if "!tt.ptr" in line and any(mark in line for mark in _OPAQUE_WITH_POINTERS):
            return None
        flow.read(line)
    return flow.sources(flow.stored)


class _Flow:
    """Where each name's value comes from. Loads end the trail: what was loaded is a value, not a place."""

    def __init__(self) -> None:
        self.stored: set[str] = set()
        self._parents: dict[str, set[str]] = defaultdict(set)
        self._regions: list[tuple[str, list[str]]] = []  # of each open region: its result's name, its loop variables

    def read(self, line: str) -> None:
        if line.lstrip().startswith("}") and not line.rstrip().endswith("{") and self._regions:
            self._regions.pop()
        match = _STATEMENT.match(line)
        if match is not None:
            self._statement(match["result"] or "", match["operation"], match["rest"])
        elif line.rstrip().endswith("{") and not line.lstrip().startswith("}"):
            self._regions.append(("", []))

    def _statement(self, result: str, operation: str, rest: str) -> None:
        operands = _NAME.findall(rest)
        if operation == "scf.yield":
            self._leave(operands)
        elif operation.startswith(_STORES):
            self.stored.update(operands[:1])
        elif rest.rstrip().endswith("{"):
            self._enter(result, rest)
        elif result and not operation.startswith(_LOADS):
            self._parents[result].update(operands)

    def _enter(self, result: str, rest: str) -> None:
        pairs = _ITER_ARGS.findall(rest.partition("iter_args")[2])
        for variable, start in pairs:
            self._parents[variable].add(start)
        self._regions.append((result, [variable for variable, _ in pairs]))
        self._come_out(result, [variable for variable, _ in pairs])

    def _leave(self, operands: list[str]) -> None:
        result, variables = self._regions[-1] if self._regions else ("", [])
        for variable, operand in zip(variables, operands, strict=False):
            self._parents[variable].add(operand)
        self._come_out(result, operands)

    def _come_out(self, result: str, operands: Iterable[str]) -> None:
        for index, operand in enumerate(operands):
            self._parents[f"{result}#{index}"].add(operand)
            self._parents[result].add(operand)

    def sources(self, names: Iterable[str]) -> set[str]:
        """Return the names and everything they were computed from."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting.extend(self._parents.get(name, ()))
        return found
