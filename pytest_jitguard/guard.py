"""The guard in one pytest process: opens the phases of a test run, runs warmups, raises verdicts."""

from __future__ import annotations

import sys
import unittest
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any

import pytest

from pytest_jitguard import groups, marks
from pytest_jitguard.core.events import CompileEvent, topmost
from pytest_jitguard.core.policy import Allowance, Policy
from pytest_jitguard.core.residency import SHARED
from pytest_jitguard.core.settings import Settings, WarmupCall
from pytest_jitguard.core.verdicts import Verdict
from pytest_jitguard.outcomes import JitGuardWarning, UnexpectedCompile
from pytest_jitguard.reporters.attempts import bare_nodeid
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
        self._groups = groups.WarmupGroups()
        self._fixtures = groups.FixtureGroups()
        self._marker_warmups: dict[str, str] = {}
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
        self.session.judging.test_files = {str(item.path) for item in items} | _conftests(self.config)
        complaints = marks.complaints(items, [monitor.name for monitor in self.session.monitors])
        if complaints:
            self.refuse("\n".join(complaints))
            items.clear()
        for item in items:
            self._warmups_of(marks.guard_mark(item))

    def refuse(self, message: str) -> None:
        """Report a usage error: at once where pytest can show it, as a record in an xdist worker, where it is lost."""
        if not hasattr(self.config, "workerinput"):
            raise pytest.UsageError(f"jitguard: {message}")
        self.usage_errors.append(message)
        self.session.recorder.note(
            {"record": "finding", "name": "usage", "message": message, "remedy": "", "severity": "usage"}
        )

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Wrapped:
        """Run the session's warmup before the first test, outside every test's timeout."""
        self._end_import()
        self.session.prove()
        if self.settings.steps() and _has_tests_to_run(session):
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
        self.session.rest()
        if not _is_skipped(item):
            for group, entry in self._warmups_of(marks.guard_mark(item)):
                if group not in self._marker_warmups and not self._warmup_failure:
                    self._marker_warmups[group] = self._warm(group, entry)
        return (yield)

    def _warmups_of(self, mark: marks.JitguardMark | None) -> list[tuple[str, Any]]:
        return [(self._groups.name(entry), entry) for entry in (mark.warmups if mark else ())]

    def _warm(self, group: str, entry: Any) -> str:
        call = WarmupCall(entry) if isinstance(entry, str) else Step(group.partition(":")[2], entry)
        return self._run_warmup([call], group).cause

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Wrapped:
        """Open the test's setup."""
        __tracebackhide__ = True  # what failed is the fixture, not we
        mark = marks.guard_mark(item)
        policy = self._policy(item, mark or marks.JitguardMark())
        is_guarded = mark is not None or self.settings.guard == "all"
        warmups = [group for group, _ in self._warmups_of(mark)]
        self.session.begin_test(
            bare_nodeid(item.nodeid), policy if is_guarded else None, warmups, policy_of_blocks=policy
        )
        if VERDICT_KEY in item.stash:
            del item.stash[VERDICT_KEY]
        with self.session.test_phase("setup"):
            return (yield)

    @pytest.hookimpl(specname="pytest_runtest_setup")
    def pytest_refuse_unwarmed(self) -> None:
        """Do not run a guarded test whose warmup failed; pytest has let its skip marks act by now."""
        attempt = self.session.attempt
        if attempt is None or attempt.policy is None:
            return
        failures = [self._marker_warmups.get(group, "") for group in attempt.groups]
        failure = self._warmup_failure or next((why for why in failures if why), "")
        if failure:
            # Not an UnexpectedCompile: xfail(raises=UnexpectedCompile) must not take this for what it expects.
            raise pytest.fail.Exception(f"not run: {failure}", pytrace=False)

    def _policy(self, item: pytest.Item, mark: marks.JitguardMark) -> Policy:
        """Return the rules for a test, should it be guarded: marker first, then settings."""
        settings = self.settings
        mode = settings.mode if settings.mode_beats_marker else mark.mode or settings.mode
        allowed = tuple(Allowance(pattern, reason) for pattern, reason in marks.allow_marks(item))
        return Policy(
            mode=mode,
            fail_on=frozenset(mark.fail_on if mark.fail_on is not None else settings.fail_on),
            max_events=mark.max_events,
            max_seconds=mark.max_seconds,
            monitors=None if mark.monitors is None else frozenset(mark.monitors),
            expect=mark.expect or (),
            allowances=(*allowed, *self.session.judging.allowances()),
        )

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Wrapped:
        """Give a fixture of wider scope a phase of its own: it is not the fault of whoever came first."""
        __tracebackhide__ = True
        if fixturedef.scope == "function":
            return (yield)
        beside = self._fixtures.beside(fixturedef, request)
        group = self._fixtures.set_up(fixturedef)
        self._fixtures.follow(fixturedef, self.session.use)
        label = f"fixture:{fixturedef.argname}[{fixturedef.scope}]"
        with self.session.warming("fixture", label, group, beside=beside):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Wrapped:
        """Open the serving phase, judge it, and raise what was found from the test's own call."""
        attempt, error, result = self.session.attempt, None, None
        assert attempt is not None
        with self.session.test_phase("serving"):
            _tell_unittest_phases(item, self.session)
            try:
                result = yield
            except BaseException as raised:  # noqa: BLE001 - also a skip, an exit or an interrupt ends the phase
                error = raised
        own = error or _recorded_by_unittest(item) or next(iter(attempt.failures), None)
        verdict = self.session.judge(attempt, completed=own is None)
        item.stash[VERDICT_KEY] = verdict
        _set_properties(item, verdict)
        if verdict.violated:
            self._enact(item, verdict, own)
        if error is not None:
            raise error
        if attempt.failures:
            raise attempt.failures[0]  # it sent them, and looked no further
        return result

    def _enact(self, item: pytest.Item, verdict: Verdict, error: BaseException | None) -> None:
        """Do with a violation what the mode says: it outranks a skip, never a failure of the body's own."""
        if verdict.mode == "warn":
            _warn(item, verdict, error)
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
        __tracebackhide__ = True
        attempt = self.session.attempt
        policy = self.session.judging.policy_of(attempt) if attempt else None
        if attempt is None or policy is None or policy.mode != "raise":
            return
        for violation in self.session.judging.judge_so_far(attempt).violations:
            if violation.event is event:
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
            if call.excinfo is not None and isinstance(call.excinfo.value, UnexpectedCompile):
                _point_at_the_test(report, item, verdict)
        self._note_outcome(item, report)
        return report

    def _note_outcome(self, item: pytest.Item, report: Any) -> None:
        attempt = self.session.attempt
        self.session.recorder.note(
            {
                "record": "outcome",
                "nodeid": bare_nodeid(item.nodeid),
                "when": report.when,
                "outcome": report.outcome,
                "xfail": hasattr(report, "wasxfail"),
                "attempt": attempt.number if attempt else 0,
                **({"guarded": self.session.judging.policy_of(attempt) is not None} if attempt else {}),
            }
        )


def _is_skipped(item: pytest.Item) -> bool:
    """Tell whether a skip mark will keep the test from running."""
    try:
        from _pytest.skipping import evaluate_skip_marks

        return evaluate_skip_marks(item) is not None
    except Exception:  # noqa: BLE001 - a broken condition is reported by pytest, in the test's setup
        return False


def _has_tests_to_run(session: pytest.Session) -> bool:
    """Tell whether there will be a first test: pytest refuses to run after errors in collection."""
    refused = session.testsfailed and not session.config.option.continue_on_collection_errors
    return bool(session.items) and not refused


def _point_at_the_test(report: Any, item: pytest.Item, verdict: Verdict) -> None:
    """Name as the place of the failure where the test called what compiled, not the line here that raises.

    And as its message the first line alone: in CI, pytest repeats the whole message in its short summary.
    """
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is None or verdict.mode == "raise":
        return
    crash.message = str(crash.message).partition("\n")[0]
    sites = [violation.explanation.called_from for violation in verdict.violations]
    path, _, rest = next((site for site in sites if site), f"{item.location[0]}:{_line(item)}:").partition(":")
    crash.path, crash.lineno = str(item.config.rootpath / path), int(rest.partition(":")[0])


def _headline(verdict: Verdict) -> str:
    return verdict.headline if verdict.violations else ""


def _warn(item: pytest.Item, verdict: Verdict, error: BaseException | None) -> None:
    """Warn; where warnings are errors, this one does not replace the failure of the body."""
    try:
        warnings.warn_explicit(JitGuardWarning(verdict.headline), None, str(item.path), _line(item))
    except JitGuardWarning:
        if error is None or isinstance(error, _SKIPS):
            _drop_recorded_skip(item)
            raise


def _line(item: pytest.Item) -> int:
    return (item.location[1] or 0) + 1


def _conftests(config: pytest.Config) -> set[str]:
    files = (getattr(plugin, "__file__", None) for plugin in config.pluginmanager.get_plugins())
    return {str(file) for file in files if file and str(file).endswith("conftest.py")}


def _set_properties(item: pytest.Item, verdict: Verdict) -> None:
    """Set the JUnit properties; a rerun replaces those of the attempt before."""
    kernels = sorted({v.event.kernel for v in verdict.violations if v.event})
    compiles = len(topmost([v.event for v in verdict.violations if v.event]))
    values = {"verdict": verdict.verdict, "compiles": compiles, "kernels": ",".join(kernels)}
    item.user_properties[:] = [p for p in item.user_properties if not str(p[0]).startswith("jitguard.")]
    item.user_properties.extend((f"jitguard.{name}", value) for name, value in values.items())


def _tell_unittest_phases(item: pytest.Item, session: GuardSession) -> None:
    """Open phases around setUp and tearDown, which unittest runs inside the call."""
    case = getattr(item, "instance", None)
    if not isinstance(case, unittest.TestCase):
        return
    for name, phase in (("_callSetUp", "setup"), ("_callTearDown", "teardown"), ("doCleanups", "teardown")):
        if hasattr(case, name):
            setattr(case, name, _in_phase(getattr(case, name), phase, session))


def _in_phase(method: Callable[[], Any], phase: str, session: GuardSession) -> Callable[[], Any]:
    def inside() -> Any:
        with session.block(phase):
            return method()

    return inside


def _recorded_by_unittest(item: pytest.Item) -> BaseException | None:
    """Return what ended a unittest: it is kept beside the call (`TestCaseFunction._excinfo`), not raised from it."""
    recorded = getattr(item, "_excinfo", None)
    return recorded[0].value if isinstance(recorded, list) and recorded else None


def _drop_recorded_skip(item: pytest.Item) -> None:
    """Take back a skip that unittest recorded: it would replace our exception."""
    recorded = getattr(item, "_excinfo", None)
    if isinstance(recorded, list) and all(isinstance(info.value, _SKIPS) for info in recorded):
        recorded.clear()
