"""A guard session that hears of other processes through their journals, driven without pytest."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pytest_jitguard.core.policy import Policy
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.core.settings import Settings
from pytest_jitguard.monitors import MonitorSet
from pytest_jitguard.processes.journal import Journal, read_journal
from pytest_jitguard.processes.relatives import Relatives
from pytest_jitguard.session import GuardSession


class Family:
    """A guard's session and one child, which share a folder; the child is in this process, and compiles on demand."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder, "pytest")
        recorder = Recorder(self.journal.image, self.journal.write, role="pytest")
        relatives = Relatives(folder, self.journal.image)
        self.session = GuardSession(Settings(), recorder, MonitorSet((), recorder), relatives=relatives)
        self.child = Journal(folder, "child", guard=self.journal.image)
        self.in_child = Recorder(self.child.image, self.child.write, role="child")

    def compile(self, name: str, started: float | None = None) -> None:
        event = self.in_child.begin("fakejit", name, "fakejit", started=started)
        self.in_child.end(event)

    def run(self, nodeid: str, *names: str) -> Any:
        """Run a test in whose call the child compiles; return its verdict."""
        attempt = self.session.begin_test(nodeid, Policy())
        with self.session.test_phase("setup"):
            pass
        with self.session.test_phase("serving"):
            for name in names:
                self.compile(name)
        verdict = self.session.judge(attempt)
        self.session.end_test()
        return verdict

    @property
    def findings(self) -> list[str]:
        return [r["name"] for r in read_journal(self.journal.path).records if r["record"] == "finding"]


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return Family(tmp_path)


def test_a_child_s_compile_belongs_to_the_call_in_which_it_began(family: Family) -> None:
    assert family.run("a").verdict == "clean"
    assert [v.event.kernel for v in family.run("b", "k").violations if v.event] == ["k"]
    assert family.run("c").verdict == "clean"
    assert family.findings == []


def test_a_record_that_comes_after_the_verdict_is_not_lost(family: Family) -> None:
    during = time.monotonic()
    attempt = family.session.begin_test("a", Policy())
    with family.session.test_phase("serving"):
        during = time.monotonic()
    assert family.session.judge(attempt).verdict == "clean"
    family.session.end_test()
    family.compile("slow_to_tell", started=during)
    family.session.settle()
    assert family.findings == ["late"]


def test_what_is_late_and_allowed_is_no_matter(family: Family) -> None:
    attempt = family.session.begin_test("a", Policy(fail_on=frozenset(["autotune"])))
    with family.session.test_phase("serving"):
        during = time.monotonic()
    family.session.judge(attempt)
    family.compile("slow_to_tell", started=during)
    family.session.settle()
    assert family.findings == []


def test_a_torn_line_waits_until_it_is_whole(family: Family, tmp_path: Path) -> None:
    family.run("a")
    event = family.in_child.begin("fakejit", "torn", "fakejit")
    whole = family.child.path.read_bytes()
    family.child.path.write_bytes(whole[:-20])
    family.session.settle()
    assert [e.kernel for e in family.session.recorder.events] == []
    family.child.path.write_bytes(whole)
    family.session.settle()
    assert [(e.kernel, e.id) for e in family.session.recorder.events] == [("torn", event.id)]


def test_journals_of_other_guards_and_their_children_are_left_alone(family: Family, tmp_path: Path) -> None:
    other = Journal(tmp_path, "xdist worker")
    theirs = Journal(tmp_path, "child", guard=other.image)
    recorder = Recorder(theirs.image, theirs.write, role="child")
    assert family.run("a").verdict == "clean"
    recorder.begin("fakejit", "theirs", "fakejit")
    family.session.settle()
    assert family.session.recorder.events == []


def test_a_server_s_events_are_heard_once_it_is_used(family: Family, tmp_path: Path) -> None:
    from pytest_jitguard.scopes import Scope

    inside = Journal(tmp_path, "child", guard=family.journal.image, scope="server:x#1")
    recorder = Recorder(inside.image, inside.write, role="child")
    recorder.end(recorder.begin("fakejit", "before", "fakejit"))
    family.session.settle()
    assert family.session.recorder.events == []
    family.session.begin_scope(Scope("server:x#1", "x"))
    family.session.settle()
    assert [(e.kernel, e.scope) for e in family.session.recorder.events] == [("before", "server:x#1")]
