"""The entry point: registers names, and imports nothing else of ours until `--jitguard`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pytest_jitguard import hookspecs, options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_jitguard.fixtures import JitGuard
    from pytest_jitguard.serving import ServerFactory

_HELP = ("help", "version")
_DRY_RUNS = (
    *_HELP,
    "collectonly",
    "setupplan",
    "setuponly",
    "showfixtures",
    "show_fixtures_per_test",
    "markers",
    "cacheshow",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the settings."""
    options.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Register the hooks always: a conftest that has one must load with the guard off."""
    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Conftests may import JIT libraries and ask them for GPUs: a cold cache and an offline target stand before."""
    if any(getattr(early_config.known_args_namespace, name, False) for name in _HELP):
        return
    if options.is_enabled(early_config):
        from pytest_jitguard import early

        # Only a variable tells here that this is a worker. A pytest that a worker's test starts has it too, and gets
        # what it lacks when it is configured.
        worker = "PYTEST_XDIST_WORKER" in os.environ
        early.prepare(early_config, options.read_settings(early_config), worker=worker)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers always, for strict marker checks, and the guard only where it is wanted."""
    for line in options.MARKERS:
        config.addinivalue_line("markers", line)
    if any(config.getoption(name, default=False) for name in _HELP):
        return
    if not options.is_enabled(config):
        _warn_of_idle_options(config)
        return
    settings = options.read_settings(config)
    if any(config.getoption(name, default=False) for name in _DRY_RUNS):
        return

    from pytest_jitguard import running

    running.start(config, settings)


def _warn_of_idle_options(config: pytest.Config) -> None:
    """Warn somebody who configures a guard that is not there: a green of this session would prove nothing."""
    idle = options.idle_options(config)
    if idle:
        message = f"jitguard is off, so that {', '.join(idle)} does nothing: add --jitguard"
        config.issue_config_time_warning(pytest.PytestConfigWarning(message), stacklevel=2)


@pytest.fixture
def jitguard(request: pytest.FixtureRequest) -> JitGuard:
    """Say which part of the test is warmup and which is serving; a no-op while the guard is off."""
    from pytest_jitguard import fixtures

    return fixtures.make(request.config)


@pytest.fixture(scope="session")
def jitguard_server(request: pytest.FixtureRequest) -> Iterator[ServerFactory]:
    """Start commands as servers under test; with the guard off they are just servers."""
    from pytest_jitguard import serving

    yield from serving.make(request.config)
