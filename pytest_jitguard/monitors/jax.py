"""Watch JAX: XLA's compiles, and loads from the persistent compilation cache.

The wrapped function is called when the process has no executable, and sees the beginning. JAX's monitoring events say
what came of it: `cache_hits` that it was a load, and a duration that no call of ours announced, that somebody compiled
past the function.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.keys import SpecializationKey
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Tells
from pytest_jitguard.monitors._frames import hidden_folders
from pytest_jitguard.monitors._jax_keys import key_of, name_of
from pytest_jitguard.monitors._wrapping import Compiling, HookGone, WrappingMonitor

_COMPILED = "/jax/core/compile/backend_compile_duration"
_LOADED = "/jax/compilation_cache/cache_hits"
_MISSED = "/jax/compilation_cache/cache_misses"

_UNREGISTER = {
    "event": ("unregister_event_listener", "_unregister_event_listener_by_callback"),
    "duration": ("unregister_event_duration_listener", "_unregister_event_duration_listener_by_callback"),
}
_SWITCH = "jax_no_tracing"

_MOST = 1_000
"""How many compiled computations are remembered."""

_EQUAL = (
    "it was compiled here before for the same key: what a call gave as static arguments is not known, or it is another "
    "function object or another sharding, or JAX's caches were cleared"
)


class JaxMonitor(WrappingMonitor):
    """The monitor of `jax._src.compiler.compile_or_get_cached` and of the events in `jax.monitoring`."""

    name: ClassVar[str] = "jax"
    target: ClassVar[str] = "jax._src.compiler"
    tested: ClassVar[str] = ">=0.10,<0.12"
    tells: ClassVar[Tells] = Tells(
        identity="the function's name, without its module; eager operations by the name of the primitive",
        key="types and shapes of the arguments, values of static ones where a call compiles, platform",
        reason="nearest compiled version",
        kinds=("compile", "cache_load"),
        cache_load=True,
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._local = threading.local()
        self._before_refusal: bool | None = None
        self._compiled: dict[tuple[str, SpecializationKey], None] = {}

    # -- hooking in and out --------------------------------------------------------------------------------------------

    def hook_in(self, module: ModuleType) -> None:
        """Wrap the function between the two caches, and listen to what JAX reports."""
        self._monitoring: Any = sys.modules.get("jax._src.monitoring")
        if not hasattr(self._monitoring, "register_event_listener"):
            raise HookGone(f"there is no register_event_listener in jax.monitoring {self.version}")
        jaxlib = sys.modules.get("jaxlib")
        if jaxlib is not None:
            self._hidden = (*self._hidden, *hidden_folders(jaxlib)[:1])
        self.wrap(module, "compile_or_get_cached", self._compile)
        self._listen()
        self._patches.on_undo(self._stop_listening)
        self._patches.on_undo(lambda: self.refuse(False))

    def _listen(self) -> None:
        """Register what listens, unless it is: `clear_event_listeners` throws out everybody's."""
        monitoring = self._monitoring
        if self._on_event not in _listeners(monitoring, "_event_listeners"):
            monitoring.register_event_listener(self._on_event)
        if self._on_duration not in _listeners(monitoring, "_event_duration_secs_listeners"):
            monitoring.register_event_duration_secs_listener(self._on_duration)

    def _stop_listening(self) -> None:
        for what, listener in (("event", self._on_event), ("duration", self._on_duration)):
            name = next((name for name in _UNREGISTER[what] if hasattr(self._monitoring, name)), "")
            try:
                getattr(self._monitoring, name)(listener)
            except (AttributeError, AssertionError, ValueError):  # nobody's to unregister, or thrown out already
                continue

    def reconcile(self) -> None:
        """Look whether the function is still reached, and listen again if somebody threw out all listeners."""
        super().reconcile()
        self._listen()

    def refuse(self, on: bool) -> None:
        """Let JAX refuse to trace anything anew, in every thread; that holds for loads from the disk as well."""
        config: Any = getattr(sys.modules.get("jax"), "config", None)
        if not hasattr(config, _SWITCH) or on == (self._before_refusal is not None):
            return
        before = self._before_refusal
        self._before_refusal = getattr(config, _SWITCH) if on else None
        config.update(_SWITCH, True if on else before)

    # -- events --------------------------------------------------------------------------------------------------------

    @property
    def _open(self) -> list[Compiling]:
        """The calls that are under way on this thread."""
        stack: list[Compiling] = self._local.__dict__.setdefault("open", [])
        return stack

    def _compile(self, compile: Callable[..., Any], backend: Any, computation: Any, *args: Any, **kwargs: Any) -> Any:
        self.guarded("listening", self._listen)
        self._local.announced = True
        name = name_of(computation)
        with self.compiling(name) as told:
            told.kind, told.key = "compile", key_of(backend, computation)
            told.reason = self._why(name, told.key)
            self._open.append(told)
            try:
                return compile(backend, computation, *args, **kwargs)
            finally:
                self._open.pop()

    def _why(self, name: str, key: SpecializationKey | None) -> str:
        """Say what can be said where the key does not tell two compiles apart."""
        if key is None:
            return ""
        if (name, key) in self._compiled:
            return _EQUAL
        while len(self._compiled) >= _MOST:
            del self._compiled[next(iter(self._compiled))]
        self._compiled[name, key] = None
        return ""

    def _on_event(self, event: str, **_: Any) -> None:
        if event == _LOADED and self._open:
            self._open[-1].kind = "cache_load"
        elif event == _MISSED and self._open:
            self._open[-1].detail = "the persistent cache did not have it"

    def _on_duration(self, event: str, seconds: float, **more: Any) -> None:
        if event != _COMPILED:
            return
        if self._local.__dict__.pop("announced", False):
            return
        ended = monotonic()
        name = _LISTED.sub(r"\1", str(more.get("fun_name", "")))
        self.record(
            name or "unnamed computation",
            kind="compile",
            started=ended - seconds,
            ended=ended,
            detail="seen when it was over: it did not come through compile_or_get_cached",
        )


_LISTED = re.compile(r"^jit\((.*)\)$")
"""How JAX's events name a function: `jit(scale)`; modules are named `jit_scale`."""


def _listeners(monitoring: Any, name: str) -> list[Any]:
    return list(getattr(monitoring, name, ()))
