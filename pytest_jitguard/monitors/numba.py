"""Watch numba: versions of jitted functions, ufuncs and C callbacks, compiled or loaded from a function's disk cache.

The event `numba:compile` begins and ends each compile of a dispatcher; functions that it calls are its parts. Disk
loads have no event: what the cache hands out is one.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import Any, ClassVar

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Tells
from pytest_jitguard.monitors._numba_types import entry_of, hash_of, key_of, names_of
from pytest_jitguard.monitors._wrapping import Compiling, HookGone, WrappingMonitor
from pytest_jitguard.patching import when_imported

_EVENT = "numba:compile"

_SHORTEST_STAGE = 0.001
"""Seconds; numba has some thirty passes, and most take microseconds."""


@dataclass
class _Open:
    """A compile of a dispatcher that has begun; `data` is what numba hands to its beginning and to its end."""

    data: Any
    event: CompileEvent
    inside: AbstractContextManager[None]


class _Thread(threading.local):
    """What one thread has under way."""

    def __init__(self) -> None:
        self.open: list[_Open] = []
        self.asked: list[Any] = []
        """Dispatchers that were asked for a version, outermost first."""
        self.ufuncs: list[tuple[Any, Compiling]] = []
        self.done: CompileEvent | None = None
        """The last event that is part of no other, until its caller gets the version."""


class NumbaMonitor(WrappingMonitor):
    """The monitor of numba's dispatchers for the CPU."""

    name: ClassVar[str] = "numba"
    target: ClassVar[str] = "numba"
    tested: ClassVar[str] = "==0.68.*"
    tells: ClassVar[Tells] = Tells(
        identity="module and qualified name of the function",
        key="types of the arguments, literal and omitted ones by value, return type if it was asked for, flags",
        reason="nearest compiled version",
        kinds=("compile", "cache_load"),
        cache_load=True,
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._here = _Thread()
        self._announced: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    # -- hooking in and out --------------------------------------------------------------------------------------------

    def hook_in(self, module: ModuleType) -> None:
        """Listen to compiles, and wrap what hands out stored versions and what compiles without a dispatcher."""
        self._events = _module("numba.core.event")
        self._dispatchers = _module("numba.core.dispatcher")
        self.wrap(self._dispatchers, "Dispatcher.compile", self._asked)
        self.wrap(_module("numba.core.caching"), "Cache.load_overload", self._load)
        for where, path, around in (
            ("numba.np.ufunc.ufuncbuilder", "UFuncDispatcher._compile_core", self._compile_ufunc),
            ("numba.core.ccallback", "CFunc._compile_uncached", self._compile_callback),
        ):
            self._wrap_once_imported(where, path, around)
        self._listen()
        for dispatcher in self._resident_dispatchers():
            self._announced[dispatcher] = len(dispatcher.overloads)

    def _wrap_once_imported(self, where: str, path: str, around: Callable[..., Any]) -> None:
        """Wrap a function now, or when its module comes: numba imports that of C callbacks with the first of them."""

        def wrap(module: ModuleType) -> None:
            if self._hooks and not any(path.endswith(f".{hook.name}") for hook in self._hooks):  # not taken back since
                try:
                    self.wrap(module, path, around)
                except HookGone as gone:
                    self.blind(str(gone))

        when_imported(where, wrap)

    def _listen(self) -> None:
        base = getattr(self._events, "Listener", None)
        if base is None or not hasattr(self._events, "register"):
            raise HookGone(f"there is no numba.core.event.Listener in numba {self.version}")
        told = {"on_start": lambda _, event: self._on_start(event), "on_end": lambda _, event: self._on_end(event)}
        self._listener = type("JitguardListener", (base,), told)()
        self._events.register(_EVENT, self._listener)
        self._patches.on_undo(self._stop_listening)

    def _stop_listening(self) -> None:
        try:
            self._events.unregister(_EVENT, self._listener)
        except ValueError:  # somebody emptied the list
            return

    def reconcile(self) -> None:
        """Look whether the listener is there, and whether every version that is resident was announced."""
        super().reconcile()
        registered = getattr(self._events, "_registered", None)
        if registered is not None and self._listener not in registered.get(_EVENT, ()):
            self.blind("the listener of numba:compile was thrown out")
        for dispatcher in self._resident_dispatchers():
            if len(dispatcher.overloads) > self._announced.get(dispatcher, 0):
                self.blind(f"a resident version of {'.'.join(_full_name(dispatcher))} was announced by no event")

    def resident(self) -> dict[Hashable, str]:
        """Return the versions that jitted functions have in this process."""
        if self.state == "waiting":
            return {}
        return {
            (id(dispatcher), types): ".".join(_full_name(dispatcher))
            for dispatcher in self._resident_dispatchers()
            for types in list(dispatcher.overloads)
        }

    def _resident_dispatchers(self) -> Iterator[Any]:
        """Yield the dispatchers that are alive: the context that types are inferred in knows them all."""
        target = getattr(sys.modules.get("numba.core.registry"), "cpu_target", None)
        known = getattr(getattr(target, "typing_context", None), "_globals", {})
        for reference in list(known):
            thing = reference() if isinstance(reference, weakref.ref) else None
            if isinstance(thing, self._dispatchers.Dispatcher):
                yield thing

    # -- dispatchers ---------------------------------------------------------------------------------------------------

    def _asked(self, compile: Callable[..., Any], dispatcher: Any, *args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        here = self._here
        if not here.asked:
            here.done = None
        here.asked.append(dispatcher)
        try:
            version = compile(dispatcher, *args, **kwargs)
        finally:
            here.asked.pop()
        if here.done is not None and not here.asked and not here.open:
            done, here.done = here.done, None
            self.recorder.finished(done)
        return version

    def _on_start(self, event: Any) -> None:
        self.guarded("the beginning of a compile", self._begin_compile, event.data, sys._getframe(1))

    def _on_end(self, event: Any) -> None:
        self.guarded("a compile", self._end_compile, event.data, getattr(event, "_exc_details", None))

    def _begin_compile(self, data: Mapping[str, Any], frame: FrameType) -> None:
        dispatcher = data["dispatcher"]
        # Before the version is resident: another thread may reconcile meanwhile.
        self._announce(dispatcher)
        event = self._begin(*_full_name(dispatcher)[::-1], "compile", None, None, frame)
        inside = self.recorder.inside(event)
        inside.__enter__()
        self._here.open.append(_Open(data, event, inside))

    def _end_compile(self, data: Mapping[str, Any], raised: Any) -> None:
        here = self._here
        if not here.open or here.open[-1].data is not data:  # its beginning could not be recorded
            return
        opened = here.open.pop()
        opened.inside.__exit__(None, None, None)
        error = raised[1] if raised else None
        self.recorder.end(opened.event, status="failed" if error else "ok", **self._learned(data, error))
        here.done = opened.event if opened.event.parent is None and not error else None

    def _learned(self, data: Mapping[str, Any], error: BaseException | None) -> dict[str, Any]:
        dispatcher, types = data["dispatcher"], tuple(data["args"])
        # The arguments of a lifted loop are variables of the function around it.
        function = None if hasattr(dispatcher, "lifted_from") else dispatcher.py_func
        options = getattr(dispatcher, "targetoptions", {})
        return {
            "key": key_of(function, types, options, data.get("return_type")),
            "artifact_hash": hash_of(dispatcher.py_func, types, options) if function else None,
            "stages": _stages(dispatcher.overloads.get(types)),
            "cure": entry_of(dispatcher, types, _read) if function else "",
            "detail": _failure(error) if error else "",
        }

    def _announce(self, dispatcher: Any) -> None:
        self._announced[dispatcher] = self._announced.get(dispatcher, 0) + 1

    # -- what is stored ------------------------------------------------------------------------------------------------

    def _load(self, load: Callable[..., Any], cache: Any, signature: Any, *args: Any, **kwargs: Any) -> Any:
        started = monotonic()
        loaded = load(cache, signature, *args, **kwargs)
        if loaded is not None:
            self.guarded("a load", self._loaded, cache, signature, started, sys._getframe(1))
        return loaded

    def _loaded(self, cache: Any, signature: Any, started: float, frame: FrameType) -> None:
        here, function = self._here, getattr(cache, "_py_func", None)
        if here.ufuncs and getattr(here.ufuncs[-1][0], "cache", None) is cache:
            here.ufuncs[-1][1].kind = "cache_load"
            return
        dispatcher = here.asked[-1] if here.asked and here.asked[-1].py_func is function else None
        if dispatcher is not None:
            self._announce(dispatcher)
        types = tuple(getattr(signature, "args", signature))
        options = getattr(dispatcher, "targetoptions", {})
        event = self.record(
            *names_of(function),
            kind="cache_load",
            started=started,
            frame=frame,
            key=key_of(function, types, options),
            artifact_hash=hash_of(function, types, options),
            cure=entry_of(dispatcher, types, _read) if dispatcher else "",
        )
        here.done = event if event and event.parent is None else None

    # -- without a dispatcher ------------------------------------------------------------------------------------------

    def _compile_ufunc(self, compile: Callable[..., Any], ufunc: Any, signature: Any, *args: Any, **kwargs: Any) -> Any:
        """Record a version of a ufunc, which no event of numba's tells of."""
        with self.compiling(*names_of(ufunc.py_func)) as told:
            self.guarded("a ufunc", self._describe, told, ufunc.py_func, signature, ufunc.targetoptions)
            self._here.ufuncs.append((ufunc, told))
            try:
                return compile(ufunc, signature, *args, **kwargs)
            finally:
                self._here.ufuncs.pop()

    def _compile_callback(self, compile: Callable[..., Any], callback: Any, *args: Any, **kwargs: Any) -> Any:
        """Record a C callback, which no event of numba's tells of either."""
        with self.compiling(*names_of(getattr(callback, "__wrapped__", callback))) as told:
            self.guarded("a C callback", self._describe, told, callback.__wrapped__, callback._sig, {})
            return compile(callback, *args, **kwargs)

    def _describe(self, told: Compiling, function: Any, signature: Any, options: Mapping[str, Any]) -> None:
        types = tuple(getattr(signature, "args", signature))
        told.key = key_of(function, types, options, getattr(signature, "return_type", None))
        told.artifact_hash = hash_of(function, types, options)


def _read(signature: str) -> tuple[Any, ...]:
    return tuple(_module("numba.core.sigutils").normalize_signature(signature)[0])


def _module(name: str) -> ModuleType:
    found = sys.modules.get(name)
    if found is None:
        raise HookGone(f"numba has no {name}")
    return found


def _full_name(dispatcher: Any) -> tuple[str, str]:
    """Return (module, kernel) of a dispatcher; a lifted loop goes by the function that it was lifted from."""
    kernel, module = names_of(getattr(dispatcher, "py_func", None))
    return module, f"{kernel} (loop)" if hasattr(dispatcher, "lifted_from") else kernel


def _stages(version: Any) -> dict[str, float]:
    """Return seconds by pass of the compiler, of those that took a millisecond."""
    stages: dict[str, float] = {}
    metadata = getattr(version, "metadata", None) or {}
    for passes in (metadata.get("pipeline_times") or {}).values():
        for name, times in passes.items():
            plain = name.partition("_")[2] if name[:1].isdigit() else name
            stages[plain] = stages.get(plain, 0.0) + sum(times)
    return {name: seconds for name, seconds in stages.items() if seconds >= _SHORTEST_STAGE}


def _failure(error: BaseException) -> str:
    if type(error).__name__ == "ForceLiteralArg":
        return "its arguments had to be literal: it was compiled anew for their values"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}" if lines else type(error).__name__
