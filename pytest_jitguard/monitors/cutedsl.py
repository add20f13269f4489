"""Watches the CuTe DSL: what its compiler compiles, and what it loads from its file cache or from object files."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Hashable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, ClassVar, NamedTuple

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.keys import Change, SpecializationKey
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Tells
from pytest_jitguard.monitors._cutedsl_callers import Caller, cached_by, program_above
from pytest_jitguard.monitors._cutedsl_keys import Asked, Named, advice, named, target_of
from pytest_jitguard.monitors._wrapping import Compiling, WrappingMonitor

_CACHELESS = "cute.compile caches nothing, and its arguments look the same as before: keep what it returned"
_OTHER_PROGRAM = (
    "its arguments look the same as before, but the traced program is another one: "
    "it reads a global, a closure or an attribute that changed"
)


@dataclass(eq=False)
class _Episode:
    """One compile under way on one thread, seen by up to three hooks."""

    told: Compiling
    started: float
    caller: Caller | None = None
    taken: bool = False
    compiled: bool = False


class _Token(NamedTuple):
    """A program in the cache of one of the DSLs."""

    dsl: str
    hash: str


class CuteDslMonitor(WrappingMonitor):
    """Hooks sit where only misses pass: `cute.compile` has no cache, a direct call of `@cute.jit` looks one up before.

    `CompileCallable._compile` spans a `cute.compile`, tracing included; `BaseDSL.compile_and_cache` spans what a direct
    call's miss does, and knows the arguments; `Compiler.compile` tells a compile from a load of the file cache, and is
    the net below both. A direct call that fails in tracing is not seen: a hit traces as well.
    """

    name: ClassVar[str] = "cutedsl"
    target: ClassVar[str] = "cutlass.cute"  # another package of NVIDIA's is called cutlass, too
    distribution: ClassVar[str] = "nvidia-cutlass-dsl"
    tested: ClassVar[str] = ">=4.3.5,<=4.8.1"
    can_forget: ClassVar[bool] = True
    tells: ClassVar[Tells] = Tells(
        identity="module and function of the @cute.jit program, or quack's function that makes it",
        key="arguments (plain values, DSL and MLIR types), attributes of kernel objects, options, architecture",
        reason="a value that a plain Python number fixes; a second cute.compile; a program that was traced differently",
        kinds=("compile", "cache_load"),
        cache_load=True,
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._thread = threading.local()
        self._announced: dict[str, str] = {}
        self._uncached: set[tuple[Named, SpecializationKey]] = set()
        self._hashes: dict[tuple[Named, SpecializationKey], str | None] = {}
        self._parked: dict[Hashable, tuple[MutableMapping[Any, Any], Any]] = {}

    def hook_in(self, module: ModuleType) -> None:
        """Wrap the three functions that a compile passes, and the one that loads object files."""
        compiler, dsl = (sys.modules.get(f"cutlass.base_dsl.{name}") for name in ("compiler", "dsl"))
        self._announced.update({token.hash: name for token, name in self._residents()})
        self.wrap(compiler, "Compiler.compile", self._compile)
        self.wrap(dsl, "BaseDSL.compile_and_cache", self._compile_and_cache)
        self.wrap(compiler, "CompileCallable._compile", self._cute_compile)
        binary = getattr(
            sys.modules.get("cutlass.base_dsl.export.external_binary_module"), "ExternalBinaryModule", None
        )
        if binary is not None:
            self.wrap(binary, "__init__", self._load)
        else:  # 4.3 has a function only
            self.wrap(sys.modules.get("cutlass.cute.runtime"), "load_module", self._load_module)

    # -- hooks ---------------------------------------------------------------------------------------------------------

    def _cute_compile(self, original: Any, owner: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("compile_to_precompiled_mlir"):  # traces, and compiles nothing
            return original(owner, *args, **kwargs)
        caller = self.guarded("who asked for a compile", cached_by, sys._getframe(1))
        asked = self.guarded("a program's name", named, args[0] if args else kwargs.get("func"))
        name: Named = caller.named if caller else asked or Named()
        frame = caller.frame if caller else None
        with self.compiling(name.kernel, name.module, frame=frame) as told, self._episode(told, caller):
            del frame
            return original(owner, *args, **kwargs)

    def _compile_and_cache(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        asked: Asked | None = self.guarded("a compile's arguments", _asked, args, kwargs, sys._getframe(1))
        around = self._under_way()
        if asked is None:
            return original(*args, **kwargs)
        name: Named = self.guarded("a program's name", named, asked.function) or Named()
        if asked.module_hash:
            self._announced[asked.module_hash] = f"{name.module}.{name.kernel}"
        if around is not None and not around.taken:
            around.taken = True
            self.guarded("a compile's key", self._learn, around, asked)
            return original(*args, **kwargs)
        with self.compiling(name.kernel, name.module) as told, self._episode(told) as episode:
            episode.taken = True
            self.guarded("a compile's key", self._learn, episode, asked)
            result = original(*args, **kwargs)
            if not episode.compiled and not asked.no_cache:
                told.kind = "cache_load"
            return result

    def _compile(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        episode = self._under_way()
        if episode is None or episode.compiled:
            name: Named = self.guarded("a program's name", _name_above, sys._getframe(1)) or Named()
            with self.compiling(name.kernel, name.module):
                return original(*args, **kwargs)
        episode.compiled = True
        started = monotonic()
        result = original(*args, **kwargs)
        episode.told.stages = {**episode.told.stages, "compile": monotonic() - started}
        return result

    def _load(self, original: Any, owner: Any, *args: Any, **kwargs: Any) -> Any:
        with self._loading(str(args[0] if args else kwargs.get("file_path", "")), sys._getframe(1)):
            return original(owner, *args, **kwargs)

    def _load_module(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        with self._loading(str(args[0] if args else kwargs.get("file_path", "")), sys._getframe(1)):
            return original(*args, **kwargs)

    @contextlib.contextmanager
    def _loading(self, path: str, frame: FrameType) -> Iterator[None]:
        """Record the load of an object file that somebody has compiled before."""
        caller: Caller | None = self.guarded("who asked for a load", cached_by, frame)
        name = caller.named if caller else Named(Path(path).stem)
        frame = caller.frame if caller else frame
        with self.compiling(name.kernel, name.module, kind="cache_load", frame=frame) as told:
            told.detail = path
            if caller is not None:
                told.key, told.artifact_hash = caller.key(self._target()), caller.artifact_hash
            del frame
            yield

    # -- what is learned -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _episode(self, told: Compiling, caller: Caller | None = None) -> Iterator[_Episode]:
        """Let the inner hooks of this thread know what they are part of."""
        episodes: list[_Episode] = self._thread.__dict__.setdefault("episodes", [])
        episode = _Episode(told, monotonic(), caller)
        episodes.append(episode)
        try:
            yield episode
        finally:
            episodes.remove(episode)

    def _under_way(self) -> _Episode | None:
        episodes: list[_Episode] = self._thread.__dict__.get("episodes", [])
        return episodes[-1] if episodes else None

    def _learn(self, episode: _Episode, asked: Asked) -> None:
        told = episode.told
        if asked.no_cache:
            told.stages = {**told.stages, "trace": monotonic() - episode.started}
        if episode.caller is not None:
            told.key = episode.caller.key(tuple(target_of(asked.dsl)))
            told.artifact_hash = episode.caller.artifact_hash
            return
        told.key, told.artifact_hash, told.cure = asked.key(), asked.module_hash, asked.cure()
        told.reason = self._reason((named(asked.function), told.key), asked)

    def _reason(self, program: tuple[Named, SpecializationKey], asked: Asked) -> str:
        """Say why the DSL compiles what looks compiled; empty if the key tells it."""
        if asked.no_cache:
            again = program in self._uncached
            self._uncached.add(program)
            return _CACHELESS if again else ""
        before = self._hashes.get(program, asked.module_hash)
        self._hashes[program] = asked.module_hash
        return _OTHER_PROGRAM if before != asked.module_hash else ""

    def _target(self) -> tuple[Any, ...]:
        return next((tuple(target_of(dsl)) for dsl in _dsls()), ())

    # -- what is resident ----------------------------------------------------------------------------------------------

    def resident(self) -> dict[Hashable, str]:
        """Return what direct calls find without compiling; what `cute.compile` returned is its caller's."""
        return dict(self._residents())

    def _residents(self) -> Iterator[tuple[_Token, str]]:
        for dsl in _dsls():
            for hash_, entry in list(_cache_of(dsl).items()):
                function = entry[0] if isinstance(entry, tuple) else entry
                name = self._announced.get(hash_) or getattr(function, "function_name", hash_)
                yield _Token(type(dsl).__name__, hash_), str(name)

    def reconcile(self) -> None:
        """Look whether the hooks are reached, and whether they saw all that is resident."""
        super().reconcile()
        unseen = [name for token, name in self._residents() if token.hash not in self._announced]
        if unseen:
            self.blind(f"{unseen[0]} is resident in the CuTe DSL's cache, and no event announced it")

    def forget(self, tokens: Iterable[Hashable]) -> None:
        """Take programs out of the lookup."""
        caches = {type(dsl).__name__: _cache_of(dsl) for dsl in _dsls()}
        for token in tokens:
            cache = caches.get(token.dsl, {}) if isinstance(token, _Token) else {}
            if isinstance(token, _Token) and token.hash in cache:
                self._parked[token] = (cache, cache.pop(token.hash))

    def recall(self, tokens: Iterable[Hashable]) -> None:
        """Put programs back whose function is still alive; one that was compiled anew stays."""
        for token in tokens:
            if not isinstance(token, _Token) or token not in self._parked:
                continue
            cache, entry = self._parked.pop(token)
            finalizer = entry[1] if isinstance(entry, tuple) else None
            if finalizer is None or finalizer.alive:
                cache.setdefault(token.hash, entry)

    def advice(self, changes: Sequence[Change]) -> str:
        """Say which arguments need not be compiled for each value."""
        return advice(changes)


def _asked(args: tuple[Any, ...], kwargs: dict[str, Any], frame: FrameType) -> Asked:
    return Asked.of(args, kwargs, program_above(frame))


def _name_above(frame: FrameType) -> Named | None:
    program = program_above(frame)
    return None if program is None else named(program)


def _dsls() -> list[Any]:
    """Return the DSL objects of this process, of which there is one for each class."""
    meta = getattr(sys.modules.get("cutlass.base_dsl.dsl"), "DSLSingletonMeta", None)
    return list(getattr(meta, "_instances", {}).values())


def _cache_of(dsl: Any) -> MutableMapping[Any, Any]:
    """Return the in-process cache: a plain dictionary in 4.3, later one in a class that evicts."""
    cache = getattr(dsl, "jit_cache", {})
    found: MutableMapping[Any, Any] = getattr(cache, "_dict", cache)
    return found
