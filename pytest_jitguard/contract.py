"""The contract that a monitor keeps, as tests: subclass `MonitorContract` in a test module and run pytest.

    class TestMine(MonitorContract):
        monitor = "my_package.monitor:MyMonitor"
        not_there = {"reset": "the library has no reset", "alias": "its compiler is a method"}

        def compile_new(self) -> str:
            my_library.compile(f"kernel_{self.number()}")
            ...

Each check runs in a process of its own, so that nothing that a check breaks is broken for the next one: a fork of a
process that has imported the library, or a process started afresh (`isolation = "spawn"`, for libraries with threads).
`docs/monitors.md` shows a complete example and says what is promised.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import pytest

from pytest_jitguard._contract_bench import ABSENT, HookPoint, monitor_class
from pytest_jitguard._contract_process import NUMBERS, CheckProcess, Origin
from pytest_jitguard.monitors import Monitor

__all__ = ["ABSENT", "WAYS", "HookPoint", "MonitorContract", "module_with"]

WAYS = (
    "renamed",
    "replaced",
    "chained",
    "alias",
    "reset",
    "reload",
    "fork",
    "thread",
    "neighbour",
    "imported_before",
    "newer_version",
)
"""Ways in which a monitor could go blind. In each it must see, or say that it is blind; `chained` may not blind it."""

_OPTIONAL = ("repeat", "fail", "load_from_disk", "alias", "reset", "hide", "sneak_in")
"""Methods that may stay undefined, with a reason in `not_there`."""


class MonitorContract:
    """What the contract needs to know of a monitor. The methods run in the processes of the checks, never in pytest's.

    Required: `monitor`, `compile_new`, `repeat`. What does not exist for a system is declared in `not_there`: name of a
    way (see `WAYS`) or of an optional method, to the reason, which is shown as a skip.
    """

    monitor: ClassVar[str | type[Monitor]]
    """The monitor: `package.module:Class`, or its class."""
    requires: ClassVar[tuple[str, ...]] = ()
    """What must be importable, else everything is skipped. The test module itself must not import the library."""
    isolation: ClassVar[Literal["fork", "spawn"]] = "fork"
    """`fork` costs milliseconds a check; `spawn` imports the library for each, where it does not survive a fork."""
    hits: ClassVar[int] = 1_000
    """How many in-process hits are looked at for frames of ours."""
    threads: ClassVar[int] = 4
    """How many threads compile at once."""
    limit: ClassVar[float] = 120.0
    """Seconds that a check may take."""
    not_there: ClassVar[Mapping[str, str]] = {}

    folder: Path = Path()
    """Scratch folder of all checks of the class, for disk caches."""
    _numbers: Iterator[int] = itertools.count(1)
    _lab: ClassVar[_Laboratory]

    # -- what a monitor's author writes --------------------------------------------------------------------------------

    def environment(self, folder: Path) -> Mapping[str, str]:
        """Return variables of the processes of the checks: where the library keeps its cache, say."""
        return {}

    def library(self) -> ModuleType:
        """Import the library and return the module that the monitor waits for."""
        return importlib.import_module(self.target) if self.target else sys.modules[__name__]

    def prepare(self) -> None:
        """Compile what the library compiles for itself at its first use; called once, before anything is counted."""

    def compile_new(self) -> str:
        """Do one cold compile that was never done before (see `number`), by one call of the library.

        Return what the event's name has to contain. Called on several threads at once as well, each with a copy of
        `self`: what it keeps for `repeat` is its own.
        """
        raise NotImplementedError

    def repeat(self) -> None:
        """Do again what the last `compile_new` did: an in-process hit."""
        raise NotImplementedError

    def fail(self) -> object:
        """Compile something that cannot be compiled; raise what the library raises, or return its error."""
        raise NotImplementedError

    def load_from_disk(self) -> None:
        """Compile one thing, the same in every process, into the library's cache on disk, or load it from there."""
        raise NotImplementedError

    def alias(self) -> Any:
        """Take a function of the library by name, as `from library import compile` does, before the monitor comes.

        Return a function that compiles something new through it. `module_with` makes the module that has the name.
        """
        raise NotImplementedError

    def reset(self) -> None:
        """Call the library's own reset."""
        raise NotImplementedError

    def reload(self) -> None:
        """Import the library's module once more."""
        importlib.reload(sys.modules[self.target])

    def hide(self) -> None:
        """Lose the hook in a way that only this system has: clear its list of listeners, say."""
        raise NotImplementedError

    def sneak_in(self) -> None:
        """Make a variant resident past the hook."""
        raise NotImplementedError

    def hook_points(self) -> Iterable[HookPoint]:
        """Return what the monitor replaces by other means than a `PatchSet`."""
        return ()

    # -- what it may use -----------------------------------------------------------------------------------------------

    @property
    def target(self) -> str:
        """The module that the monitor waits for."""
        return monitor_class(self).target

    def number(self) -> int:
        """Return a number that no check of this class has had, for a kernel that nobody has compiled."""
        return next(self._numbers)

    def count_from(self, first: int) -> None:
        """Begin the numbers of one check."""
        self._numbers = itertools.count(first)

    def bring(self) -> None:
        """Import the library and prepare it."""
        self.library()
        self.prepare()

    # -- the tests -----------------------------------------------------------------------------------------------------

    @pytest.fixture(autouse=True)
    def _laboratory(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
        # Of the class, though not as a fixture of that scope: pytest 9 takes those from class methods only.
        kind, node = type(self), request.node.getparent(pytest.Class)
        for name in kind.requires:
            if not _is_there(name):
                pytest.skip(f"{name} is not installed")
        if "_lab" not in vars(kind):
            kind._lab = _Laboratory(kind, tmp_path_factory.mktemp("contract"))
            node.addfinalizer(kind._leave)

    @classmethod
    def _leave(cls) -> None:
        cls._lab.close()
        del cls._lab

    def _check(self, name: str, **arguments: Any) -> None:
        __tracebackhide__ = True
        told = self._run(name, **arguments)
        if "not there" in told:
            pytest.skip(told["not there"])

    def _run(self, name: str, **arguments: Any) -> dict[str, str]:
        __tracebackhide__ = True
        told = self._lab.run(name, arguments, preloaded=name not in ("declares", "installs"))
        if "broken" in told:
            pytest.fail(f"{name}{arguments or ''}: {told['broken']}", pytrace=False)
        return told

    def _check_each_hook(self, name: str, **arguments: Any) -> None:
        __tracebackhide__ = True
        hooks = self._run("list_hooks")["not there"].splitlines()
        told = [self._run(name, number=number, **arguments) for number in range(len(hooks))]
        if all("not there" in each for each in told):
            pytest.skip("; ".join(dict.fromkeys(each["not there"] for each in told)))

    def _needs(self, name: str) -> None:
        if name in self.not_there:
            pytest.skip(self.not_there[name])
        if name in _OPTIONAL and getattr(type(self), name) is getattr(MonitorContract, name):
            pytest.fail(f"define {name}(), or say in not_there[{name!r}] why it does not exist", pytrace=False)

    def test_says_what_it_is_and_imports_no_library(self) -> None:
        """See `Tells`; the import of the monitor's module must not bring its library."""
        self._check("declares")

    def test_waits_for_the_import_and_sees_the_first_compile(self) -> None:
        """Armed first, imported then."""
        self._needs("import")
        self._check("installs")

    def test_one_compile_is_one_event_with_a_name_and_its_own_seconds(self) -> None:
        """What it tells must be so."""
        self._check("sees_one_compile")

    def test_begin_is_written_before_the_compile_and_end_after(self) -> None:
        """What dies in a compile must have left its beginning."""
        self._check("begins_before_and_ends_after")

    def test_an_in_process_hit_is_no_event(self) -> None:
        """Three hits in a row."""
        self._needs("repeat")
        self._check("ignores_a_hit")

    def test_hits_run_no_python_of_ours(self) -> None:
        """Counted with a profile function."""
        self._needs("repeat")
        self._check("costs_nothing")

    def test_a_compile_that_raises_is_a_failed_event_and_raises_the_same(self) -> None:
        """With the same exception, or the same error returned."""
        self._needs("fail")
        self._check("tells_a_failed_compile")

    def test_what_another_process_left_on_disk_is_a_load(self) -> None:
        """One process compiles and stores, another one loads."""
        self._needs("load_from_disk")
        self._check("tells_a_load_from_disk", step=0)
        self._check("tells_a_load_from_disk", step=1)

    def test_compiles_on_several_threads_are_one_event_each(self) -> None:
        """All at once."""
        self._needs("threads")
        self._check("sees_threads")

    def test_uninstalls_to_the_identical_objects(self) -> None:
        """And sees nothing any more."""
        self._check("uninstalls_without_trace")

    def test_below_a_stranger_it_is_inert_once_uninstalled(self) -> None:
        """It cannot be taken out there, and must only pass on."""
        self._needs("chained")
        self._check("lets_go_below_a_stranger")

    def test_survives_double_install(self) -> None:
        """A guard within a guard, in either order."""
        self._check("survives_double_install")

    def test_leaves_half_imported_modules_alone(self) -> None:
        """Until the import is over."""
        self._needs("half_imported")
        self._check("waits_for_half_imported_modules")

    @pytest.mark.parametrize("record", ["begin", "end"])
    def test_its_own_failures_do_not_reach_the_library(self, record: str) -> None:
        """A disk that is full, say."""
        self._check("keeps_its_failures_to_itself", record=record)

    def test_the_mode_raise_raises_last(self) -> None:
        """So that the library is left as after any compile."""
        self._needs("mode_raise")
        self._check("lets_the_mode_raise_through")

    def test_is_not_blind_for_nothing(self) -> None:
        """No false red."""
        self._check("is_not_blind_for_nothing")

    def test_finds_out_what_it_missed(self) -> None:
        """No false green."""
        self._needs("sneak_in")
        self._check("finds_out_what_it_missed")

    def test_is_blind_where_its_hook_point_is_gone(self) -> None:
        """Each of its hook points is taken away."""
        self._needs("renamed")
        self._check("is_blind_without_its_hook_point")

    def test_is_not_fooled_when_its_own_hook_is_lost(self) -> None:
        """See `hide`."""
        self._needs("hide")
        self._check("hidden")

    @pytest.mark.parametrize("way", WAYS)
    def test_sees_or_says_that_it_is_blind(self, way: str) -> None:
        """In every way that exists; see `WAYS`."""
        self._needs(way)
        if way == "renamed":
            self._check_each_hook("renamed")
        elif way == "replaced":
            self._check_each_hook("replaced")
            self._check_each_hook("put_back")
        elif way == "chained":
            for shape in ("function", "wraps", "object", "partial"):
                with contextlib.suppress(pytest.skip.Exception):
                    self._check_each_hook("chained", shape=shape)
        elif way == "neighbour":
            for position in ("below", "before", "after"):
                self._check_each_hook("neighbour", position=position)
        else:
            self._check(way)


class _Laboratory:
    """The processes in which the checks of one class run."""

    def __init__(self, kind: type[MonitorContract], folder: Path) -> None:
        self._kind, self._folder = kind, folder
        self._numbers = itertools.count(1, NUMBERS)
        self._processes: dict[bool, CheckProcess] = {}

    def run(self, check: str, arguments: dict[str, Any], *, preloaded: bool) -> dict[str, str]:
        """Run one check; see `CheckProcess.run`."""
        process = self._processes.get(preloaded) or self._start(preloaded)
        told = process.run(check, arguments, next(self._numbers), self._kind.limit)
        if self._kind.isolation == "spawn" or "process of the checks" in told.get("broken", ""):
            process.stop()
            self._processes.pop(preloaded, None)
        return told

    def _start(self, preloaded: bool) -> CheckProcess:
        variables = dict(self._kind().environment(self._folder))
        origin, forks = Origin.of(self._kind, self._folder), self._kind.isolation == "fork"
        self._processes[preloaded] = process = CheckProcess(origin, variables, forks=forks, preloaded=preloaded)
        return process

    def close(self) -> None:
        """End the processes."""
        while self._processes:
            self._processes.popitem()[1].stop()


def module_with(text: str, name: str = "imports_by_name") -> ModuleType:
    """Return a module, as an import leaves it, whose text this is: somebody who has names of the library."""
    module = ModuleType(name)
    exec(compile(text, f"{name}.py", "exec"), vars(module))
    sys.modules[name] = module
    return module


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
