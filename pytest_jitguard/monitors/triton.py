"""Watches Triton: compiles, disk-cache loads, autotune benchmarks and late device loads, in any thread.

The primary signal is the official slot `knobs.compilation.listener`. `triton.compile` tests its truth before it does
anything and calls it when it is done (3.6 to 3.9), on the compiling thread, also for direct compiles and disk hits; so
an object with `__bool__` learns of the beginning as well. A compile that raises never calls it: the frame of
`compile`, which the truth test sees, tells whether it still runs.
"""

from __future__ import annotations

import gc
import itertools
import sys
import sysconfig
import tempfile
import threading
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, ClassVar

import pytest_jitguard
from pytest_jitguard.core.events import CompileEvent, Launch
from pytest_jitguard.core.keys import Change, SpecializationKey
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Monitor
from pytest_jitguard.monitors._patch import PatchSet
from pytest_jitguard.monitors._triton_keys import Entry, key_of, launch_of, scalar_advice, text_of, tuning_key

_DEEPEST_STACK = 40
_nonces = itertools.count(time.time_ns())


@dataclass
class _OpenCompile:
    """A compile that has begun; `frame` is that of `triton.compile` and tells whether it still runs."""

    frame: FrameType
    event: CompileEvent | None
    src: Any
    device: int | None = None
    will_launch: bool = False


@dataclass
class _OpenTuning:
    """An autotuner that is benchmarking; `frame` is that of `Autotuner.run`."""

    frame: FrameType | None
    event: CompileEvent
    tuner: Any
    known: frozenset[Any]
    last_bench: float = 0.0


class Listener:
    """Sits in `knobs.compilation.listener`, and hands everything on to the listener that was there before."""

    def __init__(self, monitor: TritonMonitor, previous: Any) -> None:
        self.monitor = monitor
        self.previous = previous

    def __bool__(self) -> bool:
        self.monitor.truth_tested(sys._getframe(1))
        if self.previous is not None:
            bool(self.previous)
        return True

    def __call__(self, **compiled: Any) -> None:
        """Take what `triton.compile` tells at its end."""
        self.monitor.compiled(sys._getframe(1), compiled)
        if self.previous:
            self.previous(**compiled)


@dataclass
class _PerThread(threading.local):
    compiles: list[_OpenCompile] = field(default_factory=list)
    tunings: list[_OpenTuning] = field(default_factory=list)
    just_compiled: str = ""
    load_began: float = 0.0


class TritonMonitor(Monitor):
    """The monitor of `triton.compile`, `triton.runtime.autotuner` and the device load hooks."""

    name: ClassVar[str] = "triton"
    target: ClassVar[str] = "triton"
    can_forget: ClassVar[bool] = True

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._patches = PatchSet()
        self._here = _PerThread()
        self._compiles: dict[int, list[_OpenCompile]] = {}
        self._tunings: dict[int, list[_OpenTuning]] = {}
        self._functions: dict[int, weakref.ref[Any]] = {}
        self._tuners: dict[int, weakref.ref[Any]] = {}
        self._parked: list[Any] = []
        self._recallable: dict[Hashable, tuple[dict[Any, Any], Any, Any]] = {}
        self._announced: Counter[str] = Counter()
        self._option_names: dict[str, tuple[str, ...]] = {}
        self._proven_slot: Any = None
        self._canary: Any = None
        self._canary_seen = False

    # -- hooking in and out --------------------------------------------------------------------------------------------

    def install(self, module: ModuleType) -> None:
        """Take the listener slot, watch `Autotuner._bench`, the device load hooks and the making of kernels."""
        from triton import knobs
        from triton.compiler import compiler
        from triton.runtime.autotuner import Autotuner
        from triton.runtime.jit import JITFunction

        self._compile_code = compiler.compile.__code__
        self._run_codes = (JITFunction.run.__code__, Autotuner.run.__code__)
        self._hidden = _hidden_folders(module)
        self._knobs = knobs
        # type(), because isinstance() asks objects for their __class__, which lazy modules answer with warnings.
        for function in [o for o in gc.get_objects() if issubclass(type(o), JITFunction)]:
            self._remember(self._functions, function)
        for variant in self._variants():
            self._announced[variant.hash] += 1
        self._patches.wrap(JITFunction, "__init__", self._function_made)
        self._patches.wrap(Autotuner, "_bench", self._bench)
        if hasattr(Autotuner, "check_disk_cache"):
            self._patches.wrap(Autotuner, "check_disk_cache", self._check_disk_cache)
        knobs.runtime.kernel_load_start_hook.add(self._load_starts)
        knobs.runtime.kernel_load_end_hook.add(self._load_ends)
        self._listener = Listener(self, knobs.compilation.listener)
        self._patches.replace(knobs.compilation, "listener", self._listener)

    def uninstall(self) -> None:
        """Give the slot back if it is still ours, and restore what was wrapped."""
        self._knobs.runtime.kernel_load_start_hook.remove(self._load_starts)
        self._knobs.runtime.kernel_load_end_hook.remove(self._load_ends)
        self._patches.undo()

    def _function_made(self, init: Any, function: Any, *args: Any, **kwargs: Any) -> None:
        init(function, *args, **kwargs)
        self._remember(self._functions, function)

    @staticmethod
    def _remember(where: dict[int, weakref.ref[Any]], thing: Any) -> None:
        # By id, because hashing a JITFunction computes its cache key, which reads sources and may raise.
        at = id(thing)
        where[at] = weakref.ref(thing, lambda _: where.pop(at, None))

    # -- compiles ------------------------------------------------------------------------------------------------------

    def truth_tested(self, caller: FrameType) -> None:
        """`triton.compile` asked whether there is a listener: the first time for a frame, a compile begins."""
        try:
            frame = self._frame_of(caller, (self._compile_code,), 8)
            if frame is None or any(opened.frame is frame for opened in self._here.compiles):
                return
            self._close_failed(self._here.compiles, _frames_of(frame))
            self._begin(frame)
        except Exception as error:  # noqa: BLE001 - raising here would fail the user's compile
            self.blind(f"the beginning of a compile could not be recorded: {type(error).__name__}: {error}")

    def _begin(self, frame: FrameType) -> None:
        src = frame.f_locals.get("src")
        opened = _OpenCompile(frame, None, src)
        if not self._is_canary(src):
            launch = self._launch(frame, opened)
            kernel, module = _names(src)
            parent = self._here.tunings[-1].event.id if self._here.tunings else None
            opened.event = self.recorder.begin(
                self.name, kernel, module, launch=launch, stack=self._stack(frame), parent=parent
            )
        self._compiles[threading.get_ident()] = self._here.compiles
        self._here.compiles.append(opened)

    def compiled(self, caller: FrameType, compiled: Mapping[str, Any]) -> None:
        """`triton.compile` succeeded, by compiling or from the disk cache."""
        try:
            frame = self._frame_of(caller, (self._compile_code,), 8)
            opened = self._pop(frame)
            if self._is_canary(compiled.get("src")):
                self._canary_seen = True
                return
            self._announced[str(compiled["metadata"]["hash"])] += 1
            self._end(opened, compiled)
        except Exception as error:  # noqa: BLE001 - raising here would fail the user's compile
            self.blind(f"a compile could not be recorded: {type(error).__name__}: {error}")
            return
        if opened and opened.event and self.recorder.on_finished:
            self.recorder.on_finished(opened.event)

    def _pop(self, frame: FrameType | None) -> _OpenCompile | None:
        """Take out the open compile of a frame; those above it on the same thread have raised."""
        stack = self._here.compiles
        if not any(opened.frame is frame for opened in stack):
            return None
        while True:
            opened = stack.pop()
            if opened.frame is frame:
                return opened
            self._fail(opened)

    def _end(self, opened: _OpenCompile | None, compiled: Mapping[str, Any]) -> None:
        src, times, metadata = compiled["src"], compiled["times"], compiled["metadata"]
        event = opened.event if opened else None
        if event is None:
            # A listener was chained on top of ours, so that the truth test went to that one.
            kernel, module = _names(src)
            started = time.monotonic() - times.total / 1e6
            event = self.recorder.begin(self.name, kernel, module, started=started)
        target, device = metadata.get("target"), opened.device if opened else None
        self._here.just_compiled = str(metadata["hash"]) if opened and opened.will_launch else ""
        self.recorder.end(
            event,
            kind="cache_load" if compiled["cache_hit"] else "compile",
            key=key_of(src, self._options(metadata, target), target, device),
            artifact_hash=str(metadata["hash"]),
            stages=_stages(times),
            cure=Entry(src, event.launch).text(),
        )

    def _options(self, metadata: Mapping[str, Any], target: Any) -> dict[str, Any]:
        """Pick the options out of the metadata, and bring lists (disk hits) and tuples (compiles) to one form."""
        names = self._option_names.get(str(target))
        if names is None:
            from triton.compiler import compiler

            names = tuple(compiler.make_backend(target).parse_options({}).__dict__)
            self._option_names[str(target)] = names
        return {name: _normal(metadata[name]) for name in names if name in metadata}

    def _fail(self, opened: _OpenCompile) -> None:
        if opened.event is None:
            return
        key, cure = SpecializationKey(()), ""
        try:
            key, cure = key_of(opened.src, {}, None, opened.device), Entry(opened.src, opened.event.launch).text()
        except Exception as error:  # noqa: BLE001 - a source that does not compile may not describe itself either
            cure = f"# not available: {type(error).__name__}"
        self.recorder.end(opened.event, status="failed", key=key, cure=cure)

    def _close_failed(self, stack: list[_OpenCompile], running: Iterable[FrameType]) -> None:
        """Close the compiles of a thread whose frames are not on its stack any more."""
        alive = {id(frame) for frame in running}
        for opened in [o for o in stack if id(o.frame) not in alive]:
            stack.remove(opened)
            self._fail(opened)

    def flush(self) -> None:
        """Close what raised: compiles and benchmarks whose frames run no more."""
        threads = sys._current_frames()
        for thread in list(self._compiles):
            running = list(_frames_of(threads.get(thread)))
            self._close_failed(self._compiles[thread], running)
        for thread in list(self._tunings):
            alive = {id(frame) for frame in _frames_of(threads.get(thread))}
            self._close_tunings(self._tunings[thread], alive)

    # -- where it came from --------------------------------------------------------------------------------------------

    def _frame_of(self, frame: FrameType | None, codes: Sequence[Any], deepest: int) -> FrameType | None:
        for candidate in itertools.islice(_frames_of(frame), deepest):
            if candidate.f_code in codes:
                return candidate
        return None

    def _launch(self, frame: FrameType, opened: _OpenCompile) -> Launch | None:
        """Describe the launch whose `JITFunction.run` is on the stack; a direct `triton.compile` has none."""
        run = self._frame_of(frame, self._run_codes[:1], 12)
        if run is None:
            return None
        seen = run.f_locals
        device = seen.get("device")
        opened.device = device if isinstance(device, int) else None
        opened.will_launch = not seen.get("warmup")
        return launch_of(seen, seen.get("self"))

    def _stack(self, frame: FrameType) -> tuple[str, ...]:
        shown = (f for f in _frames_of(frame) if not f.f_code.co_filename.startswith(self._hidden))
        return tuple(
            f"{f.f_code.co_filename}:{f.f_lineno}:{f.f_code.co_name}" for f in itertools.islice(shown, _DEEPEST_STACK)
        )

    # -- autotuning ----------------------------------------------------------------------------------------------------
    # `knobs.autotuning.listener` exists from 3.8 only and tells no beginning; `_bench` is called once per benchmarked
    # config with one signature in 3.6 to 3.9, also when a new key needs no new specialization.

    def _bench(self, bench: Any, tuner: Any, *args: Any, **kwargs: Any) -> Any:
        if tuner is self._canary:
            self._canary_seen = True
            return bench(tuner, *args, **kwargs)
        opened = self._tuning_of(tuner, sys._getframe(1))
        try:
            return bench(tuner, *args, **kwargs)
        finally:
            opened.last_bench = time.monotonic()

    def _check_disk_cache(self, check: Any, tuner: Any, *args: Any, **kwargs: Any) -> Any:
        """Notice a stored tuning result (`TRITON_CACHE_AUTOTUNING`): no benchmark here, but one on a fresh machine."""
        known, started = frozenset(tuner.cache), time.monotonic()
        before = len(self._here.tunings)
        result = check(tuner, *args, **kwargs)
        if len(self._here.tunings) == before and frozenset(tuner.cache) != known:
            self._remember(self._tuners, tuner)
            kernel, module = _names(tuner)
            event = self.recorder.begin(
                self.name, kernel, module, kind="cache_load", started=started, stack=self._stack(sys._getframe(1))
            )
            key = _new_tuning_key(tuner, known)
            self.recorder.end(event, key=key, detail="a stored autotune result was read")
        return result

    def _tuning_of(self, tuner: Any, caller: FrameType) -> _OpenTuning:
        frame = self._frame_of(caller, self._run_codes[1:], 12)
        mine = self._here.tunings
        self._close_tunings(mine, {id(f) for f in _frames_of(caller)})
        for opened in mine:
            if opened.tuner is tuner and opened.frame is frame:
                return opened
        self._remember(self._tuners, tuner)
        kernel, module = _names(tuner)
        event = self.recorder.begin(self.name, kernel, module, kind="autotune", stack=self._stack(caller))
        opened = _OpenTuning(frame, event, tuner, frozenset(tuner.cache))
        self._tunings[threading.get_ident()] = mine
        mine.append(opened)
        return opened

    def _close_tunings(self, stack: list[_OpenTuning], alive: set[int]) -> None:
        """Close the benchmarks that have their result, or whose `Autotuner.run` is over without one."""
        for opened in list(stack):
            key = _new_tuning_key(opened.tuner, opened.known)
            if key is None and opened.frame is not None and id(opened.frame) in alive:
                continue
            stack.remove(opened)
            status, ended = ("ok" if key else "failed"), opened.last_bench or time.monotonic()
            detail = f"chose {text_of(getattr(opened.tuner, 'best_config', None))}" if key else ""
            self.recorder.end(opened.event, status=status, ended=ended, key=key, detail=detail)

    # -- device loads --------------------------------------------------------------------------------------------------

    def _load_starts(self, *_: Any) -> None:
        self._here.load_began = time.monotonic()

    def _load_ends(self, module: Any, function: Any, name: str, metadata_group: Any, hash: str) -> None:
        """Record a load that does not belong to a compile just done: compiled in the warmup, first used now."""
        try:
            if self._here.just_compiled == hash:
                self._here.just_compiled = ""
                return
            event = self.recorder.begin(
                self.name,
                name,
                "",
                kind="device_load",
                started=self._here.load_began,
                stack=self._stack(sys._getframe(1)),
            )
            self.recorder.end(event, artifact_hash=hash)
        except Exception as error:  # noqa: BLE001 - raising here would fail the user's launch
            self.blind(f"a device load could not be recorded: {type(error).__name__}: {error}")

    # -- what is resident ----------------------------------------------------------------------------------------------

    def _slots(self) -> Iterator[tuple[Any, Any, Any, Any]]:
        """Yield (function, in-process cache, key, kernel) of every variant; a pending async compile has none yet."""
        for reference in list(self._functions.values()):
            function = reference()
            if function is None:
                continue
            # Only `value[0]`, the kernel cache, has kept its place from 3.6 to 3.9; indexing would create entries.
            for entry in list(function.device_caches.values()):
                for key, kernel in list(entry[0].items()):
                    if type(kernel).__name__ == "FutureKernel":
                        kernel = vars(kernel).get("kernel")
                    if kernel is not None:
                        yield function, entry[0], key, kernel

    def _variants(self) -> list[Any]:
        """Return the distinct compiled kernels that are resident or parked."""
        return list({id(k): k for k in [*(slot[3] for slot in self._slots()), *self._parked]}.values())

    def resident(self) -> dict[Hashable, str]:
        """Return specializations and autotune results in Triton's in-process caches."""
        found: dict[Hashable, str] = {}
        for function, cache, key, _ in self._slots():
            found["variant", id(function), id(cache), key] = f"{function.module}.{function.__name__}"
        for tuner, token in self._tuned():
            found[token] = ".".join(reversed(_names(tuner)))
        return found

    def reconcile(self) -> None:
        """Every resident kernel object came out of one compile or load; one more than was announced went unseen."""
        resident = Counter(str(kernel.hash) for kernel in self._variants())
        for kernel in self._variants():
            if resident[kernel.hash] > self._announced[kernel.hash]:
                self.blind(f"a resident variant of {kernel.name} was announced by no event")

    def forget(self, tokens: Iterable[Hashable]) -> None:
        """Remove variants from the lookup. The kernel objects stay alive: a captured graph may hold them."""
        wanted = set(tokens)
        for function, cache, key, kernel in list(self._slots()):
            token = ("variant", id(function), id(cache), key)
            if token in wanted:
                self._parked.append(kernel)
                self._recallable[token] = (cache, key, cache.pop(key))
        for tuner, token in list(self._tuned()):
            if token in wanted:
                self._recallable[token] = (tuner.cache, token[3], tuner.cache.pop(token[3]))

    def recall(self, tokens: Iterable[Hashable]) -> None:
        """Put parked variants back, unless the lookup has a newer one by now."""
        for token in tokens:
            if token in self._recallable:
                cache, key, value = self._recallable.pop(token)
                cache.setdefault(key, value)

    def _tuned(self) -> Iterator[tuple[Any, tuple[str, int, int, Any]]]:
        for at, reference in list(self._tuners.items()):
            tuner = reference()
            for key in list(tuner.cache) if tuner is not None else ():
                yield tuner, ("tuning", at, 0, key)

    def advice(self, changes: Sequence[Change]) -> str:
        """Offer `do_not_specialize` where value classes are the only difference, with its price."""
        return scalar_advice(changes)

    # -- liveness ------------------------------------------------------------------------------------------------------

    def prove(self) -> None:
        """Compile something tiny through the slot as it is now; a slot that was proven is not asked again."""
        slot = self._knobs.compilation.listener
        if slot is self._proven_slot and self._proven_slot is not None:
            return
        for canary in (self._compile_canary, self._tuning_canary):
            self._canary_seen = False
            try:
                canary()
            except Exception as error:  # noqa: BLE001 - whatever keeps the canary from flying is a finding, not an error
                self.detail = f"the canary could not be compiled: {type(error).__name__}: {error}"
                self.state = "unproven"
                return
            if not self._canary_seen:
                self.blind(f"a canary through {canary.__doc__} was not seen")
                return
        self._proven_slot, self.state, self.detail = slot, "armed", ""

    def _is_canary(self, src: Any) -> bool:
        return self._canary is not None and getattr(src, "fn", None) is self._canary

    def _compile_canary(self) -> None:
        """triton.compile"""  # noqa: D400 - the name of what is proven, for the message
        import triton
        from triton.compiler import ASTSource

        # A new constant each time, so that no cache can answer; an explicit target, so that no driver is asked.
        self._canary = triton.runtime.jit.JITFunction(_canary_kernel)
        source = ASTSource(self._canary, {"nonce": "constexpr"}, {(0,): next(_nonces)}, {})
        with tempfile.TemporaryDirectory(prefix="jitguard-canary-") as folder, warnings.catch_warnings():
            # Triton 3.9 warns about TRITON_DEFAULT_FP_FUSION at the first compile, an error under -W error.
            warnings.simplefilter("ignore")
            with self._knobs.cache.scope():
                self._knobs.cache.dir = folder
                triton.compile(source, target=_canary_target())

    def _tuning_canary(self) -> None:
        """Autotuner._bench"""  # noqa: D400 - the name of what is proven, for the message
        import triton

        tuner = triton.runtime.autotuner.Autotuner.__new__(triton.runtime.autotuner.Autotuner)
        tuner.base_fn, tuner.nargs = _canary_kernel, {}
        vars(tuner)["do_bench"] = lambda call, quantiles: [0.0, 0.0, 0.0]
        self._canary = tuner
        tuner._bench(config=triton.Config({}))


def _canary_kernel(nonce: "constexpr"):  # type: ignore  # noqa: ANN202, F821, PGH003, UP037 - Triton reads the text
    pass


def _canary_target() -> Any:
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget

    candidates = [GPUTarget("cuda", 80, 32), GPUTarget("hip", "gfx942", 64)]
    return next(t for t in candidates if any(b.compiler.supports_target(t) for b in backends.values()))


def _frames_of(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _hidden_folders(triton: ModuleType) -> tuple[str, ...]:
    """Return the prefixes of files that are nobody's launch site: Triton, torch, the standard library, this package."""
    home = Path(triton.__file__ or "").parent
    hidden = [str(home), str(home.parent / "torch"), str(Path(pytest_jitguard.__file__).parent)]
    paths = sysconfig.get_paths()
    library = Path(paths["stdlib"])
    inside = [str(p) for p in library.iterdir() if p.name not in ("site-packages", "dist-packages")]
    return (*(f"{folder}/" for folder in hidden), *inside, "<")


def _names(src: Any) -> tuple[str, str]:
    """Return (kernel, module): the function's own name, also under autotune and heuristics; a path's stem for IR."""
    if isinstance(src, str):
        return Path(src).stem, ""
    fn = getattr(src, "fn", None)
    while fn is not None and hasattr(fn, "fn"):
        fn = fn.fn
    if fn is None:
        return str(getattr(src, "name", src)), ""
    return str(fn.__name__), str(fn.__module__)


def _normal(value: Any) -> Any:
    return tuple(_normal(item) for item in value) if isinstance(value, (list, tuple)) else value


def _stages(times: Any) -> dict[str, float]:
    """Return seconds by stage; Triton counts microseconds."""
    stages = {"ir_initialization": times.ir_initialization, **dict(times.lowering_stages), "store": times.store_results}
    return {name: microseconds / 1e6 for name, microseconds in stages.items()}


def _new_tuning_key(tuner: Any, known: frozenset[Any]) -> SpecializationKey | None:
    fresh = [key for key in tuner.cache if key not in known]
    return tuning_key(tuner.keys, fresh[0]) if fresh else None
