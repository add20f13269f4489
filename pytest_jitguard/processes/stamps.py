"""Moments that an engine alone knows precisely: when a worker of its has warmed up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.patching import PatchSet, when_imported


class Stamp(NamedTuple):
    """A method whose return means something: `what` happened in a process of the kind `by`."""

    module: str
    owner: str
    method: str
    what: str
    by: str


STAMPS = (Stamp("vllm.v1.worker.gpu_worker", "Worker", "compile_or_warm_up_model", "warmed", "vllm worker"),)
"""One line for each engine that has such a method."""


def watch(note: Callable[[Mapping[str, Any]], None], stamps: tuple[Stamp, ...] = STAMPS) -> Callable[[], None]:
    """Note a `stamp` record whenever one of the methods returns; return what undoes it. `note` must not raise.

    Engines are waited for, never imported; one that has no such method is left alone.
    """
    patches = PatchSet()
    waiting = {stamp.module: stamp for stamp in stamps}

    def imported(module: ModuleType) -> None:
        # A hook on an import cannot be taken back: once undone it must find nothing to do.
        stamp = waiting.pop(module.__name__, None)
        owner = getattr(module, stamp.owner, None) if stamp else None
        if stamp and isinstance(owner, type) and callable(getattr(owner, stamp.method, None)):
            patches.wrap(owner, stamp.method, _stamping(stamp, note))

    for name in list(waiting):
        when_imported(name, imported)

    def undo() -> None:
        waiting.clear()
        patches.undo()

    return undo


def _stamping(stamp: Stamp, note: Callable[[Mapping[str, Any]], None]) -> Callable[..., Any]:
    def stamping(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        note({"record": "stamp", "what": stamp.what, "by": stamp.by, "at": monotonic()})
        return result

    return stamping
