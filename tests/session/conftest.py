"""Where the runs of a test keep their temporary files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import GuardedRun


@pytest.fixture
def temporary(guarded: GuardedRun) -> Path:
    """The folder for temporary files of the runs of a test."""
    return guarded.path / "tmp"
