"""pytest-xdist: what the controller hands to its workers. Everything comes back through their journals."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_jitguard.assemble import Process


class Controller:
    """Hooks of an xdist controller, which runs no test: its workers run the warmup and the guard."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker where this run's journals lie."""
        node.workerinput["jitguard"] = {"folder": str(self.process.folder)}
