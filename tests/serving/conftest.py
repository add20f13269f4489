"""Guarded runs against real servers on the fake JIT."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import GuardedRun
from tests.processes.conftest import reporting_python  # noqa: F401 - a fixture

HERE = Path(__file__).parent

PRELUDE = """
import sys, threading
from pytest_jitguard.traffic.requests import Request

COMMAND = [sys.executable, {script!r}, "--port", "{{port}}"]

def ask(kernels=(), **extra):
    return Request(8, extra={{"kernels": list(kernels), **extra}})
"""


class ServedRun(GuardedRun):
    """A guarded run whose suite has `COMMAND`, a server on the fake JIT, and `ask(kernels)`, a request to it."""

    def suite(self, body: str, name: str = "test_suite.py") -> None:
        super().suite(body, name)
        path = self.path / name
        path.write_text(PRELUDE.format(script=str(HERE / "fake_server.py")) + path.read_text())


@pytest.fixture
def served(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, reporting_python: Path) -> ServedRun:  # noqa: F811
    """A guarded run on servers."""
    pytest.importorskip("httpx")
    run = ServedRun(pytester, monkeypatch)
    run.python = str(reporting_python)
    return run
