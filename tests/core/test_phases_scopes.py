"""What happens in a server's process tree: placed by its own warmup and by the calls of the tests that use it."""

from __future__ import annotations

import pytest

from pytest_jitguard.core.phases import PhaseLog, RequestSpan

SERVER = "server:x#1"


@pytest.fixture
def log() -> PhaseLog:
    """Start-up 1 to 5; test a (uses it): setup 10, call 12 to 16, teardown to 18; test b: call 22 to 26."""
    log = PhaseLog()
    start_up = log.open("warmup", "start-up", 1.0, scope=SERVER, owner="fixture:f")
    log.close(start_up, 5.0)
    for owner, begin in (("a", 10.0), ("b", 20.0)):
        for phase, start, end in (("setup", 0, 2), ("serving", 2, 6), ("teardown", 6, 8)):
            window = log.open(phase, owner, begin + start, owner=owner, attempt=1)
            log.close(window, begin + end)
    log.use("a", 1, SERVER)
    return log


@pytest.mark.parametrize(
    ("moment", "phase", "owner"),
    [
        (0.5, "between", ""),
        (1.0, "warmup", "fixture:f"),
        (4.9, "warmup", "fixture:f"),
        (5.0, "between", ""),
        (11.0, "between", ""),  # setup: the last test's requests may still be draining
        (12.0, "serving", "a"),
        (15.9, "serving", "a"),
        (17.0, "between", ""),
        (23.0, "between", ""),  # test b does not use the server
    ],
)
def test_only_its_own_warmup_and_the_calls_of_its_users_count(
    moment: float, phase: str, owner: str, log: PhaseLog
) -> None:
    placed = log.place(moment, SERVER)
    assert (placed.phase, placed.owner, placed.served) == (phase, owner, phase == "serving")


def test_a_server_s_windows_say_nothing_of_other_processes(log: PhaseLog) -> None:
    assert log.place(3.0).phase == "between"
    assert log.place(3.0, "server:y#1").phase == "between"
    assert log.place(23.0).owner == "b"


def test_a_warmup_in_the_middle_counts_whoever_is_served(log: PhaseLog) -> None:
    window = log.open("warmup", "more", 13.0, scope=SERVER)
    assert log.place(13.5, SERVER).phase == "warmup"
    log.close(window, 14.0)
    assert log.place(14.5, SERVER).phase == "serving"


def test_the_session_s_warmup_and_a_block_of_the_test_may_warm_a_server_too(log: PhaseLog) -> None:
    log.close(log.open("warmup", "session", 30.0, owner="", attempt=0), 31.0)
    assert log.place(30.5, SERVER).phase == "warmup"
    call = log.open("serving", "a", 40.0, owner="a", attempt=2)
    log.use("a", 2, SERVER)
    log.close(log.open("warmup", "", 41.0, explicit=True, block=True), 42.0)
    log.close(call, 45.0)
    assert log.place(41.5, SERVER).phase == "warmup"
    assert log.place(43.0, SERVER).served


def test_a_late_answer_is_not_the_fault_of_the_test_that_is_served_now(log: PhaseLog) -> None:
    log.use("b", 1, SERVER)
    assert log.place(23.0, SERVER).owner == "b"
    late = RequestSpan("r1", SERVER, 15.0, "a", 1, ended=24.0)
    log.requests.append(late)
    assert log.place(23.0, SERVER).phase == "between", "the only request under way is test a's"
    log.requests.append(RequestSpan("r2", SERVER, 22.5, "b", 1))
    assert log.place(23.0, SERVER).owner == "b", "now it may be b's own"
    assert log.place(25.0, SERVER).owner == "b"
    assert log.place(22.1, "server:other#1").phase == "between"


def test_who_knows_a_server(log: PhaseLog) -> None:
    assert log.knows(SERVER)
    assert not log.knows("server:x#2")
    assert log.uses("a", 1, SERVER)
    assert not log.uses("a", 2, SERVER)
    assert not log.use("a", 1, SERVER), "no news"
