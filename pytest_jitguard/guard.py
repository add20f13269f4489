"""The guard in one pytest process: opens the phases of a test run, runs warmups, raises verdicts."""

from __future__ import annotations

import sys
import time
import unittest
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any

import pytest

from pytest_jitguard import marks
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.explain import explain
from pytest_jitguard.core.policy import Allowance, Policy
from pytest_jitguard.core.residency import SHARED
from pytest_jitguard.core.settings import Settings, WarmupCall
from pytest_jitguard.core.verdicts import Verdict, Violation
from pytest_jitguard.outcomes import JitGuardWarning, UnexpectedCompile
from pytest_jitguard.session import GuardSession
from pytest_jitguard.warmup.plan import Step
from pytest_jitguard.warmup.runner import WarmupResult

VERDICT_KEY = pytest.StashKey[Verdict]()
_SKIPS: tuple[type[BaseException], ...] = (pytest.skip.Exception, pytest.xfail.Exception, unittest.SkipTest)
Wrapped = Generator[None, Any, Any]


class Guard:
    """Hooks of a process that runs tests: pytest itself, or an xdist worker.

    `run_warmup(steps, group)` runs warmup steps under the configured limits; `say_warmed` prints how that went.
    """

    def __init__(
        self,
        config: pytest.Config,
        settings: Settings,
        session: GuardSession,
        run_warmup: Callable[[Sequence[Step | WarmupCall], str], WarmupResult],
        say_warmed: Callable[[], None],
    ) -> None:
        self.config = config
        self.settings = settings
        self.session = session
        self.usage_errors: list[str] = []
        self._run_warmup = run_warmup
        self._say_warmed = say_warmed
        self._warmup_failure = ""
        self._marker_warmups: dict[object, str] = {}
        self._import = session.open("import", "import and configuration")
        session.recorder.on_finished = self._raise_at_the_compile

    # -- before the tests ----------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self) -> Wrapped:
        """Open the phase of collection: what module imports compile is warmed, and nobody's fault."""
        self._end_import()
        with self.session.phase("collect", "collection"):
            return (yield)

    def _end_import(self) -> None:
        if self._import.ended is None:
            self.session.settle()
            self.session.close(self._import)
            self.session.keep_shared()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Check every marker at once; remember which files belong to the test suite."""
        self.session.test_files = {str(item.path) for item in items} | _conftests(self.config)
        complaints = marks.complaints(items)
        if complaints:
            self.refuse("\n".join(complaints))
            items.clear()

    def refuse(self, message: str) -> None:
        """Report a usage error: at once where pytest can show it, as a record in an xdist worker, where it is lost."""
        if not hasattr(self.config, "workerinput"):
            raise pytest.UsageError(f"jitguard: {message}")
        self.usage_errors.append(message)
        self.session.recorder.note(
            {"record": "finding", "name": "usage", "message": message, "remedy": "", "severity": "usage"}
        )

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self) -> Wrapped:
        """Run the session's warmup before the first test, outside every test's timeout."""
        self._end_import()
        self.session.prove()
        if self.settings.steps():
            self._warmup_failure = self._warm_session()
        self._say_warmed()
        return (yield)

    def _warm_session(self) -> str:
        result = self._run_warmup(self.settings.steps(), SHARED)
        if result.usage_error:
            self.refuse(result.usage_error)
        return result.cause

    # -- one test ------------------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Wrapped:
        """Run the marker's warmups once, before the test's protocol and so outside its timeout."""
        mark = marks.guard_mark(item)
        for entry in mark.warmups if mark else ():
            if entry not in self._marker_warmups and not self._warmup_failure:
                self._marker_warmups[entry] = self._warm(entry)
        return (yield)

    def _warm(self, entry: Any) -> str:
        call = WarmupCall(entry) if isinstance(entry, str) else Step(_group(entry), entry)
        return self._run_warmup([call], _group(entry)).cause

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Wrapped:
        """Open the test's setup; a guarded test whose warmup failed does not run."""
        mark = marks.guard_mark(item)
        policy = self._policy(item, mark)
        groups = [_group(entry) for entry in mark.warmups] if mark else []
        groups += [f"fixture:{name}" for name in getattr(item, "fixturenames", ())]
        self.session.begin_test(_nodeid(item), policy, groups)
        if VERDICT_KEY in item.stash:
            del item.stash[VERDICT_KEY]
        with self.session.test_phase("setup"):
            if policy is not None and (failure := self._warmup_failure or self._failure_of(mark)):
                raise UnexpectedCompile(f"not run: {failure}", pytrace=False)
            return (yield)

    def _failure_of(self, mark: marks.JitguardMark | None) -> str:
        return next(
            (why for entry in (mark.warmups if mark else ()) if (why := self._marker_warmups.get(entry, ""))), ""
        )

    def _policy(self, item: pytest.Item, mark: marks.JitguardMark | None) -> Policy | None:
        """Return the rules for a test, None for one that is not guarded: marker first, then settings."""
        if mark is None and self.settings.guard != "all":
            return None
        mark, settings = mark or marks.JitguardMark(), self.settings
        mode = settings.mode if settings.mode_beats_marker else mark.mode or settings.mode
        allowed = tuple(Allowance(pattern, reason) for pattern, reason in marks.allow_marks(item))
        return Policy(
            mode=mode,
            fail_on=frozenset(mark.fail_on if mark.fail_on is not None else settings.fail_on),
            max_events=mark.max_events,
            max_seconds=mark.max_seconds,
            monitors=None if mark.monitors is None else frozenset(mark.monitors),
            expect=mark.expect or (),
            allowances=(*allowed, *self.session.allowances()),
        )

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Wrapped:
        """Give a fixture of wider scope a phase of its own: it is not the fault of whoever came first."""
        if fixturedef.scope == "function":
            return (yield)
        label = f"fixture:{fixturedef.argname}[{fixturedef.scope}]"
        with self.session.phase("fixture", label, owner=f"fixture:{fixturedef.argname}", attempt=0):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Wrapped:
        """Open the serving phase, judge it, and raise what was found from the test's own call."""
        attempt, error, result = self.session.attempt, None, None
        assert attempt is not None
        with self.session.test_phase("serving"):
            try:
                result = yield
            except BaseException as raised:  # noqa: BLE001 - also a skip, an exit or an interrupt ends the phase
                error = raised
        verdict = self.session.judge(attempt)
        item.stash[VERDICT_KEY] = verdict
        _set_properties(item, verdict)
        if verdict.violated:
            self._enact(item, verdict, error)
        if error is not None:
            raise error
        return result

    def _enact(self, item: pytest.Item, verdict: Verdict, error: BaseException | None) -> None:
        """Do with a violation what the mode says: it outranks a skip, never a failure of the body's own."""
        if verdict.mode == "warn":
            warnings.warn_explicit(JitGuardWarning(verdict.headline), None, str(item.path), _line(item))
        if verdict.mode not in ("fail", "raise"):
            return
        if error is None or isinstance(error, _SKIPS):
            _drop_recorded_skip(item)
            raise UnexpectedCompile(verdict.text, pytrace=False) from None
        if not isinstance(error, UnexpectedCompile):
            item.add_report_section("call", "jitguard", verdict.text)
            if sys.version_info >= (3, 11):
                error.add_note(f"jitguard: {verdict.headline}")

    def _raise_at_the_compile(self, event: CompileEvent) -> None:
        """In the debugging mode, fail at the culprit: the exception comes out of the launch that compiled."""
        attempt = self.session.attempt
        policy = attempt.policy if attempt else None
        if attempt is None or policy is None or policy.mode != "raise":
            return
        placed = self.session.place(event)
        if placed.served and not placed.allowed and policy.forbids(event) and not policy.allowance(event):
            explanation = explain(event, self.session.background(attempt))
            violation = Violation.of(event, explanation, time.monotonic(), placed.label)
            raise UnexpectedCompile(violation.message)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self) -> Wrapped:
        """Record what teardown compiles without judging it, then forget what the test compiled."""
        try:
            with self.session.test_phase("teardown"):
                return (yield)
        finally:
            self.session.end_test()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Wrapped:
        """Let the verdict ride on the report of the call as plain types, which cross xdist."""
        report = yield
        verdict = item.stash.get(VERDICT_KEY, None)
        if call.when == "setup" and not report.passed:
            self.session.not_run(report.outcome)
        if verdict is not None and call.when == "call":
            report.jitguard = {"verdict": verdict.verdict, "mode": verdict.mode, "headline": _headline(verdict)}
        self._note_outcome(item, report)
        return report

    def _note_outcome(self, item: pytest.Item, report: Any) -> None:
        self.session.recorder.note(
            {
                "record": "outcome",
                "nodeid": _nodeid(item),
                "when": report.when,
                "outcome": report.outcome,
                "xfail": hasattr(report, "wasxfail"),
                "attempt": self.session.attempt.number if self.session.attempt else 0,
            }
        )


def _headline(verdict: Verdict) -> str:
    return verdict.headline if verdict.violations else ""


def _nodeid(item: pytest.Item) -> str:
    """Return the node id without the `@group` that xdist's loadgroup appends."""
    mark = item.get_closest_marker("xdist_group")
    return item.nodeid.rsplit("@", 1)[0] if mark and "@" in item.nodeid else item.nodeid


def _group(entry: Any) -> str:
    return f"warmup:{entry}" if isinstance(entry, str) else f"warmup:{entry.__module__}:{entry.__qualname__}"


def _line(item: pytest.Item) -> int:
    return (item.location[1] or 0) + 1


def _conftests(config: pytest.Config) -> set[str]:
    files = (getattr(plugin, "__file__", None) for plugin in config.pluginmanager.get_plugins())
    return {str(file) for file in files if file and str(file).endswith("conftest.py")}


def _set_properties(item: pytest.Item, verdict: Verdict) -> None:
    """Set the JUnit properties; a rerun replaces those of the attempt before."""
    kernels = sorted({v.event.kernel for v in verdict.violations if v.event})
    compiles = sum(v.event is not None for v in verdict.violations)
    values = {"verdict": verdict.verdict, "compiles": compiles, "kernels": ",".join(kernels)}
    item.user_properties[:] = [p for p in item.user_properties if not str(p[0]).startswith("jitguard.")]
    item.user_properties.extend((f"jitguard.{name}", value) for name, value in values.items())


def _drop_recorded_skip(item: pytest.Item) -> None:
    """Unittest reports a skip beside the call (`TestCaseFunction._excinfo`), and it would replace our exception."""
    recorded = getattr(item, "_excinfo", None)
    if isinstance(recorded, list) and all(isinstance(info.value, _SKIPS) for info in recorded):
        recorded.clear()
