"""However a test's child is born and however it ends: what it compiled is that test's violation, and no other's."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GuardedRun
from tests.serving.conftest import ServedRun

BORN = Path(__file__).with_name("born.py")

BIRTHS = (
    "fork",
    "spawn",
    "forkserver",
    "subprocess",
    "subprocess -I",
    "other PYTHONPATH",
    "os.fork",
    "os.execv",
    "double fork",
)
ENDS = {
    # how: what becomes of the kernels, by their ending
    "clean": {"": "ok"},
    "exception": {"": "ok"},
    "os._exit": {"": "ok"},
    "killed in a compile": {"": "ok", "_cut": "interrupted"},
    "parent killed": {"": "ok", "_after": "ok"},
}

SUITE = f"""
    import importlib.util, os, sys
    sys.path.insert(0, {str(BORN.parent)!r})
    import born

    BIRTHS, ENDS = {list(BIRTHS)!r}, {list(ENDS)!r}

    def name_of(*parts):
        return "_".join(parts).replace(" ", "").replace(".", "")

    @pytest.mark.jitguard
    @pytest.mark.parametrize("deep", [False, True], ids=["here", "below"])
    @pytest.mark.parametrize("end", ENDS)
    @pytest.mark.parametrize("how", BIRTHS)
    def test_born(how, end, deep):
        born.bear(how, end, name_of(how, end, str(deep)), deep=deep)

    @pytest.mark.jitguard
    def test_alone(): pass
"""


@pytest.fixture
def family(served: ServedRun, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedRun]:
    """A guarded run whose temporary folder has a name short enough for the sockets of a forkserver."""
    with tempfile.TemporaryDirectory(prefix="jg") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield served


def cell(how: str, end: str, deep: bool) -> tuple[str, dict[str, str]]:
    """The test of a cell of the matrix, and what becomes of its kernels."""
    name = "_".join((how, end, str(deep))).replace(" ", "").replace(".", "")
    return f"test_born[{how}-{end}-{'below' if deep else 'here'}]", {f"{name}{k}": v for k, v in ENDS[end].items()}


def events_by_test(report: Any) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for event in report["events"]:
        found.setdefault(str(event["test"]).rpartition("::")[2], {})[event["kernel"]] = event["status"]
    return found


def check(run: GuardedRun, deeps: tuple[bool, ...]) -> None:
    report = run.report
    expected = dict(cell(how, end, deep) for how in BIRTHS for end in ENDS for deep in deeps)
    assert events_by_test(report) == expected
    assert run.verdicts() == {**dict.fromkeys(expected, "violated"), "test_alone": "clean"}
    for name, kernels in expected.items():
        assert {v["kernel"] for v in run.violations(name)} == set(kernels), name
        cut = [v["message"] for v in run.violations(name) if v["kernel"].endswith("_cut")]
        assert all("began to compile and never came to an end" in message for message in cut), name
    assert report["children"]["silent"] == []
    assert report["findings"] == []
    assert not any(process["rejected"] or process["lost"] for process in report["processes"])


def test_every_child_is_seen_in_its_own_test(family: ServedRun) -> None:
    family.suite(SUITE)
    family.run("-q", "-k", "here or alone", timeout=300)
    check(family, (False,))


@pytest.mark.soak
@pytest.mark.parametrize("args", [(), ("-p", "xdist", "-n", "2"), ("-p", "xdist", "-n", "8", "--dist=worksteal")])
def test_every_child_of_a_child_is_seen_in_its_own_test(family: ServedRun, args: tuple[str, ...]) -> None:
    family.suite(SUITE)
    family.run("-q", *args, timeout=600)
    check(family, (False, True))


# -- what cannot report: the census names it, in the right words, and as an error where that was asked for -------------

QUIET = {
    "-S": "subprocess.run([sys.executable, '-S', '-c', 'pass'])",
    "no environment": "subprocess.run([sys.executable, '-c', 'pass'], env={})",
    "death before hello": (
        "subprocess.run([sys.executable, '-c', 'pass'], preexec_fn=lambda: os.kill(os.getpid(), 9))"
    ),
    "another user": "subprocess.run(['/usr/bin/python3', '-c', 'pass'], user=65534)",
}


@pytest.mark.parametrize("how", QUIET)
def test_a_child_that_cannot_report_is_named(how: str, family: ServedRun) -> None:
    if how == "another user" and not another_user_runs_python():
        pytest.skip("needs root, and a Python that others may run")
    family.suite(f"""
        import os, subprocess, sys

        @pytest.mark.jitguard
        def test_quiet(): {QUIET[how]}

        @pytest.mark.jitguard
        def test_loud(): subprocess.run([sys.executable, "-c", "import fakejit; fakejit.launch('k')"], check=True)
    """)
    lenient = family.run("-q")
    assert family.verdicts() == {"test_quiet": "clean", "test_loud": "violated"}
    (silent,) = family.report["children"]["silent"]
    assert (silent["how"], silent["argv"][-2:]) == ("subprocess", ["-c", "pass"])
    assert (family.report["children"]["python"], family.report["children"]["reported"]) == (2, 1)
    lenient.stdout.fnmatch_lines(
        [f"warning: children: 1 of 2 Python processes did not report: *(pid {silent['pid']})*"]
    )
    (finding,) = family.report["findings"]
    assert (finding["name"], finding["severity"]) == ("children", "warning")
    strict = family.run("-q", "-k", "quiet", "--jitguard-children=require")
    assert strict.ret == pytest.ExitCode.TESTS_FAILED
    strict.assert_outcomes(passed=1)
    (finding,) = family.report["findings"]
    assert (finding["name"], finding["severity"]) == ("children", "error")
    assert family.run("-q", "-k", "quiet").ret == 0


def another_user_runs_python() -> bool:
    if os.geteuid() != 0 or not Path("/usr/bin/python3").exists():
        return False
    return subprocess.run(["/usr/bin/python3", "-c", "pass"], user=65534, check=False, cwd="/").returncode == 0
