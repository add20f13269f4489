"""What a person sees in the terminal: header, warmup progress, violations as they happen, the summary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from pytest_jitguard.assemble import Process
from pytest_jitguard.reporters import model, terminal
from pytest_jitguard.reporters.terminal import Line


class Display:
    """Terminal hooks of the process that owns the terminal: pytest itself or the xdist controller."""

    def __init__(self, config: pytest.Config, process: Process) -> None:
        self.config = config
        self.process = process
        self.report: model.RunReport | None = None
        self.problems: list[str] = []
        self._printed: set[tuple[str, str]] = set()

    @property
    def _terminal(self) -> Any:
        """The terminal reporter, None under `-p no:terminal`."""
        return self.config.pluginmanager.get_plugin("terminalreporter")

    def pytest_report_header(self) -> list[str]:
        """Say in one line that the guard is on, and how."""
        journal = f"; journal in {self.process.folder}"
        return [f"{text}{journal}" for text, _ in terminal.header(self.process.settings)]

    def say(self, lines: Iterable[Line]) -> None:
        """Write lines now, wherever pytest's own progress stands."""
        if self._terminal is None or self.config.get_verbosity() < -1:
            return
        self._terminal.ensure_newline()
        if self._terminal._tw.width_of_current_line:
            self._terminal.line("")  # xdist writes letters past the reporter's own count
        for text, markup in lines:
            self._terminal.write_line(text, **markup)

    def progress(self, text: str) -> None:
        """Rewrite the progress line of the warmup; only on a terminal that a person looks at."""
        if self._terminal is not None and self._terminal.isatty:
            self._terminal.rewrite(text[: self._terminal._tw.fullwidth - 1], erase=True)

    def say_warmed(self) -> None:
        """Say after the warmup what it did and how the monitors stand."""
        run = model.read_run(self.process.folder, alive={self.process.journal.image})
        report = model.build(run, partial=True)
        if not report.usage_errors:  # pytest tells them at the end
            self.say(terminal.after_warmup(report.document["monitors"], report.document["warmup"]))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: Any) -> None:
        """Print a violation when it happens."""
        found = getattr(report, "jitguard", None)
        if not found or found["verdict"] != "violated" or (report.nodeid, found["headline"]) in self._printed:
            return
        self._printed.add((report.nodeid, found["headline"]))
        self.say(terminal.violation_line(report.nodeid, found["headline"]))

    def pytest_report_teststatus(self, report: Any) -> Any:
        """Give a violation its own letter; it stays in the category `failed`, so that counts and -r work."""
        found = getattr(report, "jitguard", None)
        if found and report.failed and found["verdict"] == "violated":
            return "failed", "J", "JIT"  # red as any failure; with markup, pytest 8.0 shows the pair in its summary
        return None

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the summary section, if there is anything to say."""
        if self.report is None or self.report.usage_errors:
            return  # a usage error is told by pytest, as the last line
        lines = terminal.summary(
            self.report,
            verbose=self.config.get_verbosity(),
            width=terminalreporter._tw.fullwidth,
            places=self._places(),
            problems=self.problems,
        )
        if not lines:
            return
        terminalreporter.write_sep("=", "jitguard")
        for text, markup in lines:
            terminalreporter.write_line(text, **markup)

    def _places(self) -> dict[str, str]:
        """Say what was written where."""
        settings = self.process.settings
        written = {"JSON": settings.json, "Markdown": settings.markdown, "baseline": None}
        if settings.update_baseline:
            written["baseline"] = settings.baseline
        if self.process.keep_folder:
            written["journal"] = str(self.process.folder)
        return {name: place for name, place in written.items() if place}
