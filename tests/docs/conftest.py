"""Guarded runs of what the documentation shows, with the real Triton on the offline target."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import GuardedRun
from tests.docs.pages import blocks, page
from tests.processes.conftest import reporting_python  # noqa: F401 - a fixture


@pytest.fixture
def tour(guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch) -> GuardedRun:
    """A guarded run beside the two files of the README's tour."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(guarded.path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    serving, tests = blocks(page("README.md"), "python", "## A tour")[:2]
    (guarded.path / "serving.py").write_text(serving)
    (guarded.path / "test_serving.py").write_text(tests)
    return guarded


@pytest.fixture
def toured(tour: GuardedRun, reporting_python: Path) -> GuardedRun:  # noqa: F811
    """The same, where children report as they do where we are installed."""
    tour.python = str(reporting_python)
    return tour
