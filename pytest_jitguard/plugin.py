"""The entry point: registers names, and imports nothing else of ours until `--jitguard`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_jitguard import options

if TYPE_CHECKING:
    from pytest_jitguard.fixtures import JitGuard

_DRY_RUNS = (
    "collectonly",
    "setupplan",
    "setuponly",
    "showfixtures",
    "show_fixtures_per_test",
    "markers",
    "help",
    "version",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the settings."""
    options.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers always, for strict marker checks, and the guard only where it is wanted."""
    for line in options.MARKERS:
        config.addinivalue_line("markers", line)
    if not options.is_enabled(config):
        return
    settings = options.read_settings(config)
    if any(config.getoption(name, default=False) for name in _DRY_RUNS):
        return

    from pytest_jitguard import running

    running.start(config, settings)


@pytest.fixture
def jitguard(request: pytest.FixtureRequest) -> JitGuard:
    """Say which part of the test is warmup and which is serving; a no-op while the guard is off."""
    from pytest_jitguard import fixtures

    return fixtures.make(request.config)
