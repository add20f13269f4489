"""What tests of the glue share: a pytest run in a process of its own, with the guard and a fake JIT."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FAKEJIT = Path(__file__).parent / "fakejit"


class GuardedRun:
    """Runs pytest on a small suite in a subprocess, and reads back what the guard wrote."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pytester = pytester
        self.path = pytester.path
        for name in list(os.environ):
            if name.startswith(("JITGUARD", "TRITON", "PYTEST_ADDOPTS", "PYTEST_XDIST")):
                monkeypatch.delenv(name)
        for name in ("CI", "BUILD_NUMBER", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
            monkeypatch.delenv(name, raising=False)  # pytest words its summary by them, and so do we
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(FAKEJIT), os.environ.get("PYTHONPATH", "")]))
        monkeypatch.setenv("FAKEJIT_CACHE", "")
        (self.path / "tmp").mkdir()
        monkeypatch.setenv("TMPDIR", str(self.path / "tmp"))
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        monkeypatch.setenv("NO_COLOR", "1")
        self.python = sys.executable
        self.plugins = ["-p", "pytest_jitguard.plugin"]
        self.args: tuple[str, ...] = ()

    def suite(self, body: str, name: str = "test_suite.py") -> None:
        """Write a test module that has fakejit, pytest and time at hand."""
        self.pytester.makepyfile(**{name.removesuffix(".py"): "import fakejit, pytest, time\n" + _dedent(body)})

    def run(self, *args: str, on: bool = True, fake: bool = True, timeout: float = 120) -> pytest.RunResult:
        """Run pytest; `--jitguard` and the fake JIT's monitor are added unless switched off."""
        ours = ["--jitguard", f"--jitguard-json={self.path / 'report.json'}"] if on else []
        ours += ["--jitguard-monitors=fakejit_monitor:FakeMonitor"] if on and fake else []
        command = [self.python, "-m", "pytest", *self.plugins, *ours, *args]
        return self.pytester.run(*command, timeout=timeout)

    @property
    def report(self) -> Any:
        """The JSON report of the last run."""
        return json.loads((self.path / "report.json").read_text())

    def verdicts(self) -> dict[str, str]:
        """Verdicts by the test's own name."""
        return {test["nodeid"].rpartition("::")[2]: test["verdict"] for test in self.report["tests"]}

    def violations(self, name: str) -> list[Any]:
        """The violations of one test."""
        return next(t["violations"] for t in self.report["tests"] if t["nodeid"].endswith(f"::{name}"))


def _dedent(text: str) -> str:
    import textwrap

    return textwrap.dedent(text)


@pytest.fixture
def guarded(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> GuardedRun:
    """A guarded pytest run on the fake JIT."""
    return GuardedRun(pytester, monkeypatch)
