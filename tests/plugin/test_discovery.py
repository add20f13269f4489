"""Monitors of others: published by an installed distribution, or named by a conftest; in the guard and its children."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from pytest_jitguard.discovery import GROUP, find
from pytest_jitguard.monitors import MonitorError
from tests.conftest import FAKEJIT, GuardedRun
from tests.processes.conftest import reporting_python  # noqa: F401 - a fixture

MONITOR = """
from fakejit_monitor import FakeMonitor

class {kind}(FakeMonitor):
    name = "{name}"
"""
COMPILES = """
import subprocess, sys

@pytest.mark.jitguard
def test_here(): fakejit.launch("here")

@pytest.mark.jitguard
def test_in_a_child():
    subprocess.run([sys.executable, "-c", "import fakejit; fakejit.launch('there')"], check=True)
"""


class Shelf:
    """A folder on the path, with distributions as an installer leaves them: modules, metadata, entry points."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def publish(self, distribution: str, name: str, *, path: str = "", kind: str = "", called: str = "") -> None:
        """Install a distribution with one monitor; `path` is what its entry point says, if not the truth."""
        module = distribution.replace("-", "_")
        kind = kind or "Published"
        (self.folder / f"{module}.py").write_text(MONITOR.format(kind=kind, name=called or name))
        info = self.folder / f"{module}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {path or f'{module}:{kind}'}\n")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    shelf, before = Shelf(tmp_path / "shelf"), set(sys.modules)
    for folder in (FAKEJIT, shelf.folder):
        monkeypatch.syspath_prepend(str(folder))
    yield shelf
    for name in set(sys.modules) - before:
        del sys.modules[name]


# -- the pure part -----------------------------------------------------------------------------------------------------


def test_what_is_published_comes_with_auto(shelf: Shelf) -> None:
    assert find(["auto"]).monitors == ("auto",)
    shelf.publish("mine-jit", "mine")
    assert find(["auto"]).monitors == ("auto", "mine_jit:Published")


def test_a_name_brings_that_one_only(shelf: Shelf) -> None:
    shelf.publish("mine-jit", "mine")
    shelf.publish("other-jit", "other")
    assert find(["mine"]).monitors == ("mine_jit:Published",)
    assert find(["triton", "mine"]).monitors == ("triton", "mine_jit:Published")
    assert find(["triton"]).monitors == ("triton",)


def test_what_is_not_wanted_may_be_broken(shelf: Shelf) -> None:
    shelf.publish("bad-jit", "bad", path="bad_jit:Missing")
    shelf.publish("mine-jit", "mine")
    assert find(["mine"]).monitors == ("mine_jit:Published",)
    assert find(["triton", "mine_jit:Published"]).monitors == ("triton", "mine_jit:Published")


@pytest.mark.parametrize(
    ("published", "says"),
    [
        ({"path": "bad_jit:Missing"}, "'bad' of bad-jit 1.5 is broken: monitor 'bad_jit:Missing' cannot be imported"),
        ({"path": "no_such_module:It"}, "'bad' of bad-jit 1.5 is broken: .*No module named 'no_such_module'"),
        ({"path": "bad_jit:MONITOR"}, "'bad' of bad-jit 1.5 is broken"),
        ({"path": "bad_jit"}, "'bad' of bad-jit 1.5 is 'bad_jit'; expected package.module:Class"),
        ({"called": "good"}, "'bad' of bad-jit 1.5 leads to a monitor that is called 'good'"),
    ],
)
def test_a_broken_one_names_its_distribution_and_the_cure(shelf: Shelf, published: dict[str, str], says: str) -> None:
    shelf.publish("bad-jit", "bad", **published)
    with pytest.raises(MonitorError, match=says) as told:
        find(["auto"])
    assert "uninstall that distribution, or leave it out: --jitguard-monitors" in str(told.value)


@pytest.mark.parametrize("name", ["triton", "auto"])
def test_names_of_ours_are_refused(shelf: Shelf, name: str) -> None:
    shelf.publish("bold-jit", name)
    with pytest.raises(MonitorError, match=f"'{name}' of bold-jit 1.5 has the name of one that comes with"):
        find(["auto"])
    with pytest.raises(MonitorError, match=f"'{name}' of pytest_jitguard_monitors has the name"):
        find(["triton"], [["bold_jit:Published"]])


def test_a_name_is_published_once(shelf: Shelf) -> None:
    shelf.publish("mine-jit", "mine")
    shelf.publish("other-jit", "mine")
    with pytest.raises(MonitorError, match=r"'mine' is published twice, by mine-jit 1\.5 and by other-jit 1\.5"):
        find(["auto"])
    with pytest.raises(MonitorError, match="published twice"):
        find(["mine"])


def test_an_unknown_name_is_told_those_that_there_are(shelf: Shelf) -> None:
    shelf.publish("mine-jit", "mine")
    with pytest.raises(MonitorError, match=r"unknown monitor 'my'; expected auto, .*triton.*, mine, or package"):
        find(["my"])


def test_import_strings_of_a_hook_travel_and_classes_stay(shelf: Shelf) -> None:
    shelf.publish("mine-jit", "mine", path="mine_jit:Published")
    shelf.publish("other-jit", "other")
    kind = import_module("other_jit").Published
    (shelf.folder / "hooked_jit.py").write_text(MONITOR.format(kind="Hooked", name="hooked"))
    found = find(["hooked"], [["hooked_jit:Hooked"], None])
    assert (found.monitors, found.local, found.warnings) == (("hooked_jit:Hooked",), frozenset(), ())
    found = find(["triton", "other"], [kind, ("hooked_jit:Hooked",)])
    assert found.monitors == ("triton", "other_jit:Published")
    assert found.local == {"other_jit:Published"}
    (warning,) = found.warnings
    assert "other_jit:Published was given as a class, and watches only the process of pytest" in warning
    with pytest.raises(MonitorError, match=r"'other' comes from pytest_jitguard_monitors and from other-jit 1\.5"):
        find(["auto"], [kind])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (7, "has 7; expected import strings, package.module:Class, or classes"),
        (["fakejit_monitor"], "is 'fakejit_monitor'; expected package.module:Class"),
        (["no_such_module:It"], "'no_such_module:It' cannot be imported"),
    ],
)
def test_a_hook_that_gives_something_else_is_told(given: object, says: str) -> None:
    with pytest.raises(MonitorError, match=says):
        find(["auto"], [given])


# -- guarded runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(guarded: GuardedRun, reporting_python: Path) -> GuardedRun:  # noqa: F811
    """A guarded run in an environment in which a distribution with a monitor is installed."""
    guarded.python = str(reporting_python)
    site = reporting_python.parent.parent.joinpath("lib").glob("python*/site-packages")
    (next(site) / "shelf.pth").write_text(f"{guarded.path / 'shelf'}\n")
    Shelf(guarded.path / "shelf").publish("mine-jit", "mine")
    guarded.suite(COMPILES)
    return guarded


def roles(run: GuardedRun) -> dict[str, list[tuple[str, str]]]:
    return {
        test["nodeid"].rpartition("::")[2]: [(v["system"], v["kernel"]) for v in test["violations"]]
        for test in run.report["tests"]
    }


BOTH = {"test_here": [("mine", "here")], "test_in_a_child": [("mine", "there")]}


@pytest.mark.parametrize("monitors", ["auto", "mine"])
def test_a_published_monitor_watches_the_guard_and_its_children(published: GuardedRun, monitors: str) -> None:
    published.run(f"--jitguard-monitors={monitors}", fake=False).assert_outcomes(failed=2)
    assert roles(published) == BOTH
    assert published.report["findings"] == []


def test_a_published_monitor_watches_under_xdist(published: GuardedRun) -> None:
    pytest.importorskip("xdist")
    published.run("-p", "xdist", "-n1", fake=False).assert_outcomes(failed=2)
    assert roles(published) == BOTH


def test_a_broken_distribution_ends_the_session_before_the_first_test(published: GuardedRun) -> None:
    (published.path / "shelf" / "mine_jit.py").write_text("import no_such_library\n")
    result = published.run(fake=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--jitguard-monitors: the entry point 'mine' of mine-jit 1.5 is broken: *no_such_l*"])
    left_out = published.run("--jitguard-monitors=fakejit_monitor:FakeMonitor", fake=False)
    left_out.assert_outcomes(failed=2)


def test_a_conftest_names_a_monitor(published: GuardedRun) -> None:
    hook = "def pytest_jitguard_monitors(config):\n    return ['mine_jit:Published']\n"
    (published.path / "conftest.py").write_text(hook)
    next((published.path / "shelf").glob("*.dist-info/entry_points.txt")).unlink()
    published.run(fake=False).assert_outcomes(failed=2)
    assert roles(published) == BOTH
    published.run(on=False).assert_outcomes(passed=2)


def test_a_class_of_a_conftest_watches_pytest_only_and_is_warned_of(published: GuardedRun) -> None:
    hook = "def pytest_jitguard_monitors(config):\n    return [Published]\n"
    (published.path / "conftest.py").write_text(f"from mine_jit import Published\n{hook}")
    next((published.path / "shelf").glob("*.dist-info/entry_points.txt")).unlink()
    result = published.run(fake=False)
    result.assert_outcomes(failed=1, passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*jitguard: the monitor mine_jit:Published was given as a class, and watches only*"])
    assert roles(published)["test_in_a_child"] == []
