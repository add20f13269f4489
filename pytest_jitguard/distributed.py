"""pytest-xdist: what the controller hands to its workers. Everything comes back through their journals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pytest_jitguard.assemble import Process


class Controller:
    """Hooks of an xdist controller, which runs no test: its workers run the warmup and the guard.

    `say_warmed` is called once, as soon as every worker has come through its warmup.
    """

    def __init__(self, process: Process, say_warmed: Callable[[], None]) -> None:
        self.process = process
        self._say_warmed = say_warmed
        self._warming: set[str] = set()
        self._said = False

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker where this run's journals lie."""
        node.workerinput["jitguard"] = {"folder": str(self.process.folder)}
        self._warming.add(node.gateway.id)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Wait no longer for a worker that is gone."""
        self._is_warm(node)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: Any) -> None:
        """Take a worker that reports a test for warm."""
        self._is_warm(getattr(report, "node", None))

    def _is_warm(self, node: Any) -> None:
        self._warming.discard(getattr(getattr(node, "gateway", None), "id", ""))
        if not self._warming and not self._said:
            self._said = True
            self._say_warmed()


class Worker:
    """Hooks of an xdist worker. `usage_errors` fills up when it finds a mistake in the set-up."""

    def __init__(self, usage_errors: Sequence[str]) -> None:
        self._usage_errors = usage_errors

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self) -> bool | None:
        """Run no test after a usage error. A worker that stopped by itself would end the run with another exit code."""
        return True if self._usage_errors else None
