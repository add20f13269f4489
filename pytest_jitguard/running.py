"""Registers the hooks that a process needs by its role, and takes everything down again."""

from __future__ import annotations

import pytest

from pytest_jitguard.assemble import Process, build
from pytest_jitguard.conclusion import Conclusion, Witness
from pytest_jitguard.core.settings import Settings
from pytest_jitguard.display import Display
from pytest_jitguard.distributed import Controller, Worker
from pytest_jitguard.fixtures import SESSION_KEY
from pytest_jitguard.guard import Guard
from pytest_jitguard.guarding import GUARDING_KEY, Guarding
from pytest_jitguard.warmups import Warmups


def start(config: pytest.Config, settings: Settings) -> None:
    """Switch the guard on for this process."""
    process = build(config, settings)
    display = Display(config, process)
    manager = config.pluginmanager
    if process.role == "xdist controller":
        manager.register(Controller(process, display.say_warmed), "jitguard-controller")
    else:
        _start_guard(config, process, display)
    if process.role != "xdist worker":
        manager.register(display, "jitguard-display")
        # Last, so that its hooks lie around all others: it concludes from what they note at their end.
        manager.register(Conclusion(config, process, display), "jitguard-conclusion")


def _start_guard(config: pytest.Config, process: Process, display: Display) -> None:
    session = process.session
    assert session is not None
    shown = process.role == "pytest"
    warmups = Warmups(process, session, display.progress if shown else lambda text: None)
    guard = Guard(config, process.settings, session, warmups.run, display.say_warmed if shown else lambda: None)
    config.stash[SESSION_KEY] = session
    config.stash[GUARDING_KEY] = Guarding(session, process.inherited, process.folder)
    config.pluginmanager.register(Witness(process), "jitguard-witness")
    config.pluginmanager.register(guard, "jitguard-guard")
    if process.role == "xdist worker":
        config.pluginmanager.register(Worker(guard.usage_errors), "jitguard-worker")
