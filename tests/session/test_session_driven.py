"""A guarded run driven phase by phase, without pytest's hooks, on the fake JIT in this process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from pytest_jitguard.core.baseline import Baseline, debt_of
from pytest_jitguard.core.policy import Allowance, Policy
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.core.settings import Settings
from pytest_jitguard.core.verdicts import Verdict
from pytest_jitguard.monitors import MonitorSet
from pytest_jitguard.session import GuardSession
from tests.conftest import FAKEJIT

Body = Callable[[], object]


def nothing() -> None:
    """Do nothing."""


class Driver:
    """Drives a session as the glue does: a warmup, then tests of three phases."""

    def __init__(self, jit: Any, settings: Settings) -> None:
        self.jit = jit
        self.records: list[Any] = []
        self.recorder = Recorder("im", self.records.append)
        self.monitors = MonitorSet(settings.monitors, self.recorder)
        self.monitors.arm()
        self.session = GuardSession(settings, self.recorder, self.monitors, root="/nowhere")
        self.session.settle()

    def warm(self, **arguments: object) -> None:
        with self.session.phase("warmup", "session"):
            self.jit.launch("k", **arguments)
        self.session.keep_shared()

    def launch(self, **arguments: object) -> Body:
        return lambda: self.jit.launch("k", **arguments)

    def test(
        self, nodeid: str, serve: Body, setup: Body = nothing, teardown: Body = nothing, groups: tuple[str, ...] = ()
    ) -> Verdict:
        return self.unguarded(nodeid, serve, self.session.judging.default_policy(), setup, teardown, groups)

    def unguarded(
        self,
        nodeid: str,
        serve: Body,
        policy: Policy | None = None,
        setup: Body = nothing,
        teardown: Body = nothing,
        groups: tuple[str, ...] = (),
    ) -> Verdict:
        attempt = self.session.begin_test(nodeid, policy, groups)
        with self.session.test_phase("setup"):
            setup()
        with self.session.test_phase("serving"):
            serve()
        verdict = self.session.judge(attempt)
        with self.session.test_phase("teardown"):
            teardown()
        self.session.end_test()
        return verdict


@pytest.fixture
def jit(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FAKEJIT))
    monkeypatch.setenv("FAKEJIT_CACHE", "")
    import fakejit

    untouched = fakejit._build
    yield fakejit
    assert fakejit._build is untouched, "nothing stays hooked in"
    for name in ("fakejit", "fakejit_monitor"):
        sys.modules.pop(name, None)


@pytest.fixture
def drive(jit: ModuleType) -> Iterator[Driver]:
    driver = Driver(jit, Settings(monitors=("fakejit_monitor:FakeMonitor",)))
    yield driver
    driver.monitors.disarm()


def test_what_was_warmed_is_clean_and_what_was_not_is_violated(drive: Driver) -> None:
    drive.warm(n=1)
    clean = drive.test("a", drive.launch(n=1))
    violated = drive.test("b", drive.launch(n=2))
    assert (clean.verdict, violated.verdict) == ("clean", "violated")
    (violation,) = violated.violations
    assert violation.event is not None
    assert violation.event.full_name == "fakejit.k"
    assert [change.component for change in violation.explanation.changes] == ["n"]
    assert not violation.explanation.never_warmed
    assert clean.evidence["monitors_armed"] == ["fakejit"]
    assert clean.evidence["warmup_events"] == 1


def test_tests_do_not_profit_from_each_other(drive: Driver) -> None:
    assert drive.test("suite::first", drive.launch(n=2)).verdict == "violated"
    assert drive.jit.CACHE == {}, "what the test compiled is out of the lookup"
    (violation,) = drive.test("b", drive.launch(n=2)).violations
    assert violation.explanation.never_warmed
    assert "suite::first" in violation.explanation.cause
    assert drive.test("c", drive.launch(n=2), setup=drive.launch(n=2)).verdict == "clean"
    assert drive.test("d", nothing, teardown=drive.launch(n=2)).verdict == "clean"
    assert drive.test("e", drive.launch(n=2)).verdict == "violated"
    assert not drive.session.finish()["order_dependent"]


def test_a_group_counts_for_those_who_use_it_in_any_order(drive: Driver) -> None:
    with drive.session.warming("fixture", "fixture:x", "x"):
        drive.jit.launch("k", n=3)
    for nodeid in ("a", "b"):
        assert drive.test(f"{nodeid} without", drive.launch(n=3)).verdict == "violated"
        assert drive.test(f"{nodeid} with", drive.launch(n=3), groups=("x",)).verdict == "clean"
        assert drive.test(f"{nodeid} later", drive.launch(n=3), setup=lambda: drive.session.use("x")).verdict == "clean"


def test_a_rerun_is_warm_and_stays_violated(drive: Driver) -> None:
    first = drive.test("a", drive.launch(n=2))
    again = drive.test("a", nothing)
    assert (again.verdict, again.attempt) == ("violated", 2)
    assert again.violations == first.violations


def test_what_nobody_guards_is_not_judged_unless_it_serves(drive: Driver) -> None:
    assert drive.unguarded("a", drive.launch(n=2)).verdict == "unguarded"

    def serve() -> None:
        drive.jit.launch("k", n=2)
        with drive.session.block("serving", "decode"):
            drive.jit.launch("k", n=3)

    verdict = drive.unguarded("b", serve)
    assert [violation.label for violation in verdict.violations] == ["decode"]
    assert [v.event.key.components[0].value for v in verdict.violations if v.event and v.event.key] == ["3"]


def test_allowances_budgets_and_known_debt(drive: Driver) -> None:
    default = drive.session.judging.default_policy()
    allowing = replace(default, allowances=(Allowance("fakejit:k", "slow start"),))
    allowed = drive.unguarded("a", drive.launch(n=2), allowing)
    assert (allowed.verdict, allowed.allowed[0]["reason"]) == ("allowed", "slow start")
    budgeted = drive.unguarded("b", drive.launch(n=2), replace(default, max_events=1))
    assert (budgeted.verdict, budgeted.allowed[0]["pattern"]) == ("allowed", None)
    (violation,) = drive.test("c", drive.launch(n=2)).violations
    assert violation.event
    drive.session.judging.baseline = Baseline(frozenset([debt_of(violation.event, violation.explanation)]))
    assert drive.test("d", drive.launch(n=2)).verdict == "known"


def test_a_kernel_that_was_expected_and_not_reached(drive: Driver) -> None:
    drive.warm(n=1)
    expecting = replace(drive.session.judging.default_policy(), expect=("fakejit:k", "fakejit:other"))
    verdict = drive.unguarded("a", drive.launch(n=1), expecting)
    assert [violation.event for violation in verdict.violations] == [None]
    assert "'fakejit:other'" in verdict.headline
    assert verdict.evidence["expected"] == {"fakejit:k": "resident", "fakejit:other": "missing"}


def test_a_lost_hook_is_found_out_at_the_phases_end(drive: Driver) -> None:
    drive.test("a", lambda: (drive.jit.hide_hook(), drive.jit.launch("k", n=2)))
    (monitor,) = drive.monitors
    assert monitor.state == "blind"
    assert drive.session.finish()["monitors"][0]["state"] == "blind"
    assert drive.session.finish()["ever_armed"] == ["fakejit"]


def test_what_no_event_announced_is_found_out_though_the_hook_is_in_place(drive: Driver) -> None:
    with drive.session.phase("warmup"):
        drive.jit.sneak_in("k", n=2)
    (monitor,) = drive.monitors
    assert (monitor.state, monitor.detail) == ("blind", "a resident variant k(n=2) was announced by no event")


def test_the_journal_gets_everything_in_the_order_in_which_it_happened(drive: Driver) -> None:
    del drive.records[:]
    drive.warm(n=1)
    drive.test("a", drive.launch(n=2))
    told = [(r["record"], r.get("phase") or r.get("verdict") or r.get("status") or "") for r in drive.records]
    assert told == [
        *(("open", "warmup"), ("begin", ""), ("end", "ok"), ("close", "")),
        *(("open", "setup"), ("close", "")),
        *(("open", "serving"), ("begin", ""), ("end", "ok"), ("close", ""), ("verdict", "violated")),
        *(("open", "teardown"), ("close", "")),
    ]


def test_after_disarm_the_library_is_as_it_was_and_nothing_is_recorded(drive: Driver) -> None:
    drive.monitors.disarm()
    assert drive.jit._build is drive.jit.untouched_build
    drive.jit.launch("k", n=9)
    assert drive.recorder.events == []


def test_all_that_works_without_pytest_works_where_there_is_none() -> None:
    code = """
import sys
sys.modules["pytest"] = sys.modules["_pytest"] = None
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.core.settings import Settings
from pytest_jitguard.monitors import MonitorSet
from pytest_jitguard.session import GuardSession
import pytest_jitguard.offline, pytest_jitguard.processes.journal, pytest_jitguard.reporters.model
import pytest_jitguard.warmup.runner
recorder = Recorder("im", lambda record: None)
session = GuardSession(Settings(), recorder, MonitorSet(("auto",), recorder))
attempt = session.begin_test("a", session.judging.default_policy())
with session.test_phase("serving"):
    pass
print(session.judge(attempt).verdict)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("clean\n", "")


def test_a_library_refuses_while_a_guarded_test_serves_and_only_then(drive: Driver) -> None:
    drive.session.settings = replace(drive.session.settings, deny=("fakejit",))
    refused: list[bool] = []

    def serve() -> None:
        refused.append(drive.jit.REFUSES)
        with drive.session.block("serving"):
            refused.append(drive.jit.REFUSES)
        drive.jit.launch("k", n=2)

    with pytest.raises(drive.jit.CompileError, match="switched off"):
        drive.test("a", serve, setup=drive.launch(n=1))
    assert (refused, drive.jit.REFUSES) == ([True, True], False)
    drive.session.end_test()
    drive.unguarded("b", drive.launch(n=3))
    drive.session.settings = replace(drive.session.settings, deny=())
    drive.test("c", lambda: refused.append(drive.jit.REFUSES))
    assert refused[2:] == [False]
