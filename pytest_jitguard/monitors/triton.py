"""Watches Triton: compiles, disk-cache loads, autotune benchmarks and late device loads, in any thread.

The primary signal is the official slot `knobs.compilation.listener`. `triton.compile` tests its truth before it does
anything and calls it when it is done (3.6 to 3.9), on the compiling thread, also for direct compiles and disk hits; so
an object with `__bool__` learns of the beginning as well. A compile that raises never calls it: the frame of
`compile`, which the truth test sees, tells whether it still runs.
"""

from __future__ import annotations

import functools
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, ClassVar

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.keys import Change, SpecializationKey
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Monitor, Tells
from pytest_jitguard.monitors import _triton_launchers as launchers
from pytest_jitguard.monitors._frames import find_frame, frames_of, hidden_folders, stack_of
from pytest_jitguard.monitors._triton_canary import compile_canary, is_canary, tuning_canary
from pytest_jitguard.monitors._triton_entry import NOT_BY_WARMUP, Entry
from pytest_jitguard.monitors._triton_keys import key_of, launch_of, scalar_advice, tuning_key
from pytest_jitguard.monitors._triton_listener import Seat
from pytest_jitguard.monitors._triton_lookups import Lookups, full_name, names_of
from pytest_jitguard.monitors._triton_open import OpenCompile, OpenTuning, Origin, Thread
from pytest_jitguard.monitors._triton_tuning import tuning_entry
from pytest_jitguard.patching import PatchSet, when_imported

_NEAR = 12
"""How many frames may lie between a hook and the function of Triton that it belongs to."""

_CANARY_TRIES = 3


class TritonMonitor(Monitor):
    """The monitor of `triton.compile`, `triton.runtime.autotuner` and the device load hooks."""

    name: ClassVar[str] = "triton"
    target: ClassVar[str] = "triton"
    tested: ClassVar[str] = ">=3.6,<3.10"
    tells: ClassVar[Tells] = Tells(
        identity="kernel and module",
        key="argument types, divisibility by 16, equality to 1, alignment, constexprs, options, target, device",
        reason="what differs from the nearest warmed variant",
        kinds=("compile", "cache_load", "autotune", "device_load"),
        cache_load=True,
    )
    can_forget: ClassVar[bool] = True

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._patches = PatchSet()
        self._local = threading.local()
        self._threads: list[Thread] = []
        self._lookups = Lookups()
        self._submitted: weakref.WeakKeyDictionary[Any, Origin] = weakref.WeakKeyDictionary()
        self._names: dict[str, tuple[str, str]] = {}
        self._proven: tuple[Any, Any] | None = None
        self._canary_tries = 0
        self._canary_begun = self._canary_seen = False

    # -- hooking in and out --------------------------------------------------------------------------------------------

    def install(self, module: ModuleType) -> None:
        """Take the listener slot, watch `Autotuner._bench`, the device load hooks and the making of kernels."""
        from triton import knobs
        from triton.compiler import compiler
        from triton.runtime.autotuner import Autotuner
        from triton.runtime.jit import JITFunction

        self._compile_code = compiler.compile.__code__
        self._launch_codes = (JITFunction.run.__code__, JITFunction.preload.__code__)
        self._tuner, self._tune_code = Autotuner, Autotuner.run.__code__
        self._hidden = hidden_folders(module)
        self._knobs = knobs
        self._patches.wrap(JITFunction, "__init__", self._made(self._lookups.add_function))
        self._patches.wrap(Autotuner, "__init__", self._made(self._lookups.add_tuner))
        self._lookups.adopt(JITFunction, Autotuner)
        self._patches.wrap(Autotuner, "_bench", self._bench)
        if hasattr(Autotuner, "check_disk_cache"):
            self._patches.wrap(Autotuner, "check_disk_cache", self._check_disk_cache)
        if hasattr(getattr(module, "AsyncCompileMode", None), "submit"):
            self._patches.wrap(module.AsyncCompileMode, "submit", self._submit)
        builder = sys.modules.get(launchers.BUILDER)
        if launchers.are_compiled() and hasattr(builder, "_build"):
            self._patches.wrap(builder, "_build", self._build)
        for chain, hook in self._load_hooks():
            chain.add(hook)
            self._patches.on_undo(functools.partial(chain.remove, hook))
        if hasattr(JITFunction, "_do_compile"):
            self._patches.wrap(JITFunction, "_do_compile", self._missed)
        self._seat = Seat(self, knobs.compilation)
        self._seat.take()
        self._patches.on_undo(self._seat.leave)
        self._patches.on_undo(self._lookups.recall_all)
        if "interpret" not in self.waived:
            when_imported("triton.runtime.interpreter", self._interpreter_imported)

    def _load_hooks(self) -> list[tuple[Any, Callable[..., None]]]:
        hooks = {"kernel_load_start_hook": self._load_starts, "kernel_load_end_hook": self._load_ends}
        chains = [(getattr(self._knobs.runtime, name, None), hook) for name, hook in hooks.items()]
        return [(chain, hook) for chain, hook in chains if hasattr(chain, "add")]

    def uninstall(self) -> None:
        """Give the slot back if it is still ours, and restore what was wrapped."""
        self._patches.undo()

    def _made(self, add: Callable[[Any], None]) -> Callable[..., None]:
        def made(init: Any, thing: Any, *args: Any, **kwargs: Any) -> None:
            init(thing, *args, **kwargs)
            self._guarded("the making of a kernel", add, thing)

        return made

    def _missed(self, do_compile: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Sit on top again before a launch compiles: whoever came meanwhile may not ask us whether we are there.

        A direct `triton.compile` does not come through here. What comes over it is seen to by the next launch that
        misses, or the next canary; until then a listener on top of ours may hide that it began, or that it failed.
        """
        self._guarded("the listener's place", self._seat.take)
        try:
            return do_compile(function, *args, **kwargs)
        except BaseException:
            # Nobody else says so. In a server's process nobody flushes either, as long as it lives.
            self._guarded("a compile that raised", self._flush_thread, self._here)
            raise

    def _interpreter_imported(self, interpreter: ModuleType) -> None:
        """Watch for kernels that are never compiled, because `TRITON_INTERPRET` was set after we looked at it."""
        if self._seat.monitor is None:  # uninstalled; a hook for an import cannot be taken back
            return
        self._guarded("the import of the interpreter", self._watch_interpreted, interpreter.InterpretedFunction)

    def _watch_interpreted(self, kind: type) -> None:
        self._patches.wrap(kind, "__init__", self._made(self._interpreted))
        for thing in [thing for thing in gc.get_objects() if issubclass(type(thing), kind)]:
            if not names_of(thing)[1].startswith("triton."):  # made while Triton was imported, and nobody's kernel
                self._interpreted(thing)

    def _interpreted(self, kernel: Any) -> None:
        self.blind(
            f"a kernel ({full_name(kernel)}) was made under TRITON_INTERPRET=1: interpreted kernels compile nothing"
        )

    def _guarded(self, what: str, action: Callable[..., Any], *args: Any) -> Any:
        """Call something of ours from inside the library: what goes wrong there makes us blind, not the user fail."""
        try:
            return action(*args)
        except Exception as error:  # noqa: BLE001 - raising here would fail the user's launch
            self.blind(f"{what} could not be recorded: {type(error).__name__}: {error}")
            return None

    @property
    def _here(self) -> Thread:
        """What the calling thread has under way."""
        try:
            here: Thread = self._local.state
        except AttributeError:
            here = self._local.state = Thread(threading.get_ident())
            self._threads.append(here)
        return here

    # -- compiles ------------------------------------------------------------------------------------------------------

    def truth_tested(self, caller: FrameType) -> None:
        """`triton.compile` asked whether there is a listener: the first time for a frame, a compile begins."""
        self._guarded("the beginning of a compile", self._truth_tested, caller)

    def _truth_tested(self, caller: FrameType) -> None:
        frame = find_frame(caller, (self._compile_code,), _NEAR)
        if frame is None or any(opened.frame is frame for opened in self._here.compiles):
            return
        # A listener on top of ours may test our truth when the compile is over; the timer is started at the first test.
        if "timer" not in frame.f_locals:
            self._begin(frame, frame.f_locals.get("src"))

    def _begin(self, frame: FrameType, src: Any, started: float | None = None) -> OpenCompile:
        here = self._here
        self._close_raised(here, frame)
        opened = OpenCompile(frame, src)
        if is_canary(src):
            self._canary_begun = True
        else:
            given = frame.f_locals
            opened.target, opened.options = given.get("target"), _options(given.get("options"))
            opened.origin = self._origin(frame, src)
            kernel, module = _names(src)
            around = [*(t.event for t in here.tunings), *(c.event for c in here.compiles if c.event)]
            opened.event = self.recorder.begin(
                self.name,
                kernel,
                module,
                started=started,
                launch=opened.origin.launch,
                stack=opened.origin.stack,
                parent=max(around, key=lambda event: event.started).id if around else None,
            )
        here.compiles.append(opened)
        return opened

    def compiled(self, caller: FrameType, compiled: Mapping[str, Any]) -> CompileEvent | None:
        """`triton.compile` succeeded, by compiling or from the disk cache."""
        event: CompileEvent | None = self._guarded("a compile", self._compiled, caller, compiled)
        return event

    def _compiled(self, caller: FrameType, compiled: Mapping[str, Any]) -> CompileEvent | None:
        frame = find_frame(caller, (self._compile_code,), _NEAR)
        opened = self._pop(frame) if frame is not None else None
        if is_canary(compiled.get("src")):
            self._canary_seen = True
            return None
        if opened is None:
            opened = self._late(frame or caller, compiled)
        self._lookups.announce(str(compiled["metadata"]["hash"]))
        self._end(opened, compiled)
        return opened.event

    def _late(self, frame: FrameType, compiled: Mapping[str, Any]) -> OpenCompile:
        """Begin what is over: a listener was chained on top of ours, so that the truth test went to that one."""
        opened = self._begin(frame, compiled["src"], monotonic() - compiled["times"].total / 1e6)
        _taken_out(self._here.compiles, opened)
        return opened

    def _pop(self, frame: FrameType) -> OpenCompile | None:
        """Take out the open compile of a frame; those above it on the same thread have raised."""
        stack = self._here.compiles
        if not any(opened.frame is frame for opened in stack):
            return None
        while True:
            opened = stack.pop()
            if opened.frame is frame:
                return opened
            self._fail(opened)

    def _end(self, opened: OpenCompile, compiled: Mapping[str, Any]) -> None:
        assert opened.event is not None
        metadata, hash = compiled["metadata"], str(compiled["metadata"]["hash"])
        opened.src, opened.target = compiled["src"], metadata.get("target", opened.target)
        # By now `options` is what the backend made of them, complete and in one form for compiles and disk hits.
        opened.options = _options(opened.frame.f_locals.get("options")) or opened.options
        self._here.just_compiled = hash if opened.origin.will_launch else ""
        # Whoever compiles directly launches what it gets; `.warmup()` launches nothing.
        self._here.launches_next = hash if opened.origin.will_launch or opened.origin.direct else ""
        self._names[hash] = (opened.event.kernel, opened.event.module)
        key, cure = self._describe(opened)
        self.recorder.end(
            opened.event,
            kind="cache_load" if compiled["cache_hit"] else "compile",
            key=key,
            artifact_hash=hash,
            stages=_stages(compiled["times"]),
            cure=cure,
        )

    def _fail(self, opened: OpenCompile) -> None:
        if opened.event is not None:
            key, cure = self._describe(opened)
            self.recorder.end(opened.event, status="failed", key=key, cure=cure)

    def _describe(self, opened: OpenCompile) -> tuple[SpecializationKey | None, str]:
        """Return key and warmup entry; a source that does not compile may not describe itself either."""
        origin, target = opened.origin, opened.target
        try:
            key = key_of(opened.src, opened.options, target, origin.device)
            entry = self._entry(opened.src, origin, target)
        except Exception as error:  # noqa: BLE001 - constexprs and sources may be any object
            return None, f"# no entry could be written: {type(error).__name__}: {error}"
        return key, NOT_BY_WARMUP if entry and origin.direct else entry

    def _entry(self, src: Any, origin: Origin, target: Any) -> str:
        backend = str(getattr(target, "backend", ""))
        launches = launchers.are_compiled()
        return Entry(src, origin.launch, device=origin.device or 0, backend=backend, launches=launches).text()

    def _close_raised(self, here: Thread, frame: FrameType) -> None:
        """Close what raised on the calling thread: compiles and benchmarks whose frames are not below this one."""
        running = set(map(id, frames_of(frame)))
        self._close(here, list(here.compiles), list(here.tunings), running)

    def flush(self) -> None:
        """Close what raised: compiles and benchmarks whose frames run no more, on whatever thread."""
        for thread in list(self._threads):
            self._flush_thread(thread)
        alive = set(sys._current_frames())
        self._threads[:] = [t for t in self._threads if t.ident in alive or t.compiles or t.tunings]

    def _flush_thread(self, thread: Thread) -> None:
        # What is open first, then where the thread is: what begins in between is not looked at.
        compiles, tunings = list(thread.compiles), list(thread.tunings)
        running = _running(thread.ident) if compiles or tunings else set()
        self._close(thread, compiles, tunings, running)

    def _close(self, thread: Thread, compiles: list[OpenCompile], tunings: list[OpenTuning], running: set[int]) -> None:
        for opened in reversed(compiles):
            if id(opened.frame) not in running and _taken_out(thread.compiles, opened):
                self._fail(opened)
        for tuning in tunings:
            key = _new_tuning_key(tuning.tuner, tuning.known)
            if (key is not None or id(tuning.frame) not in running) and _taken_out(thread.tunings, tuning):
                self._end_tuning(tuning, key)

    # -- where it came from --------------------------------------------------------------------------------------------

    def _origin(self, frame: FrameType, src: Any) -> Origin:
        """Find the launch whose `JITFunction.run` is on the stack; a direct `triton.compile` has none."""
        fn = getattr(src, "fn", None)
        asked = self._submitted.pop(src, None) if fn is not None else None
        if asked is not None:
            return asked
        origin = Origin(stack=stack_of(frame, self._hidden))
        run = find_frame(frame, self._launch_codes, _NEAR)
        seen = run.f_locals if run is not None else {}
        if run is None or seen.get("self") is not fn:
            return origin
        device = seen.get("device")
        origin.device = device if isinstance(device, int) else None
        origin.direct = False
        if run.f_code is self._launch_codes[0]:
            origin.launch = launch_of(seen, fn)
            origin.will_launch = not seen.get("warmup")
        return origin

    def _submit(self, submit: Any, mode: Any, key: Any, compile_fn: Any, *rest: Any, **more: Any) -> Any:
        """Note where an async compile was asked for: the worker that compiles it knows nothing of that."""
        self._guarded("an async compile", self._submitting, compile_fn, sys._getframe(1))
        return submit(mode, key, compile_fn, *rest, **more)

    def _submitting(self, compile_fn: Any, caller: FrameType) -> None:
        captured = dict(zip(compile_fn.__code__.co_freevars, compile_fn.__closure__ or (), strict=False))
        if "src" in captured:
            src = captured["src"].cell_contents
            origin = self._origin(caller, src)
            origin.will_launch = False
            self._submitted[src] = origin

    # -- autotuning ----------------------------------------------------------------------------------------------------
    # `knobs.autotuning.listener` exists from 3.8 only and tells no beginning; `_bench` is called once per benchmarked
    # config with one signature in 3.6 to 3.9, also when a new key needs no new specialization.

    def _bench(self, bench: Any, tuner: Any, *args: Any, **kwargs: Any) -> Any:
        if is_canary(tuner):
            self._canary_seen = True
            return bench(tuner, *args, **kwargs)
        opened = self._guarded("a benchmark", self._tuning_of, tuner, sys._getframe(2))
        try:
            return bench(tuner, *args, **kwargs)
        finally:
            if opened is not None:
                opened.last_bench = monotonic()

    def _check_disk_cache(self, check: Any, tuner: Any, *args: Any, **kwargs: Any) -> Any:
        """Notice a stored tuning result (`TRITON_CACHE_AUTOTUNING`): no benchmark here, but one on a fresh machine."""
        here, started = self._here, monotonic()
        known, begun = frozenset(tuner.cache), here.tunings_begun
        result = check(tuner, *args, **kwargs)
        if here.tunings_begun == begun:
            self._guarded("a stored autotune result", self._tuning_loaded, tuner, known, started, sys._getframe(2))
        return result

    def _tuning_loaded(self, tuner: Any, known: frozenset[Any], started: float, caller: FrameType) -> None:
        key = _new_tuning_key(tuner, known)
        if key is not None:
            kernel, module = names_of(tuner)
            stack = stack_of(caller, self._hidden)
            frame = find_frame(caller, (self._tune_code,), _NEAR) or caller
            event = self.recorder.begin(self.name, kernel, module, kind="cache_load", started=started, stack=stack)
            detail, cure = "a stored autotune result was read", tuning_entry(tuner, frame.f_locals)
            self.recorder.end(event, key=tuning_key(tuner.keys, key), detail=detail, cure=cure)

    def _tuning_of(self, tuner: Any, caller: FrameType) -> OpenTuning:
        here = self._here
        self._close_raised(here, caller)
        frame = find_frame(caller, (self._tune_code,), _NEAR) or caller
        for opened in here.tunings:
            if opened.tuner is tuner and opened.frame is frame:
                return opened
        self._lookups.add_tuner(tuner)
        kernel, module = names_of(tuner)
        event = self.recorder.begin(self.name, kernel, module, kind="autotune", stack=stack_of(caller, self._hidden))
        opened = OpenTuning(frame, event, tuner, frozenset(tuner.cache), tuning_entry(tuner, frame.f_locals))
        here.tunings.append(opened)
        here.tunings_begun += 1
        return opened

    def _end_tuning(self, opened: OpenTuning, key: Any) -> None:
        """Close a benchmark that has its result, or whose `Autotuner.run` is over without one."""
        self.recorder.end(
            opened.event,
            status="failed" if key is None else "ok",
            ended=opened.last_bench or monotonic(),
            key=None if key is None else tuning_key(opened.tuner.keys, key),
            detail="" if key is None else f"chose {opened.tuner.cache.get(key)}",
            cure=opened.cure,
        )

    # -- device loads --------------------------------------------------------------------------------------------------

    def _load_starts(self, *_: Any) -> None:
        self._here.load_began = monotonic()

    def _load_ends(self, *load: Any) -> None:
        """Record a load that does not belong to a compile just done: compiled in the warmup, first used now."""
        self._guarded("a device load", self._loaded, sys._getframe(1), *load)

    def _loaded(self, caller: FrameType, module: Any, function: Any, name: str, group: Any, hash: str) -> None:
        here = self._here
        if here.just_compiled == hash:
            here.just_compiled = ""
            return
        kernel, in_module = self._names.get(str(hash), (str(name), ""))
        stack = stack_of(caller, self._hidden)
        event = self.recorder.begin(
            self.name, kernel, in_module, kind="device_load", started=here.load_began, stack=stack
        )
        self.recorder.end(event, artifact_hash=str(hash))

    def _build(self, build: Any, name: Any, *args: Any, **kwargs: Any) -> Any:
        """Record the compile of a launcher, unless it belongs to an event: its kernel's, just now, or one around it."""
        event = self._guarded("the beginning of a launcher", self._launcher_begins, name, sys._getframe(1))
        if event is None:
            return build(name, *args, **kwargs)
        try:
            with self.recorder.inside(event):
                built = build(name, *args, **kwargs)
        except BaseException:
            self._guarded("a launcher that failed", functools.partial(self.recorder.end, event, status="failed"))
            raise
        self._guarded("a launcher", self.recorder.end, event)
        return built

    def _launcher_begins(self, name: Any, caller: FrameType) -> CompileEvent | None:
        kernel = launchers.launched(name, caller)
        if kernel is None or self._here.launches_next == str(kernel.hash) or self.recorder.enclosing():
            return None
        origin = self._origin(caller, kernel.src)
        called, module = self._names.get(str(kernel.hash)) or _names(kernel.src)
        event = self.recorder.begin(
            self.name, called, module, launch=origin.launch, stack=origin.stack, reason=launchers.REASON
        )
        event.cure = self._entry(kernel.src, origin, kernel.metadata.target)
        return event

    # -- what is resident ----------------------------------------------------------------------------------------------

    def resident(self) -> dict[Hashable, str]:
        """Return specializations and autotune results in Triton's in-process caches."""
        return self._lookups.resident()

    def reconcile(self) -> None:
        """Every resident kernel object came out of one compile or load; one more than was announced went unseen."""
        for name in self._lookups.unannounced():
            self.blind(f"a resident variant of {name} was announced by no event")

    def forget(self, tokens: Iterable[Hashable]) -> None:
        """Remove variants from the lookup. The kernel objects stay alive: a captured graph may hold them."""
        self._lookups.forget(tokens)

    def recall(self, tokens: Iterable[Hashable]) -> None:
        """Put parked variants back, unless the lookup has a newer one by now."""
        self._lookups.recall(tokens)

    def advice(self, changes: Sequence[Change]) -> str:
        """Offer `do_not_specialize` where value classes are the only difference, with its price."""
        return scalar_advice(changes)

    # -- liveness ------------------------------------------------------------------------------------------------------

    def prove(self) -> None:
        """Compile something tiny through the slot as it is now; what was proven is not asked again."""
        now = (self._knobs.compilation.listener, vars(self._tuner).get("_bench"))
        if self._proven is not None and all(a is b for a, b in zip(self._proven, now, strict=True)):
            return
        if self._canary_tries >= _CANARY_TRIES:
            return
        for canary in (compile_canary, tuning_canary):
            if not self._flies(canary):
                return
        if not self._canary_begun:
            # Somebody's listener on top of ours hands on the end, and keeps the truth test to itself.
            self._seat.take()
            if not self._flies(compile_canary):
                return
            if not self._canary_begun:
                self.blind("the beginning of a compile is not seen")
                return
        if self.state != "blind":
            now = (self._knobs.compilation.listener, vars(self._tuner).get("_bench"))
            self._proven, self._canary_tries, self.state, self.detail = now, 0, "armed", self.untested()
            self.has_seen = True

    def _flies(self, canary: Callable[[], None]) -> bool:
        """Tell whether a canary was sent and seen; if not, the state says so."""
        self._canary_seen = False
        if canary is compile_canary:
            self._canary_begun = False
        try:
            canary()
        except Exception as error:  # noqa: BLE001 - whatever keeps the canary from flying is a finding, not an error
            self._canary_tries += 1
            self.detail = f"the canary could not be compiled: {type(error).__name__}: {error}"
            self.state = "unproven"
            return False
        if not self._canary_seen:
            self.blind(f"a canary through {canary.__doc__} was not seen")
        return self._canary_seen


def _running(ident: int) -> set[int]:
    """Return the ids of the frames that run on a thread.

    Looked at twice: a generator that is left while its thread is being looked at hides the frames below it.
    """
    return {id(frame) for _ in range(2) for frame in frames_of(sys._current_frames().get(ident))}


def _taken_out(stack: list[Any], opened: Any) -> bool:
    """Take out what is over, unless its own thread has done so meanwhile."""
    try:
        stack.remove(opened)
    except ValueError:
        return False
    return True


def _names(src: Any) -> tuple[str, str]:
    """Return (kernel, module) of a source, which at the beginning of a compile may be the path of an IR file."""
    return (Path(src).stem, "") if isinstance(src, (str, Path)) else names_of(src)


def _options(options: Any) -> dict[str, Any]:
    """Return options by name: a caller gives a mapping or nothing, the backend makes an object of them."""
    return dict(options) if isinstance(options, Mapping) else dict(getattr(options, "__dict__", {}))


def _stages(times: Any) -> dict[str, float]:
    """Return seconds by stage; Triton counts microseconds."""
    stages = {"ir_initialization": times.ir_initialization, **dict(times.lowering_stages), "store": times.store_results}
    return {name: microseconds / 1e6 for name, microseconds in stages.items()}


def _new_tuning_key(tuner: Any, known: frozenset[Any]) -> Any:
    """Return the key whose result came to an autotuner since; None if none did."""
    return next((key for key in list(tuner.cache) if key not in known), None)
