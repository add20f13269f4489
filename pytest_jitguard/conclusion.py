"""The end of a session: what all processes recorded becomes one report, its findings, and the exit code."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from pytest_jitguard.assemble import Process
from pytest_jitguard.core import baseline as baselines
from pytest_jitguard.display import Display
from pytest_jitguard.guarding import GUARDING_KEY
from pytest_jitguard.processes import census
from pytest_jitguard.reporters import json_report, model
from pytest_jitguard.servers.leash import is_keeper
from pytest_jitguard.warmup import once


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
        if guard.relatives is not None:
            for living in census.scan(self.process.folder):
                if not is_keeper(living.argv):
                    guard.recorder.note(living.record())
        if self.process.journal.was_deleted:
            guard.recorder.note(_deletion(self.process.folder))
        stopped = bool(session.shouldstop or session.shouldfail)
        guard.recorder.note({**guard.finish(), "partial": stopped or self.deselected > 0})

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """End shared servers and say goodbye, before xdist's controller takes this worker for finished."""
        if GUARDING_KEY in session.config.stash:
            session.config.stash[GUARDING_KEY].leave_shared()
        self.process.journal.say_goodbye()


def _deletion(folder: Path) -> dict[str, Any]:
    message = f"somebody deleted {folder} during the run: what processes that were gone had written is lost"
    remedy = "keep journals elsewhere: --jitguard-journal=FOLDER"
    return {"record": "finding", "name": "journal-incomplete", "message": message, "remedy": remedy}


class Conclusion:
    """Hooks of pytest itself or the xdist controller: the one place that sets exit codes and writes documents."""

    def __init__(self, config: pytest.Config, process: Process, display: Display) -> None:
        self.config = config
        self.process = process
        self.display = display

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self) -> Generator[None, Any, Any]:
        """Keep for the report why nothing was collected."""
        try:
            return (yield)
        except pytest.UsageError as error:
            self._note_usage(error)
            raise

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, Any, Any]:
        """Fail the session for findings; a usage error that a worker found becomes one here, where pytest shows it."""
        try:
            result = yield
        except pytest.UsageError as error:
            self._note_usage(error)
            raise
        except (KeyboardInterrupt, session.Failed):
            # Tests that could not be warmed up may have stopped the run: then the mistake is the story.
            self._raise_usage(self._conclude())
            raise
        report = self._conclude()
        self._raise_usage(report)
        if report.failing:
            session.testsfailed += 1
        return result

    def _note_usage(self, error: pytest.UsageError) -> None:
        message = "\n".join(str(part) for part in error.args).removeprefix("jitguard: ")
        record = {"record": "finding", "name": "usage", "message": message, "remedy": "", "severity": "usage"}
        self.process.journal.write(record)

    def _raise_usage(self, report: model.RunReport) -> None:
        if report.usage_errors:
            raise pytest.UsageError("jitguard: " + "\n".join(error.message for error in report.usage_errors))

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
        config, args = self.config, [str(arg) for arg in self.config.args]
        if bool(config.getoption("lf", False)) or any("::" in arg or Path(arg).is_file() for arg in args):
            return True
        # A folder is all there is, unless the project says where its tests lie.
        given = [(config.invocation_params.dir / arg).resolve() for arg in args]
        suite = [(config.rootpath / path).resolve() for path in config.getini("testpaths")]
        return not all(any(path.is_relative_to(folder) for folder in given) for path in suite if path.exists())

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, Any, Any]:
        """Write the documents, also when the session was interrupted, and once xdist has ended its workers."""
        result = yield
        report = self._conclude()
        problems = self._write(report)
        self.display.problems = [*problems, *(str(hung) for hung in once.hung(self.process.folder / "turns"))]
        if (report.failing or report.violated or problems) and session.exitstatus in _GREEN:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if problems or _is_evidence(report):
            self.process.keep_folder = True
        return result

    def _write(self, report: model.RunReport) -> list[str]:
        """Write what was asked for, each whatever became of the others; return what could not be written, and why."""
        problems = []
        for what, path, write in self._documents(report):
            try:
                write(path)
            except OSError as error:
                problems.append(f"{what} {path} could not be written: {error.strerror or error}")
        return problems

    def _documents(self, report: model.RunReport) -> list[tuple[str, Path, Callable[[Path], None]]]:
        settings = self.process.settings
        wanted: list[tuple[str, Path, Callable[[Path], None]]] = []
        if settings.json:
            wanted.append(("JSON", Path(settings.json), lambda path: json_report.write(report.document, path)))
        if settings.markdown:
            wanted.append(("Markdown", Path(settings.markdown), lambda path: _append_markdown(report, path)))
        if (summary := _step_summary()) and not (settings.markdown and _same(summary, Path(settings.markdown))):
            wanted.append(("GitHub step summary", summary, lambda path: _append_markdown(report, path)))
        if settings.update_baseline and settings.baseline:
            wanted.append(("baseline", Path(settings.baseline), lambda path: self._update_baseline(report, path)))
        return wanted

    def _update_baseline(self, report: model.RunReport, path: Path) -> None:
        # What did not come to its turn may still be owed.
        unseen = self.process.baseline.debts if report.partial else frozenset()
        text = baselines.render([*report.known_debts, *report.new_debts, *unseen])
        path.write_text(text, encoding="utf-8")


def _is_evidence(report: model.RunReport) -> bool:
    """Tell whether somebody will want to read journals and logs of servers; what we ended ourselves needs no look."""
    document = report.document
    dead = any(process["died"] and process["guard"] == process["image"] for process in document["processes"])
    failed_servers = any(server["state"] == "failed" for server in document["servers"])
    served = bool(document["servers"]) and bool(report.failing or report.violated)
    return dead or failed_servers or served or bool(document["children"]["gone"])


_GREEN = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def _append_markdown(report: model.RunReport, path: Path) -> None:
    from pytest_jitguard.reporters import markdown

    markdown.append(path, markdown.render(report, markdown.room_in(path)))


def _step_summary() -> Path | None:
    """Return the file that GitHub shows on the page of a workflow's run."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return None
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    return Path(summary) if summary else None
