"""What monitors share that wrap the functions of a library which only misses reach: events, liveness, failures."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType, ModuleType
from typing import Any, NamedTuple

from pytest_jitguard.core.events import CompileEvent, Launch
from pytest_jitguard.core.keys import SpecializationKey
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Monitor
from pytest_jitguard.monitors._aliases import Aliases, holders
from pytest_jitguard.monitors._frames import hidden_folders, stack_of
from pytest_jitguard.monitors._reach import leads_to
from pytest_jitguard.patching import PatchSet, is_initialising

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""CuTe colours its messages."""


class HookGone(LookupError):
    """The library has no such function any more: its monitor is blind."""


@dataclass
class Compiling:
    """What is learned of a compile while it runs; `WrappingMonitor.compiling` records it at the end.

    Empty fields leave what the beginning said. Meanings are those of `CompileEvent`.
    """

    kind: str = ""
    kernel: str = ""
    module: str = ""
    key: SpecializationKey | None = None
    artifact_hash: str | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    detail: str = ""
    cure: str = ""
    reason: str = ""
    event: CompileEvent | None = None


class _Hook(NamedTuple):
    owner: Any
    name: str
    ours: Any
    around: Callable[..., Any]


class WrappingMonitor(Monitor):
    """A monitor by replaced functions. Subclasses implement `hook_in`, which calls `wrap`.

    Alive means reached: whoever replaced a function after us must pass calls on to us. That is looked at in `prove` and
    `reconcile`; a version that was not tested stays `unproven` until its first event.

    Other modules that took a function by name before us get ours, too (see `Aliases`).
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._patches = PatchSet()
        self._hooks: list[_Hook] = []
        self._hidden: tuple[str, ...] = ()
        self._aliases = Aliases()
        self._public: list[Any] = []
        self._beyond = ""

    def hook_in(self, module: ModuleType) -> None:
        """Wrap what there is to wrap in the module that was waited for."""
        raise NotImplementedError

    def install(self, module: ModuleType) -> None:
        """Take hold of the library; all of it, or nothing."""
        library = sys.modules.get(module.__name__.partition(".")[0], module)
        mine = (getattr(sys.modules.get(kind.__module__), "__file__", None) for kind in type(self).__mro__)
        self._hidden = (*hidden_folders(library), *filter(None, mine))
        try:
            self.hook_in(module)
            if self.replace_names(module):
                self._look_for_holders()
        except BaseException:
            self.uninstall()
            raise

    def replace_names(self, module: ModuleType) -> bool:
        """Replace the names that others took, and tell whether they could: of a library imported now only itself."""
        is_new = is_initialising(module.__name__)
        self._aliases.replace(within=module.__name__.partition(".")[0] if is_new else "")
        return not is_new

    def _look_for_holders(self) -> None:
        self._beyond = "; ".join(filter(None, map(self._out_of_reach, self._public)))
        if self.state != "blind":
            self.detail = "; ".join(filter(None, (self.detail, self._beyond)))

    def _out_of_reach(self, ours: Any) -> str:
        try:
            found = ", ".join(holders(ours))
        except Exception as error:  # noqa: BLE001 - what is in a process may answer as it likes
            return f"who took {ours.__name__} by name before the guard was not found out: {_first_line(error)}"
        return f"{ours.__name__} was taken by name before the guard, out of its reach, in {found}" if found else ""

    def untested(self) -> str:
        """Say what is not proven by a look at the hooks: an unknown version, and holders of what was replaced."""
        return "; ".join(filter(None, (super().untested(), self._beyond)))

    def uninstall(self) -> None:
        """Put back every function that is still ours; one below a stranger's wrapper only passes calls on."""
        self._hooks.clear()
        self._public.clear()
        self._aliases.put_back()
        self._patches.undo()

    def wrap(self, owner: Any, path: str, around: Callable[..., Any], *, public: bool = False) -> None:
        """Replace `owner.path`, with dots for attributes of attributes, by `around(original, *args, **kwargs)`.

        Static and class methods stay what they are. What a module of the library took from another one is wrapped once.
        Of a `public` function it is told who had it before us and cannot be given ours; that look takes a moment.
        HookGone if there is no such function.
        """
        *outer, name = path.split(".")
        for step in outer:
            owner = getattr(owner, step, None)
        found = getattr(owner, name, None)
        if not callable(found):
            raise HookGone(f"there is no {path} in {self.target} {self.version}".rstrip())
        self._hooks.append(_Hook(owner, name, self._wrapped(owner, name, found, around), around))
        if public:
            self._public.append(self._hooks[-1].ours)

    def _wrapped(self, owner: Any, name: str, found: Any, around: Callable[..., Any]) -> Any:
        if any(hook.ours is found and hook.around == around for hook in self._hooks):
            self._aliases.adopt(owner, name, found)
            return found
        ours = self._patches.wrap(owner, name, around)
        self._aliases.want(owner, found, ours)
        return ours

    # -- liveness ------------------------------------------------------------------------------------------------------

    def prove(self) -> None:
        """Look whether every hook is still reached."""
        self.reconcile()
        if self.state == "unproven" and not self.untested():
            self.state, self.detail = "armed", ""

    def reconcile(self) -> None:
        """Look whether every hook is still reached. One that somebody wrapped is; one that is gone makes us blind."""
        self._aliases.replace()
        for hook in self._hooks:
            if not leads_to(getattr(hook.owner, hook.name, None), hook.ours):
                owner = getattr(hook.owner, "__name__", hook.owner)
                self.blind(f"{owner}.{hook.name} was replaced by something that does not call what it replaced")

    def guarded(self, what: str, action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call something of ours from inside the library: what goes wrong there makes us blind, not the user fail."""
        try:
            return action(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - raising here would fail the user's compile
            self.blind(f"{what} could not be recorded: {type(error).__name__}: {error}")
            return None

    # -- events --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def compiling(
        self,
        kernel: str,
        module: str = "",
        *,
        kind: str = "compile",
        launch: Launch | None = None,
        started: float | None = None,
        frame: FrameType | None = None,
        reason: str = "",
    ) -> Iterator[Compiling]:
        """Record what runs in the block as one event, with whatever else begins on this thread as its parts.

        The beginning is written before the block, with the `reason` if it is known by then. `frame` is where the launch
        site is looked for, outwards and past the files of monitors: by default the function that holds the block. An
        exception ends the event as failed, and goes on.
        """
        told = Compiling()
        caller = frame or sys._getframe(2)
        beginning = (kernel, module, kind, launch, started, caller)
        told.event = self.guarded("the beginning of a compile", self._begin, *beginning, reason)
        del frame, caller, beginning  # a frame that is kept keeps its locals
        if told.event is None:
            yield told
            return
        try:
            with self.recorder.inside(told.event):
                yield told
        except BaseException as error:
            told.detail = told.detail or _first_line(error)
            self.guarded("a compile that failed", self._end, told, "failed")
            raise
        self.guarded("a compile", self._end, told, "ok")
        self.recorder.finished(told.event)

    def _begin(
        self,
        kernel: str,
        module: str,
        kind: str,
        launch: Launch | None,
        started: float | None,
        frame: FrameType,
        reason: str = "",
    ) -> CompileEvent:
        return self.recorder.begin(
            self.name,
            kernel,
            module,
            kind=kind,
            launch=launch,
            started=started,
            stack=stack_of(frame, self._hidden_folders()),
            reason=reason,
        )

    def _hidden_folders(self) -> tuple[str, ...]:
        """Return the folders whose code is nobody's launch site."""
        return self._hidden

    def _end(self, told: Compiling, status: str) -> None:
        assert told.event is not None
        learned = {name: value for name, value in vars(told).items() if name != "event" and value}
        self.recorder.end(told.event, status=status, **learned)

    def record(
        self,
        kernel: str,
        module: str = "",
        *,
        kind: str,
        started: float,
        ended: float | None = None,
        launch: Launch | None = None,
        frame: FrameType | None = None,
        **learned: Any,
    ) -> CompileEvent | None:
        """Record an event that is over already; `learned` is what `Recorder.end` takes."""
        event: CompileEvent | None = self.guarded(
            "an event", self._begin, kernel, module, kind, launch, started, frame or sys._getframe(1)
        )
        if event is not None:
            self.guarded("an event", self.recorder.end, event, ended=ended, **learned)
        return event


def _first_line(error: BaseException) -> str:
    lines = _COLOUR.sub("", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
