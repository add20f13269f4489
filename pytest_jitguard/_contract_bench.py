"""What the checks of a contract stand on: a monitor armed in this process, its hook points, ways to disturb them."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import pytest_jitguard
from pytest_jitguard._contract_process import Broken
from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent, topmost
from pytest_jitguard.core.kinds import FAILING_KINDS
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Monitor, MonitorSet, load
from pytest_jitguard.patching import PatchSet

if TYPE_CHECKING:
    from pytest_jitguard.contract import MonitorContract

ABSENT = object()


def expect(holds: object, otherwise: str) -> None:
    """Raise Broken unless something holds."""
    if not holds:
        raise Broken(otherwise)


@dataclass(frozen=True)
class HookPoint:
    """An attribute that the monitor replaces, and what its owner held there before."""

    owner: Any
    name: str
    before: Any
    """What the owner itself held, ABSENT if it inherits the attribute."""

    @property
    def original(self) -> Any:
        """What was found there, inherited or not."""
        return self._inherited() if self.before is ABSENT else self.before

    def _inherited(self) -> Any:
        kinds = self.owner.__mro__ if isinstance(self.owner, type) else type(self.owner).__mro__
        return next((vars(kind)[self.name] for kind in kinds if self.name in vars(kind)), ABSENT)

    def __str__(self) -> str:
        return f"{getattr(self.owner, '__name__', type(self.owner).__name__)}.{self.name}"

    @property
    def now(self) -> Any:
        """What the owner itself holds there now."""
        return vars(self.owner).get(self.name, ABSENT)

    @property
    def is_function(self) -> bool:
        """Tell whether something can be put around it."""
        return callable(_function_of(self.original))

    def put(self, value: Any) -> None:
        """Set the attribute, or remove it."""
        if value is ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, value)

    def surround(self, inner: Any, around: Callable[..., Any]) -> None:
        """Put a stranger's function there that calls `around(inner function, ...)`, static or not as it was."""
        kind = type(inner) if isinstance(inner, (staticmethod, classmethod)) else None
        outer = _stranger(_function_of(inner), around)
        setattr(self.owner, self.name, kind(outer) if kind else outer)


def _stranger(function: Any, around: Callable[..., Any]) -> Callable[..., Any]:
    def stranger(*args: Any, **kwargs: Any) -> Any:
        return around(function, *args, **kwargs)

    return stranger


def passing_on(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Do what a polite stranger does."""
    return function(*args, **kwargs)


def _function_of(raw: Any) -> Any:
    return raw.__func__ if isinstance(raw, (staticmethod, classmethod)) else raw


@dataclass
class Told:
    """A record that reached the sink, and when."""

    moment: float
    record: Mapping[str, Any]


@dataclass
class Bench:
    """One set with the one monitor, as a guard arms it; `told` is what came to the sink."""

    subject: MonitorContract
    told: list[Told] = field(default_factory=list)
    refuse: Callable[[Mapping[str, Any]], None] = lambda record: None
    hooks: list[HookPoint] = field(default_factory=list)
    _known: int = 0

    def __post_init__(self) -> None:
        self.recorder = Recorder("contract", self._sink)
        name = self.subject.monitor
        self.monitors = MonitorSet([name if isinstance(name, str) else _path_of(name)], self.recorder)
        (self.monitor,) = self.monitors.monitors

    def _sink(self, record: Mapping[str, Any]) -> None:
        self.told.append(Told(monotonic(), record))
        self.refuse(record)

    def arm(self) -> Bench:
        """Arm as a guard does, and note which attributes get replaced."""
        with _noting() as hooks:
            self.monitors.arm()
        self.hooks = hooks
        return self

    def disarm(self) -> None:
        """Take every hook out."""
        self.monitors.disarm()

    @property
    def blind(self) -> bool:
        """Tell whether the monitor calls itself blind."""
        return self.monitor.state == "blind"

    def news(self) -> list[CompileEvent]:
        """Return what a request would have waited for since the last call, parts left out; a phase ends here."""
        self.monitors.settle()
        fresh, self._known = self.recorder.events[self._known :], len(self.recorder.events)
        return [event for event in topmost(fresh) if event.kind in FAILING_KINDS]

    def compile(self) -> list[CompileEvent]:
        """Compile something new and return its events."""
        self.news()
        self.subject.compile_new()
        return self.news()

    def look(self) -> None:
        """Do what a guard does at the end of each phase, canaries included."""
        self.monitors.settle()
        self.monitors.prove()
        self.monitors.settle()

    def expect_one(self, when: str) -> CompileEvent:
        """Compile something new, of which there must be exactly one event, and nobody may be blind."""
        found = self.compile()
        expect(len(found) == 1, f"{when}: {_listed(found)} instead of one event; {self.standing}")
        expect(not self.blind, f"{when}: the compile was seen, and yet the monitor is called blind; {self.standing}")
        return found[0]

    def expect_seen_or_blind(self, when: str) -> str:
        """Compile something new: the monitor must see it, or be called blind where no canary is sent."""
        found = self.compile()
        if self.blind:
            return "blind"
        if not found:
            self.look()
            late = " (only its canary finds out, and children send none)" if self.blind else ""
            raise Broken(f"{when}: a compile was not seen, and the monitor was not called blind{late}; {self.standing}")
        expect(len(found) == 1, f"{when}: {_listed(found)} instead of one event; {self.standing}")
        self.look()
        return "seen"

    @property
    def standing(self) -> str:
        """How the monitor stands, in words."""
        return f"{self.monitor.name} is {self.monitor.state}" + (
            f" ({self.monitor.detail})" * bool(self.monitor.detail)
        )


def rehearsed(subject: MonitorContract) -> list[HookPoint]:
    """Arm and disarm once, to learn the hook points; none is an error, since nothing could be shown then."""
    bench = Bench(subject).arm()
    hooks, state = bench.hooks, bench.standing
    bench.disarm()
    found = [*hooks, *subject.hook_points()]
    expect(
        found,
        f"no hook point was found ({state}): replace attributes through PatchSet, or name them in hook_points()",
    )
    return found


def _listed(events: list[CompileEvent]) -> str:
    return ", ".join(f"{e.kind} {e.full_name} {e.status}" for e in events) or "no event"


def _path_of(kind: type[Monitor]) -> str:
    return f"{kind.__module__}:{kind.__name__}"


@contextlib.contextmanager
def _noting() -> Iterator[list[HookPoint]]:
    """Note what patch sets replace meanwhile."""
    hooks: list[HookPoint] = []
    patches = PatchSet()

    def note(method: Any, self: Any, owner: Any, name: str, value: Any) -> Any:
        if self is not patches and all((h.owner, h.name) != (owner, name) for h in hooks):
            hooks.append(HookPoint(owner, name, dict(vars(owner)).get(name, ABSENT)))
        return method(self, owner, name, value)

    patches.wrap(PatchSet, "replace", note)
    patches.wrap(PatchSet, "wrap", note)
    try:
        yield hooks
    finally:
        patches.undo()


# -- frames ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def counting_frames(subject: MonitorContract) -> Iterator[list[str]]:
    """Collect the Python functions of ours, and of the monitor's own file, that get called meanwhile."""
    ours, own = f"{Path(pytest_jitguard.__file__).parent}/", _files_of(subject)
    apart = (f"{ours}_contract_", f"{ours}offline/")  # the offline target stands in for the driver: it is no monitor
    called: list[str] = []

    def count(frame: FrameType, what: str, argument: object) -> None:
        file = frame.f_code.co_filename
        if what == "call" and (file.startswith(ours) or file in own) and not file.startswith(apart):
            called.append(f"{file}:{frame.f_code.co_name}")

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        yield called
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _files_of(subject: MonitorContract) -> set[str]:
    files = {str(getattr(sys.modules[name], "__file__", "")) for name in own_modules(subject)}
    return files - {str(getattr(sys.modules[type(subject).__module__], "__file__", ""))}


def own_modules(subject: MonitorContract) -> set[str]:
    """Return the modules in which the monitor is written."""
    return {kind.__module__ for kind in monitor_class(subject).__mro__ if issubclass(kind, Monitor)}


def monitor_class(subject: MonitorContract) -> type[Monitor]:
    """Return the class of the monitor under contract."""
    return load(subject.monitor) if isinstance(subject.monitor, str) else subject.monitor


# -- a newer version ---------------------------------------------------------------------------------------------------


def rename(hook: HookPoint) -> None:
    """Rename an attribute as a newer version of the library would: where it is defined, and wherever it is used."""
    value, new = hook.now, f"{hook.name}_of_a_newer_version"
    delattr(hook.owner, hook.name)
    setattr(hook.owner, new, value)
    for function in list(_users(hook)):
        function.__code__ = _renamed(function.__code__, hook.name, new)


def _users(hook: HookPoint) -> Iterator[FunctionType]:
    home = hook.owner if isinstance(hook.owner, ModuleType) else sys.modules.get(getattr(hook.owner, "__module__", ""))
    top = str(getattr(home, "__name__", "")).partition(".")[0]
    for function in [thing for thing in gc.get_objects() if type(thing) is FunctionType]:
        names = set(_names(function.__code__))
        within = function.__globals__.get("__name__", "").partition(".")[0] == top
        if hook.name in names and within and _means(function, hook.owner, home, names):
            yield function


def _means(function: FunctionType, owner: Any, home: Any, names: set[str]) -> bool:
    given = function.__globals__
    return given is getattr(home, "__dict__", None) or any(given.get(name) is owner for name in names)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _renamed(code: CodeType, old: str, new: str) -> CodeType:
    inner = tuple(_renamed(c, old, new) if isinstance(c, CodeType) else c for c in code.co_consts)
    return code.replace(co_names=tuple(new if name == old else name for name in code.co_names), co_consts=inner)
