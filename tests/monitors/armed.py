"""One monitor armed in this process, as a guard arms it, for as long as a test looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pytest_jitguard.core.events import CompileEvent, topmost
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet


class Armed:
    """A recorder and the monitors that report to it."""

    def __init__(self, *paths: str) -> None:
        self.records: list[Any] = []
        self.recorder = Recorder("image", self.records.append)
        self.monitors = MonitorSet(list(paths), self.recorder)
        self.monitor = self.monitors.monitors[0]
        self._told = 0

    def news(self) -> list[CompileEvent]:
        """End a phase and return its events, parts left out."""
        return topmost(self.all_news())

    def all_news(self) -> list[CompileEvent]:
        """End a phase and return its events, parts as well."""
        self.monitors.settle()
        fresh, self._told = self.recorder.events[self._told :], len(self.recorder.events)
        return fresh


@contextmanager
def armed(*paths: str) -> Iterator[Armed]:
    """Arm monitors of already imported libraries, and disarm them again."""
    watch = Armed(*paths)
    watch.monitors.arm()
    try:
        yield watch
    finally:
        watch.monitors.disarm()
