"""Names that others took before the guard came: those of modules get the hook too, the rest is named."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from armed import Armed, armed

from pytest_jitguard.contract import module_with
from pytest_jitguard.monitors import Tells
from pytest_jitguard.monitors._aliases import Aliases, _found, names_of
from pytest_jitguard.monitors._builds import BuildMonitor
from pytest_jitguard.monitors.wrapping import WrappingMonitor

LIBRARY = "library_of_aliases"
BUILDER = """
from functools import cache

class Lock:
    pass

def build(name):
    return name
"""


class AliasMonitor(WrappingMonitor):
    name: ClassVar[str] = "aliases"
    target: ClassVar[str] = LIBRARY
    tells: ClassVar[Tells] = Tells(identity="the name")
    is_public: ClassVar[bool] = True

    def hook_in(self, module: ModuleType) -> None:
        self.wrap(module, "builder.build", self._build, public=self.is_public)
        self.wrap(module, "builder.Lock", self._lock)
        self.wrap(module, "builder.cache", self._lock)

    def _build(self, build: Callable[..., Any], name: str) -> Any:
        with self.compiling(name):
            return build(name)

    def _lock(self, lock: Callable[..., Any], *args: Any) -> Any:
        return lock(*args)


class PrivateMonitor(AliasMonitor):
    is_public: ClassVar[bool] = False


class LateMonitor(BuildMonitor):
    """Hooks into a module that took the name of another one, when it comes."""

    name: ClassVar[str] = "late"
    target: ClassVar[str] = LIBRARY
    tells: ClassVar[Tells] = Tells(identity="the name")

    def hook_in(self, module: ModuleType) -> None:
        self.wrap(module, "builder.build", self._build)
        self.hook_later(f"{LIBRARY}.late", lambda late: self.wrap(late, "build", self._build))

    def _build(self, build: Callable[..., Any], name: str) -> Any:
        with self.compiling(name):
            return build(name)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    package = tmp_path / LIBRARY
    package.mkdir()
    (package / "__init__.py").write_text("from . import builder, user\n")
    (package / "builder.py").write_text(BUILDER)
    (package / "user.py").write_text("from .builder import build\n")
    (package / "late.py").write_text("from .builder import build\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(sys.modules)
    yield package
    for name in [name for name in sys.modules if name not in before]:
        del sys.modules[name]


def library() -> Any:
    return importlib.import_module(LIBRARY)


def watching(kind: type[WrappingMonitor] = AliasMonitor) -> Any:
    return armed(f"{__name__}:{kind.__name__}")


def compiled(watch: Armed, *builds: Callable[[str], Any]) -> list[str]:
    """Return the events of a build by each name."""
    for number, build in enumerate(builds):
        build(f"kernel_{number}")
    return [event.kernel for event in watch.all_news()]


# -- names of modules --------------------------------------------------------------------------------------------------


def test_a_name_that_was_taken_before_is_seen_once_and_put_back() -> None:
    lib = library()
    caller = module_with(f"from {LIBRARY}.builder import build as make, Lock, cache")
    original, others = lib.builder.build, (caller.Lock, caller.cache)
    with watching() as watch:
        assert (caller.Lock, caller.cache) == others
        assert functools.cache is others[1]
        assert compiled(watch, caller.make, lib.user.build, lib.builder.build) == ["kernel_0", "kernel_1", "kernel_2"]
        assert caller.make is lib.user.build is lib.builder.build is not original
        watch.monitors.prove()
        assert (watch.monitor.state, watch.monitor.detail) == ("armed", "")
    assert caller.make is lib.user.build is lib.builder.build is original


def test_a_module_that_took_ours_meanwhile_has_the_librarys_own_afterwards() -> None:
    lib = library()
    original = lib.builder.build
    with watching() as watch:
        caller = module_with(f"from {LIBRARY}.builder import build")
        assert caller.build is not original
    assert caller.build is lib.builder.build is original
    with watching() as watch:
        assert compiled(watch, caller.build) == ["kernel_0"]
    assert caller.build is original


def test_a_name_that_the_library_took_of_itself_is_seen_when_it_is_imported_later() -> None:
    with watching() as watch:
        lib = library()
        caller = module_with(f"from {LIBRARY}.builder import build")
        assert compiled(watch, lib.user.build, caller.build) == ["kernel_0", "kernel_1"]
    assert lib.user.build is lib.builder.build
    assert lib.user.build.__name__ == "build"


def test_what_somebody_else_put_there_since_stays() -> None:
    lib = library()
    caller: Any = module_with(f"from {LIBRARY}.builder import build")
    with watching():
        caller.build = stranger = lambda name: name
        del lib.user.build
    assert caller.build is stranger
    assert not hasattr(lib.user, "build")


@pytest.mark.parametrize("first", [0, 1])
def test_two_guards_let_go_in_either_order(first: int) -> None:
    lib = library()
    original = lib.builder.build
    watches = [Armed(f"{__name__}:AliasMonitor") for _ in range(2)]
    for watch in watches:
        watch.monitors.arm()
    assert [compiled(watch, lib.user.build) for watch in watches] == [["kernel_0"], ["kernel_0"] * 2]
    watches.pop(first).monitors.disarm()
    assert len(compiled(watches[0], lib.user.build)) == 1 + first  # the first guard heard of the compile before, too
    watches[0].monitors.disarm()
    assert lib.user.build is lib.builder.build is original


def test_a_module_that_is_hooked_into_later_and_has_taken_ours_by_name_is_hooked_once() -> None:
    lib = library()
    original = lib.builder.build
    with watching(LateMonitor) as watch:
        late: Any = importlib.import_module(f"{LIBRARY}.late")
        assert compiled(watch, late.build) == ["kernel_0"]
        late.build = lambda name: name
        watch.monitors.settle()
        assert watch.monitor.state == "blind"
    late.build = original


def test_a_module_that_is_hooked_into_later_gives_its_names_back() -> None:
    lib = library()
    original = lib.builder.build
    with watching(LateMonitor):
        late: Any = importlib.import_module(f"{LIBRARY}.late")
    assert late.build is original


class Lazy(ModuleType):
    """A module that does something when it is looked at."""

    looked_at = False

    def __getattribute__(self, name: str) -> Any:
        Lazy.looked_at = True
        raise RuntimeError(f"{name} of a lazy module")


class Proxy:
    """Passes for a module."""

    __slots__ = ()

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("a proxy was looked at")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} of a proxy")


def test_odd_modules_are_left_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    lib = library()
    lazy = Lazy("lazy")
    names_of(lazy)["build"] = original = lib.builder.build
    for name, module in {"none": None, "lazy": lazy, "proxy": Proxy(), "number": 7}.items():
        monkeypatch.setitem(sys.modules, name, module)
    with watching() as watch:
        assert compiled(watch, names_of(lazy)["build"]) == ["kernel_0"]
        assert watch.monitor.state != "blind"
    assert names_of(lazy)["build"] is original
    assert not Lazy.looked_at


class Restless(dict[str, Any]):
    """The names of a module that another thread adds to."""

    times = 0

    def values(self) -> Any:
        for value in super().values():
            if self.times:
                self.times -= 1
                self[f"new_{self.times}"] = None
            yield value


@pytest.mark.parametrize(("times", "is_found"), [(0, True), (2, True), (1_000, False)])
def test_a_module_that_changes_meanwhile_is_looked_at_again_but_not_for_ever(times: int, is_found: bool) -> None:
    original = object()
    names = Restless(a=None, build=original)
    names.times = times
    assert [name for name, _ in _found(names, {id(original): "ours"})] == ["build"] * is_found


def test_nothing_is_looked_for_where_nothing_was_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_jitguard.monitors._aliases._modules", lambda within: pytest.fail("looked"))
    Aliases().replace()


# -- what cannot be replaced -------------------------------------------------------------------------------------------

HOLDERS = {
    "a closure": ("def outer():\n    held = build\n    return lambda name: held(name)\ninner = outer()", "<lambda>"),
    "a default": ("def call(name, held=build):\n    return held(name)", "call"),
    "a keyword's default": ("def call(name, *, held=build):\n    return held(name)", "call"),
    "a class": ("class Kept:\n    held = staticmethod(build)\n    plain = build", "Kept"),
    "an object": ("class Box:\n    pass\nbox = Box()\nbox.held = build", "Box"),
    "a dictionary": ("held = {'build': build}", "a dictionary"),
    "a partial": ("import functools\npart = functools.partial(build, 'x')", "functools.partial"),
}


@pytest.mark.parametrize("how", HOLDERS)
def test_who_else_has_a_public_function_is_named_and_nothing_is_called_proven(how: str) -> None:
    library()
    text, who = HOLDERS[how]
    caller: Any = module_with(f"from {LIBRARY}.builder import build\n{text}\ndel build", "takes_by_name")
    with watching() as watch:
        watch.monitors.prove()
        assert watch.monitor.state == "unproven"
        assert watch.monitor.detail.startswith("build was taken by name before the guard, out of its reach, in ")
        assert who in watch.monitor.detail
        watch.monitors.seen("aliases")
        assert watch.monitor.state == "armed"
        assert "out of its reach" in watch.monitor.detail
    assert caller


def test_a_module_that_was_taken_out_of_sys_modules_is_named() -> None:
    library()
    caller = module_with(f"from {LIBRARY}.builder import build", "gone")
    del sys.modules["gone"]
    with watching() as watch:
        assert "a module gone that is not in sys.modules" in watch.monitor.detail
    assert caller


def test_a_process_that_does_not_let_itself_be_looked_through_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def complain(ours: Any) -> list[str]:
        raise RuntimeError("leave me alone")

    library()
    monkeypatch.setattr("pytest_jitguard.monitors._wrapping.holders", complain)
    with watching() as watch:
        watch.monitors.prove()
        assert watch.monitor.state == "unproven"
        assert watch.monitor.detail.endswith("was not found out: RuntimeError: leave me alone")


def test_of_other_functions_nothing_is_said() -> None:
    library()
    caller = module_with(f"from {LIBRARY}.builder import build\ndef call(held=build): pass\ndel build")
    with watching(PrivateMonitor) as watch:
        watch.monitors.prove()
        assert (watch.monitor.state, watch.monitor.detail) == ("armed", "")
    assert caller


class BlindMonitor(AliasMonitor):
    def hook_in(self, module: ModuleType) -> None:
        super().hook_in(module)
        self.blind("part of it is gone")


def test_why_a_monitor_is_blind_is_not_talked_over() -> None:
    library()
    caller = module_with(f"from {LIBRARY}.builder import build\ndef call(held=build): pass\ndel build")
    with watching(BlindMonitor) as watch:
        assert (watch.monitor.state, watch.monitor.detail) == ("blind", "part of it is gone")
    assert caller


def test_a_second_guard_is_no_holder() -> None:
    library()
    with watching(), watching() as watch:
        watch.monitors.prove()
        assert (watch.monitor.state, watch.monitor.detail) == ("armed", "")
