"""Hooks that conftests and plug-ins may implement while the guard is on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from pytest_jitguard.monitors import Monitor


def pytest_jitguard_monitors(config: pytest.Config) -> Sequence[str | type[Monitor]] | None:
    """Return monitors of your own, as import strings: `["package.module:Class"]`.

    Import strings travel to child processes. A class watches only the process of pytest, and a warning says so. Called
    once, in each process that runs tests, before any test is collected. `docs/monitors.md` shows how to write one.
    """
