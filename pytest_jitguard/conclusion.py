"""The end of a session: what all processes recorded becomes one report, its findings, and the exit code."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from pytest_jitguard.assemble import Process
from pytest_jitguard.core import baseline as baselines
from pytest_jitguard.display import Display
from pytest_jitguard.reporters import json_report, model


class Witness:
    """Hooks of every process that runs tests: its last records. A worker's controller concludes from them."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.deselected = 0

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """Count what was left out: then a debt that does not show may just not have been asked for."""
        self.deselected += len(items)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, Any, Any]:
        """Note how this process stands once its last test has run."""
        try:
            return (yield)
        finally:
            self._note_session(session)

    def _note_session(self, session: pytest.Session) -> None:
        guard = self.process.session
        if guard is None:
            return
        guard.settle()
        stopped = bool(session.shouldstop or session.shouldfail)
        guard.recorder.note({**guard.finish(), "partial": stopped or self.deselected > 0})

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Say goodbye before xdist's controller takes this worker for finished."""
        self.process.journal.say_goodbye()


class Conclusion:
    """Hooks of pytest itself or the xdist controller: the one place that sets exit codes and writes documents."""

    def __init__(self, config: pytest.Config, process: Process, display: Display) -> None:
        self.config = config
        self.process = process
        self.display = display

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, Any, Any]:
        """Fail the session for findings; a usage error that a worker found becomes one here, where pytest shows it."""
        result = yield
        report = self._conclude()
        if report.usage_errors:
            raise pytest.UsageError("jitguard: " + "\n".join(error.message for error in report.usage_errors))
        if report.failing:
            session.testsfailed += 1
        return result

    def _conclude(self) -> model.RunReport:
        settings, journal = self.process.settings, self.process.journal
        checked = settings.baseline and not settings.update_baseline
        report = model.build(
            model.read_run(self.process.folder, alive={journal.image}, lost={journal.image: journal.lost}),
            waived=settings.waive,
            baseline_debts=self.process.baseline.debts if checked else None,
            partial=self._is_partial(),
        )
        self.display.report = report
        return report

    def _is_partial(self) -> bool:
        """Tell whether only some tests were asked for; what workers left out stands in their records."""
        args = [str(arg) for arg in self.config.args]
        return any("::" in arg or Path(arg).is_file() for arg in args) or bool(self.config.getoption("lf", False))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Write the documents, also when the session was interrupted."""
        report, settings = self._conclude(), self.process.settings
        if settings.json:
            json_report.write(report.document, Path(settings.json))
        if settings.markdown:
            from pytest_jitguard.reporters import markdown

            markdown.append(Path(settings.markdown), markdown.render(report))
        if settings.update_baseline and settings.baseline:
            # What was not asked for may still be owed.
            unseen = self.process.baseline.debts if self._is_partial() else frozenset()
            text = baselines.render([*report.known_debts, *report.new_debts, *unseen])
            Path(settings.baseline).write_text(text, encoding="utf-8")
