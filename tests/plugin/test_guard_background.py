"""Compiles on background threads and compiles cut short: blamed on the test in which they began, or on nobody."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.conftest import GuardedRun


def _events(run: GuardedRun) -> dict[str, Any]:
    return {event["kernel"]: event for event in run.report["events"]}


def test_a_compile_is_blamed_on_the_test_in_which_it_began(guarded: GuardedRun) -> None:
    # These compiles end only when a later test lets them; nobody waits for that longer than this.
    guarded.pytester.makeconftest("import pytest_jitguard.session as s; s.LONGEST_WAIT = 0.1")
    guarded.suite(
        """
        import threading
        guard = pytest.mark.jitguard
        THREADS = []

        def begin(kernel, **arguments):
            THREADS.append(fakejit.launch_in_background(kernel, gate=kernel, **arguments))
            deadline = time.monotonic() + 5
            while kernel not in fakejit.GATES and time.monotonic() < deadline:
                time.sleep(0.001)

        def finish(kernel):
            fakejit.gate(kernel).set()
            THREADS.pop().join()

        begin("from_import")

        @guard
        def test_a_ends_what_collection_began():
            finish("from_import")

        @guard
        def test_b_begins():
            begin("long")

        @guard
        def test_c_innocent():
            finish("long")

        @pytest.fixture
        def leaves():
            yield
            begin("from_teardown")

        @guard
        def test_d_teardown_begins(leaves): pass

        @guard
        def test_e_innocent():
            finish("from_teardown")

        @pytest.fixture
        def prepares():
            begin("from_setup")

        @guard
        def test_f_ends_what_its_setup_began(prepares):
            finish("from_setup")

        @guard
        def test_g_begins_one_that_fails():
            begin("broken", fail=True)

        @guard
        def test_h_innocent():
            finish("broken")

        @guard
        def test_i_begins_and_it_never_ends():
            begin("endless")

        @guard
        def test_j_innocent(): pass
        """
    )
    result = guarded.run("-p", "no:threadexception")
    assert guarded.verdicts() == {
        "test_a_ends_what_collection_began": "clean",
        "test_b_begins": "violated",
        "test_c_innocent": "clean",
        "test_d_teardown_begins": "clean",
        "test_e_innocent": "clean",
        "test_f_ends_what_its_setup_began": "clean",
        "test_g_begins_one_that_fails": "violated",
        "test_h_innocent": "clean",
        "test_i_begins_and_it_never_ends": "violated",
        "test_j_innocent": "clean",
    }
    result.stdout.fnmatch_lines(["*long (fakejit) still compiling after 0.* s while serving*"])
    events = _events(guarded)
    assert guarded.violations("test_b_begins")[0]["seconds"] == pytest.approx(events["long"]["seconds"])
    assert {name: event["status"] for name, event in events.items()} == {
        "from_import": "ok",
        "long": "ok",
        "from_teardown": "ok",
        "from_setup": "ok",
        "broken": "failed",
        "endless": "interrupted",
    }
    assert guarded.violations("test_i_begins_and_it_never_ends")[0]["seconds"] is None


def test_no_test_finds_what_an_earlier_one_left_compiling(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        guard = pytest.mark.jitguard

        @pytest.fixture(scope="session")
        def engine():
            fakejit.launch_in_background("of_the_engine", seconds=0.3)
            time.sleep(0.05)

        def test_leaves_one_behind():
            fakejit.launch_in_background("left", seconds=0.3)
            time.sleep(0.05)

        @guard
        def test_uses_what_was_left():
            fakejit.launch("left", seconds=0.3)

        @guard
        def test_engine_once(engine):
            fakejit.launch("of_the_engine", seconds=0.3)

        @guard
        def test_engine_twice(engine):
            fakejit.launch("of_the_engine", seconds=0.3)
        """
    )
    guarded.run()
    assert guarded.verdicts() == {
        "test_leaves_one_behind": "unguarded",
        "test_uses_what_was_left": "violated",
        "test_engine_once": "clean",
        "test_engine_twice": "clean",
    }


SLEEPER = """
@pytest.mark.jitguard
def test_compiles_too_long():
    fakejit.launch("slow", seconds=30)

@pytest.mark.jitguard
def test_after():
    pass
"""


def test_timeout_by_signal_in_the_middle_of_a_compile(guarded: GuardedRun) -> None:
    guarded.suite(SLEEPER)
    guarded.plugins += ["-p", "pytest_timeout"]
    result = guarded.run("--timeout=1", "--timeout-method=signal")
    assert result.ret == 1
    assert guarded.verdicts() == {"test_compiles_too_long": "violated", "test_after": "clean"}
    assert _events(guarded)["slow"]["status"] == "failed"
    result.stdout.fnmatch_lines(["*Timeout (>1.0s) from pytest-timeout*", "*Captured jitguard call*"])


def test_timeout_by_thread_ends_the_process_and_the_journal_knows_where(guarded: GuardedRun) -> None:
    guarded.suite(SLEEPER)
    guarded.plugins += ["-p", "pytest_timeout"]
    guarded.run("--timeout=1", "--timeout-method=thread", "--jitguard-journal=journal")
    (journal,) = (guarded.path / "journal").glob("*/*.jsonl")
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    begun = [r["kernel"] for r in records if r["record"] == "begin"]
    assert begun == ["slow"]
    assert not [r for r in records if r["record"] in ("end", "bye")]
    closed = {r["window"] for r in records if r["record"] == "close"}
    left_open = [r for r in records if r["record"] == "open" and r["window"] not in closed]
    assert [(r["phase"], r["owner"]) for r in left_open] == [("serving", "test_suite.py::test_compiles_too_long")]
    told = guarded.pytester.run(
        sys.executable, "-m", "pytest_jitguard", "report", journal.parent, "--json", "late.json"
    )
    assert told.ret == 1
    report = json.loads((guarded.path / "late.json").read_text())
    assert [(t["nodeid"], t["verdict"]) for t in report["tests"]] == [
        ("test_suite.py::test_compiles_too_long", "interrupted")
    ]
    assert report["events"][0]["status"] == "interrupted"
    (left,) = report["tests"][0]["violations"]
    assert (left["kernel"], left["seconds"], left["never_warmed"]) == ("slow", None, True)
    told.stdout.fnmatch_lines(["*slow*"])
