"""Which child processes Python starts, heard from its own audit events; without a frame of ours for any other event."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

Listener = Callable[[str, tuple[Any, ...]], None]

STARTS = ("subprocess.Popen", "os.posix_spawn", "os.system", "os.exec")
PROOF = "pytest_jitguard.toolchain"
"""An audit event of our own, to see whether we are told."""

_listeners: list[Listener] = []
_is_hooked = False


class _Gate:
    """What audit events are set on as attributes: those that we want are properties, and run Python.

    A hook is called for every event there is, and there are many (`id()`, `open`, `sys._getframe`). So ours are two
    callables written in C: `setattr` of this object, which calls us for our events, and `pop` of its dictionary, which
    lets go of the others.
    """


def _telling(event: str) -> property:
    def tell(gate: _Gate, args: tuple[Any, ...]) -> None:
        for listener in tuple(_listeners):
            listener(event, args)

    return property(None, tell)


for _event in (*STARTS, PROOF):
    setattr(_Gate, _event, _telling(_event))
_gate = _Gate()


def listen(listener: Listener) -> Callable[[], None]:
    """Hear of each start of a child process, on its thread and before it happens; return what ends that.

    The listener must not raise. The hooks are set once in the life of a process and cannot be taken back: without a
    listener they find nothing to do.
    """
    global _is_hooked
    if not _is_hooked:
        _is_hooked = True
        for hook in hooks():
            sys.addaudithook(hook)
        vars(_gate).clear()  # the first hook heard of the second
    _listeners.append(listener)

    def undo() -> None:
        if listener in _listeners:
            _listeners.remove(listener)

    return undo


def hooks() -> tuple[Callable[..., object], ...]:
    """Return new callables that do what the hooks do, in the order in which they must be called."""
    return functools.partial(setattr, _gate), functools.partial(vars(_gate).pop)


def is_heard() -> bool:
    """Tell whether audit events reach us: an audit hook of somebody else may have refused ours."""
    heard: list[str] = []

    def listener(event: str, args: tuple[Any, ...]) -> None:
        if event == PROOF:
            heard.append(event)

    undo = listen(listener)
    try:
        sys.audit(PROOF)
    finally:
        undo()
    return bool(heard)
