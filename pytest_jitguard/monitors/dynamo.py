"""Watches Dynamo: what `torch.compile` traces and guards, why it does so again, and when it gives up.

Dynamo compiles a frame in `convert_frame._compile` (torch 2.9 to 2.15), on the thread that called the function, and
only on a miss. Wrapped, it tells beginning and end of every attempt with the code and the arguments; what is compiled
below it (Inductor, Triton, a C++ compiler) becomes part of the event. Nothing is registered with Dynamo, so that
`torch._dynamo.reset()` takes nothing away, no lock of Dynamo's is waited for, and overlapping attempts stay apart.

An attempt is an event whatever came of it: with a backend that compiles nothing, or in a function without a tensor
operation, a request waits for the tracing all the same. One that ends in uncompiled code is of the kind `fallback`.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType, ModuleType
from typing import Any, ClassVar

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.keys import Change
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Tells
from pytest_jitguard.monitors._dynamo_cure import advice_on, entry_of
from pytest_jitguard.monitors._dynamo_keys import key_of
from pytest_jitguard.monitors._dynamo_reasons import in_words
from pytest_jitguard.monitors._dynamo_stance import Stance
from pytest_jitguard.monitors._dynamo_state import Resident, dynamic_dims, newly_dynamic
from pytest_jitguard.monitors._wrapping import Compiling, HookGone, WrappingMonitor

_EXPORTING = "export"

_OUR_FRAMES = 4
"""How many frames lie between Dynamo's call of `_compile` and its `_compile`."""


@dataclass
class _Attempt:
    """One call of `_compile`: what it was given, and what was learned while it ran."""

    code: CodeType
    given: Mapping[str, Any]
    guards: Sequence[str] = ()
    limit: str = ""
    dynamic: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, str]:
        """The function's name and its module."""
        name = getattr(self.code, "co_qualname", self.code.co_name)  # Python 3.10 has none
        return str(name), str(self._globals.get("__name__", ""))

    @property
    def locals(self) -> Mapping[str, Any]:
        """The arguments and what else the frame holds before its first instruction."""
        found = self.given.get("locals")
        return found if isinstance(found, Mapping) else {}

    @property
    def _globals(self) -> Mapping[str, Any]:
        found = self.given.get("globals")
        return found if isinstance(found, Mapping) else {}

    @property
    def variants(self) -> int:
        """How many variants of the code there are already."""
        return int(getattr(self.given.get("cache_size"), "num_cache_entries", 0))

    def entry(self) -> str:
        """Return the call that makes a warmup cover this."""
        return entry_of(self.code, self._globals, self.locals)


class DynamoMonitor(WrappingMonitor):
    """The monitor of `torch._dynamo.convert_frame._compile`."""

    name: ClassVar[str] = "dynamo"
    target: ClassVar[str] = "torch._dynamo.convert_frame"
    distribution: ClassVar[str] = "torch"
    tested: ClassVar[str] = ">=2.11,<2.14,!=2.12.*"
    tells: ClassVar[Tells] = Tells(
        identity="module and qualified name of the function whose code is compiled",
        key="arguments by name: dtype, shape and device of tensors, types and values of the rest; grad mode",
        reason="every guard that failed, in words; compiles lost to reset(); the limit that was hit",
        kinds=("compile", "cache_load", "fallback"),
        cache_load=True,
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._local = threading.local()
        self._resident = Resident()
        self._stance = Stance(self._refused)

    # -- hooking in and out --------------------------------------------------------------------------------------------

    def hook_in(self, module: ModuleType) -> None:
        """Wrap `_compile`, and what it asks on the way: which guards failed, and whether there are variants enough."""
        caller = vars(getattr(module, "ConvertFrameAssert", object)).get("__call__")
        if "_compile" not in getattr(getattr(caller, "__code__", None), "co_names", ()):
            raise HookGone("nothing calls torch._dynamo.convert_frame._compile any more")
        self._module = module
        self._resident.watch(module)
        self.wrap(module, "_compile", self._compile)
        for optional, around in (
            ("get_and_maybe_log_recompilation_reasons", self._asked_for_reasons),
            ("exceeds_recompile_limit", self._asked_for_the_limit),
        ):
            if hasattr(module, optional):
                self.wrap(module, optional, around)

    def uninstall(self) -> None:
        """Put everything back, the stance included."""
        self._stance.leave()
        super().uninstall()

    # -- attempts ------------------------------------------------------------------------------------------------------

    @property
    def _attempts(self) -> list[_Attempt]:
        """What the calling thread has under way, the innermost last."""
        found: list[_Attempt] = self._local.__dict__.setdefault("attempts", [])
        return found

    def _compile(self, compile_: Any, *args: Any, **kwargs: Any) -> Any:
        attempt: _Attempt | None = self.guarded("a compile", _attempt_of, compile_, args, kwargs)
        if attempt is None or attempt.given.get(_EXPORTING):
            return compile_(*args, **kwargs)
        if "skip" in kwargs:  # Dynamo cuts its own frames off the stack that it logs: ours are to go with them
            kwargs["skip"] += _OUR_FRAMES
        result, gave_up = self._recorded(attempt, lambda: compile_(*args, **kwargs))
        if gave_up is not None:
            raise gave_up
        return result

    def _recorded(self, attempt: _Attempt, compile_: Callable[[], Any]) -> tuple[Any, Exception | None]:
        """Compile inside of an event; return the result, or the exception by which Dynamo leaves a frame uncompiled."""
        gave_up: Exception | None = None
        result = None
        with self.compiling(*attempt.names) as told:
            self.guarded("the key of a compile", self._describe, attempt, told)
            self._attempts.append(attempt)
            try:
                result = compile_()
            except Exception as error:
                if not self._falls_back(error, attempt):
                    self.guarded("a compile that failed", self._explain, attempt, told)
                    raise
                gave_up = error
            finally:
                self._attempts.remove(attempt)
            self.guarded("a compile", self._conclude, attempt, told, result, gave_up)
        return result, gave_up

    def _describe(self, attempt: _Attempt, told: Compiling) -> None:
        """Look at the arguments before the call: it may change them."""
        told.key = key_of(attempt.code, attempt.locals)
        told.cure = attempt.entry()
        attempt.dynamic = dynamic_dims(attempt.code)

    def _conclude(self, attempt: _Attempt, told: Compiling, result: Any, gave_up: Exception | None) -> None:
        self._explain(attempt, told)
        if gave_up is not None:
            told.kind = "fallback"
            told.reason = told.reason or f"Dynamo cannot compile it: {_first_sentence(gave_up)}"
            told.detail = _AFTER_LIMIT if attempt.limit else _first_sentence(gave_up)
            return
        if getattr(result, "guarded_code", None) is None:
            told.detail = "nothing to compile was found in it"
            return
        self._resident.announce(attempt.code)
        told.detail = newly_dynamic(attempt.dynamic, dynamic_dims(attempt.code))
        parts = self._parts_of(told.event)
        told.stages = {"inductor": sum(part.seconds or 0.0 for part in parts)} if parts else {}
        if parts and all(part.kind == "cache_load" for part in parts):
            told.kind = "cache_load"
        hashes = [part.artifact_hash for part in parts if part.artifact_hash]
        told.artifact_hash = hashes[0] if hashes else None

    def _explain(self, attempt: _Attempt, told: Compiling) -> None:
        why = in_words(attempt.guards)
        if attempt.limit:
            told.reason = f"{attempt.limit} is hit" + (f": {why}" if why else "")
        elif why:
            told.reason = f"a recompile, because {why}"
        elif attempt.variants:
            told.reason = f"the {attempt.variants} variant(s) of its code belong to other objects, or other backends"
        elif self._resident.announced(attempt.code):
            told.reason = "nothing is left of its earlier compiles: reset() was called, or what they guarded is gone"

    def _parts_of(self, event: CompileEvent | None) -> list[CompileEvent]:
        """Return what Inductor did for an event, from the graphs on that it was asked for."""
        parts: list[CompileEvent] = []
        for other in reversed(self.recorder.events):
            if other is event or event is None:
                break
            if other.parent == event.id and other.system == "inductor":
                parts.append(other)
        return parts[::-1]

    def _falls_back(self, error: Exception, attempt: _Attempt) -> bool:
        """Tell whether Dynamo swallows what `_compile` raised and has the frame run uncompiled.

        `ConvertFrame.__call__` does with what a user's code made impossible, unless one graph was asked for.
        """
        exc = sys.modules.get("torch._dynamo.exc")
        box = attempt.given.get("convert_frame_box")
        if attempt.given.get("one_graph") or getattr(box, "error_on_graph_break", None):
            return False
        if isinstance(error, _kinds(exc, "UncapturedHigherOrderOpError", "ResumePrologueTracingError")):
            return False
        config = sys.modules.get("torch._dynamo.config")
        return isinstance(error, _kinds(exc, "Unsupported", "UserError")) or bool(
            getattr(config, "suppress_errors", False)
        )

    # -- what `_compile` asks for --------------------------------------------------------------------------------------

    def _asked_for_reasons(self, ask: Any, *args: Any, **kwargs: Any) -> Any:
        reasons = ask(*args, **kwargs)
        # Through 2.11 the same was asked a second time, about a way of compiling that was not taken.
        if self._attempts and not kwargs.get("skip_logging"):
            self._attempts[-1].guards = tuple(map(str, reasons or ()))
        return reasons

    def _asked_for_the_limit(self, ask: Any, *args: Any, **kwargs: Any) -> Any:
        answer = ask(*args, **kwargs)
        if self._attempts:
            self.guarded("a limit", self._note_limit, self._attempts[-1], answer)
        return answer

    def _note_limit(self, attempt: _Attempt, answer: tuple[bool, str]) -> None:
        exceeded, name = answer
        if exceeded:
            limit = getattr(sys.modules.get("torch._dynamo.config"), name, None)
            attempt.limit = name if limit is None else f"{name} ({limit})"

    # -- what is resident ----------------------------------------------------------------------------------------------

    def resident(self) -> dict[Hashable, str]:
        """Return the entries in Dynamo's cache."""
        return self._resident.entries()

    def reconcile(self) -> None:
        """Every entry came out of one attempt; one more than was announced went unseen."""
        super().reconcile()
        for name in self._resident.unannounced():
            self.blind(f"a compiled variant of {name} was announced by no event")

    def advice(self, changes: Sequence[Change]) -> str:
        """Offer a dynamic dimension where sizes are the only difference."""
        return advice_on(changes)

    # -- refusing ------------------------------------------------------------------------------------------------------

    def refuse(self, on: bool) -> None:
        """Switch the stance `fail_on_recompile` on or off, for all threads; first compiles are refused as well."""
        if on:
            self._stance.take()
        else:
            self._stance.leave()

    def _refused(self, frame: Any, error: Exception) -> None:
        """Record what the stance refused: the program may swallow the exception."""
        code, stack = frame.f_code, sys._getframe(2)
        attempt = _Attempt(code, {"globals": getattr(frame, "f_globals", {}), "locals": frame.f_locals})
        lines = [line.strip() for line in str(error).splitlines()]
        guards = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
        event = self.guarded("a refused compile", self._begin, *attempt.names, "compile", None, None, stack)
        if event is not None:
            why = "refused because of --jitguard-deny=dynamo, which sets the stance fail_on_recompile"
            told = Compiling(detail=why, event=event)
            told.key, told.cure = key_of(code, attempt.locals), attempt.entry()
            told.reason = f"a recompile, because {in_words(guards)}" if guards else ""
            self.guarded("a refused compile", self._end, told, "failed")


_AFTER_LIMIT = "from now on calls that fit no variant run uncompiled, and no event tells of them"


_USUAL = ("code", "globals", "locals", "builtins", "closure", "compiler_fn", "one_graph", "export")
"""The first parameters of `_compile`, the same from torch 2.9 to 2.15."""


def _attempt_of(compile_: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Attempt:
    """Put names to what `_compile` was called with; the later parameters differ between versions."""
    code = getattr(inspect.unwrap(compile_), "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code is not None else ()
    given = {**dict(zip(names if "code" in names else _USUAL, args, strict=False)), **kwargs}
    return _Attempt(given["code"], given)


def _kinds(module: Any, *names: str) -> tuple[type, ...]:
    found = (getattr(module, name, None) for name in names)
    return tuple(kind for kind in found if isinstance(kind, type))


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
