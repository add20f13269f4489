"""The page on monitors of one's own: its example works, keeps the contract, and is caught wherever it is broken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pytest_jitguard.contract import MonitorContract
from tests.conftest import ROOT, GuardedRun
from tests.docs.pages import blocks, files, page

PAGE = page("docs/monitors.md")
FILES = files(PAGE)


@pytest.fixture
def example(guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch) -> GuardedRun:
    monkeypatch.setenv("TINYJIT_CACHE", str(guarded.path / "tinyjit"))
    for name, text in FILES.items():
        (guarded.path / name).write_text(text)
    return guarded


def test_the_example_keeps_the_contract(example: GuardedRun) -> None:
    result = example.run("test_tinyjit_monitor.py", "-rs", on=False)
    outcomes = result.parseoutcomes()
    assert outcomes.keys() <= {"passed", "skipped"}
    assert outcomes["skipped"] == 2
    result.stdout.fnmatch_lines_random(["SKIPPED*: tinyjit has no reset", "SKIPPED*all that can be lost"])


def test_the_example_fails_the_test_that_compiles(example: GuardedRun) -> None:
    command = blocks(PAGE, "console")[0].split()
    result = example.run(*command[4:], fake=False)
    result.assert_outcomes(passed=1, failed=1)
    (violation,) = example.violations("test_request[33]")
    assert (violation["system"], violation["kernel"], violation["kind"]) == ("tinyjit", "kernel", "compile")
    assert "size" in violation["cause"]
    assert "32" in violation["cause"]
    # The library is a file beside the tests, and only that file is nobody's launch site.
    result.stdout.re_match_lines([r"  launched test_serving_tinyjit\.py:\d+:test_request"])


def test_the_conftest_s_hook_finds_it(example: GuardedRun) -> None:
    (hook,) = blocks(PAGE, "py")
    (example.path / "conftest.py").write_text(re.sub(r"^  ", "", hook, flags=re.MULTILINE))
    result = example.run("test_serving_tinyjit.py", fake=False)
    result.assert_outcomes(passed=1, failed=1)


# A change to the example's monitor (a pattern, and what comes in its place), and the test that has to notice it.
COMPILE = "    def compile\\(self.*"
FORGETS_FAILURES = """\\g<0>
        event = self.recorder.begin(self.name, kernel, "tinyjit")
        binary = compile(kernel, size)
        self.recorder.end(event)
        return binary
"""
GUARDED = """    def guarded(self, what, action, *args, **kwargs):
        try:
            return action(*args, **kwargs)
        except OSError:
            {then}

    def resident"""
BROKEN: dict[str, tuple[str, str, str]] = {
    "says nothing of itself": ("    tells = .*", "", "says_what_it_is"),
    "imports its library": ("from pytest_jitguard.monitors import Tells", "import tinyjit\n\\g<0>", "says_what_it_is"),
    "waits for something else": ('target = "tinyjit"', 'target = "json.tool"', "waits_for_the_import"),
    "asks the library before it is there": ('if self.state == "waiting"', "if False", "waits_for_the_import"),
    "has no key": ("told.key = .*", "pass", "one_compile_is_one_event"),
    "names something else": ('compiling\\(kernel, "tinyjit"\\)', 'compiling("it")', "one_compile_is_one_event"),
    "tells it twice": (
        "            return binary",
        "            pass\n        self.record(kernel, kind='compile', started=told.event.started)\n"
        "        return binary",
        "one_compile_is_one_event",
    ),
    "takes loads for compiles": ('told.kind = "cache_load"', "pass", "left_on_disk"),
    "begins when it is over": (
        'with self.compiling\\(kernel, "tinyjit"\\) as told:\n            binary = compile\\(kernel, size\\)',
        "began = __import__('time').monotonic()\n        binary = compile(kernel, size)\n"
        "        with self.compiling(kernel, 'tinyjit', started=began) as told:",
        "begin_is_written_before",
    ),
    "sits on hits": (
        'self.wrap\\(module, "_compile", self.compile\\)',
        '\\g<0>\n        self.wrap(module, "run", lambda run, *args: run(*args))',
        "hits_run_no_python",
    ),
    "tells hits": (
        'self.wrap\\(module, "_compile", self.compile\\)',
        'self.wrap(module, "run", self.compile)',
        "in_process_hit",
    ),
    "changes exceptions": (
        "binary = compile\\(kernel, size\\)",
        "try:\n                binary = compile(kernel, size)\n            except ValueError as error:\n"
        "                raise RuntimeError(str(error)) from error",
        "raises_the_same",
    ),
    "is silent about failures": (
        "with self.compiling",
        "if size < 0:\n            return compile(kernel, size)\n        \\g<0>",
        "raises_the_same",
    ),
    "leaves failures open": (COMPILE, FORGETS_FAILURES, "raises_the_same"),
    "leaves the failures of others open": (COMPILE, FORGETS_FAILURES, "that_it_is_blind[neighbour]"),
    "leaves something behind": (
        "self.announced = set",
        "module.mine = lambda: self\n        \\g<0>",
        "identical_objects",
    ),
    "does not let go below a stranger": (
        "    def resident",
        "    def uninstall(self):\n        hooks = self._hooks\n"
        "        if all(getattr(h.owner, h.name) is h.ours for h in hooks):\n            super().uninstall()\n\n\\g<0>",
        "below_a_stranger",
    ),
    "takes another guard's hook for its own": (
        "self.announced = set",
        "if hasattr(module._compile, '__wrapped__'):\n            return\n        \\g<0>",
        "double_install",
    ),
    "does not wait for the import's end": (
        "    def hook_in",
        "    def __init__(self, recorder):\n        super().__init__(recorder)\n        import sys\n\n"
        "        if 'tinyjit' in sys.modules:\n            self.install(sys.modules['tinyjit'])\n\n\\g<0>",
        "half_imported",
    ),
    "raises what it cannot record": ("    def resident", GUARDED.format(then="raise"), "own_failures_do_not_reach"),
    "hides what it cannot record": (
        "    def resident",
        GUARDED.format(then="return None"),
        "own_failures_do_not_reach",
    ),
    "keeps the mode raise from raising": (
        "self.module = module",
        "\\g<0>\n        self.recorder.finished = lambda event: None",
        "mode_raise_raises_last",
    ),
    "compiles to prove itself, and tells": (
        "    def resident",
        "    def prove(self):\n        super().prove()\n        self.module.CACHE.pop(('canary', 1), None)\n"
        "        self.module.run('canary', 1)\n\n\\g<0>",
        "not_blind_for_nothing",
    ),
    "does not look at what is resident": ("for kernel, size in .*", "for kernel, size in ():", "what_it_missed"),
    "does not look whether it is reached": ("super\\(\\)\\.reconcile\\(\\)", "return", "that_it_is_blind[replaced]"),
    "does not look after a reload": ("super\\(\\)\\.reconcile\\(\\)", "return", "that_it_is_blind[reload]"),
    "takes chained for replaced": (
        "super\\(\\)\\.reconcile\\(\\)",
        "if self.module._compile is not self._hooks[0].ours: self.blind('not on top')",
        "that_it_is_blind[chained]",
    ),
    "takes what is gone for granted": (
        'self.wrap\\(module, "_(\\w+)", .*\\)',
        "hasattr(module, '_\\1') and \\g<0>",
        "hook_point_is_gone",
    ),
    "takes what is renamed for granted": (
        'self.wrap\\(module, "_(\\w+)", .*\\)|super\\(\\)\\.reconcile\\(\\)',
        "hasattr(self.module, '_\\1') and \\g<0>; return",
        "that_it_is_blind[renamed]",
    ),
    "hooks in where names are taken": (
        'self.wrap\\(module, "_compile", self.compile\\)',
        'self.wrap(module, "run", self.compile)\n        self.reconcile = lambda: None',
        "that_it_is_blind[alias]",
    ),
    "knows one thread only": (
        COMPILE,
        "\\g<0>\n        if __import__('threading').current_thread().name != 'MainThread':\n"
        "            self.announced.add((kernel, size))\n            return compile(kernel, size)",
        "several_threads",
    ),
    "knows no older thread": (
        COMPILE,
        "\\g<0>\n        if __import__('threading').current_thread().name != 'MainThread':\n"
        "            self.announced.add((kernel, size))\n            return compile(kernel, size)",
        "that_it_is_blind[thread]",
    ),
    "does not follow forks": (
        COMPILE,
        "\\g<0>\n        if __import__('os').getpid() != self.pid:\n"
        "            self.announced.add((kernel, size))\n            return compile(kernel, size)",
        "that_it_is_blind[fork]",
    ),
    "refuses newer versions": (
        "self.module = module",
        "\\g<0>\n        if self.untested(): self.blind('too new')",
        "that_it_is_blind[newer_version]",
    ),
    "takes earlier compiles for missed ones": ("set\\(module.CACHE\\)", "set()", "that_it_is_blind[imported_before]"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    """What each broken monitor's check came to, all in one run of pytest."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "tinyjit.py").write_text(FILES["tinyjit.py"])
    checks = [_break(how, number, folder) for number, how in enumerate(BROKEN)]
    (folder / "pytest.ini").write_text("[pytest]\n")  # nothing of ours, wherever the folder lies
    options = ["-c", "pytest.ini", "-p", "pytest_jitguard.plugin", "--tb=no", "--junitxml=told.xml"]
    ours = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": ours, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *checks],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    told: dict[str, Counter[str]] = {how: Counter() for how in BROKEN}
    for case in ElementTree.parse(folder / "told.xml").iter("testcase"):
        how = list(BROKEN)[int(case.attrib["classname"].split(".")[0].removeprefix("test_broken_"))]
        told[how].update([child.tag for child in case] or ["passed"])
    return told


def _break(how: str, number: int, folder: Path) -> str:
    """Write a broken monitor and its contract; return the node id of the check that has to notice."""
    old, new, check = BROKEN[how]
    broken, changes = re.subn(old, new, FILES["tinyjit_monitor.py"])
    assert changes, f"the example has no such line: {old}"
    broken = broken.replace("self.module = module", "self.module, self.pid = module, __import__('os').getpid()")
    (folder / f"tinyjit_monitor_{number}.py").write_text(broken)
    contract = FILES["test_tinyjit_monitor.py"].replace("tinyjit_monitor:", f"tinyjit_monitor_{number}:")
    (folder / f"test_broken_{number}.py").write_text(contract)
    name, bracket, way = check.partition("[")
    (test,) = (test for test in dir(MonitorContract) if test.startswith("test_") and name in test)
    return f"test_broken_{number}.py::TestTinyMonitor::{test}{bracket}{way}"


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_monitor_does_not_keep_the_contract(outcomes: dict[str, Counter[str]], how: str) -> None:
    assert outcomes[how]["failure"] >= 1
    assert outcomes[how].keys() <= {"failure", "passed"}
