"""Windows on the clock: how they nest, and which of them a moment belongs to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_jitguard.core.phases import PhaseLog, Placed, Window


@pytest.fixture
def log() -> PhaseLog:
    return PhaseLog()


def served(log: PhaseLog, moment: float) -> tuple[str, bool, str]:
    place = log.place(moment)
    return place.phase, place.served, place.label


def test_a_moment_belongs_to_the_innermost_window(log: PhaseLog) -> None:
    outer = log.open("setup", "outer", 1.0, owner="t", attempt=2)
    inner = log.open("fixture", "inner", 2.0, owner="g", attempt=0)
    log.close(inner, 3.0)
    log.close(outer, 4.0)
    assert inner.parent is outer
    assert [log.place(moment).phase for moment in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5)] == [
        *("setup", "setup"),
        *("fixture", "fixture"),
        *("setup", "setup"),
    ]
    assert log.place(1.5) == Placed("setup", "t", 2)
    assert log.place(2.5) == Placed("fixture", "g", 0)


def test_what_lies_in_no_window_lies_between(log: PhaseLog) -> None:
    assert log.place(0.0) == Placed("between")
    for started in (1.0, 3.0):
        log.close(log.open("warmup", "", started), started + 1)
    last = log.open("collect", "", 5.0)
    assert [log.place(m).phase for m in (0.5, 1.0, 2.0, 2.9, 3.0, 4.0, 99.0)] == [
        *("between", "warmup", "between", "between", "warmup", "between"),
        "collect",  # still open: it has no end yet
    ]
    assert [window.phase for window in log.around(99.0)] == ["collect"]
    log.close(last, 6.0)
    assert log.around(99.0) == []


def test_a_window_closes_with_what_was_left_open_inside_and_once(log: PhaseLog) -> None:
    before = log.open("collect", "", 0.0)
    outer, inner, innermost = (log.open("setup", str(n), float(n)) for n in (1, 2, 3))
    assert log.close(outer, 4.0) == [innermost, inner, outer]
    assert [w.ended for w in (outer, inner, innermost, before)] == [4.0, 4.0, 4.0, None]
    assert log.close(inner, 9.0) == []
    assert inner.ended == 4.0


def test_owner_and_attempt_are_inherited_unless_given(log: PhaseLog) -> None:
    log.open("serving", "", 1.0, owner="t", attempt=3)
    inherited = log.open("warmup", "", 2.0)
    given = log.open("fixture", "", 3.0, owner="", attempt=0)
    assert (inherited.owner, inherited.attempt) == ("t", 3)
    assert (given.owner, given.attempt) == ("", 0)


def test_the_call_is_served_until_the_test_says_itself_what_is(log: PhaseLog) -> None:
    for attempt, start in ((1, 0.0), (2, 10.0)):
        call = log.open("serving", "t", start, owner="t", attempt=attempt)
        assert served(log, start + 1) == ("serving", True, "")
        if attempt == 1:
            block = log.open("serving", "decode", start + 2, explicit=True, block=True)
            log.close(block, start + 4)
        log.close(call, start + 6)
    assert [served(log, moment) for moment in (1.0, 3.0, 5.0)] == [
        ("setup", False, ""),  # what a test does beside its blocks is preparation, before them as well
        ("serving", True, "decode"),
        ("setup", False, ""),
    ]
    assert served(log, 13.0) == ("serving", True, ""), "another attempt has blocks of its own, or none"
    assert log.has_explicit_serving("t", 1)
    assert not log.has_explicit_serving("t", 2)
    assert not log.has_explicit_serving("u", 1)


def test_blocks_inside_serving(log: PhaseLog) -> None:
    call = log.open("serving", "", 0.0, owner="t", attempt=1)
    warmup = log.open("warmup", "", 1.0, explicit=True, block=True)
    log.close(warmup, 2.0)
    lenient = log.open("serving", "", 2.0, allowed="known to be slow", block=True)
    log.close(lenient, 3.0)
    log.close(call, 4.0)
    assert log.place(1.5) == Placed("warmup", "t", 1)
    assert log.place(2.5) == Placed("serving", "t", 1, allowed="known to be slow", served=True)
    assert log.place(3.5) == Placed("serving", "t", 1, served=True)


def test_a_lenient_block_holds_for_what_is_opened_in_it(log: PhaseLog) -> None:
    log.open("serving", "", 0.0, owner="t", attempt=1)
    lenient = log.open("serving", "", 1.0, allowed="why", block=True)
    log.open("serving", "inner", 2.0, explicit=True, block=True, around=lenient)
    assert log.place(2.5) == Placed("serving", "t", 1, "inner", "why", served=True)


def test_overlapping_blocks_close_alone_and_the_strictest_counts(log: PhaseLog) -> None:
    call = log.open("serving", "", 0.0, owner="t", attempt=1)
    lenient = log.open("serving", "a", 1.0, explicit=True, allowed="why", block=True)
    strict = log.open("serving", "b", 2.0, explicit=True, block=True)  # by another thread: not inside the first
    warming = log.open("warmup", "", 3.0, explicit=True, block=True)
    assert strict.parent is call
    assert warming.parent is call
    assert log.close(lenient, 4.0) == [lenient]
    assert log.close(strict, 5.0) == [strict]
    assert log.close(warming, 6.0) == [warming]
    log.close(call, 7.0)
    assert [(log.place(m).label, log.place(m).allowed) for m in (1.5, 2.5, 3.5, 4.5)] == [
        ("a", "why"),
        ("b", ""),
        ("b", ""),
        ("b", ""),
    ]
    assert log.place(5.5) == Placed("warmup", "t", 1)
    assert log.around(3.5) == [lenient, strict, warming]


def test_of_overlapping_blocks_the_strict_one_counts_though_a_lenient_one_came_later(log: PhaseLog) -> None:
    log.open("serving", "", 0.0, owner="t", attempt=1)
    log.open("serving", "strict", 1.0, explicit=True, block=True)
    log.open("serving", "lenient", 2.0, explicit=True, allowed="why", block=True)
    assert log.place(2.5) == Placed("serving", "t", 1, "strict", served=True)


def test_a_block_goes_into_its_callers_own_while_that_is_open(log: PhaseLog) -> None:
    call = log.open("serving", "", 0.0, owner="t", attempt=1)
    mine = log.open("serving", "", 1.0, block=True)
    log.open("serving", "", 2.0, block=True)
    assert log.open("warmup", "", 3.0, block=True, around=mine).parent is mine
    log.close(mine, 4.0)
    assert log.open("warmup", "", 5.0, block=True, around=mine).parent is call


def test_ancestry_and_records(log: PhaseLog) -> None:
    outer = log.open("setup", "o", 1.0, owner="t", attempt=1)
    inner = log.open("warmup", "i", 2.0, explicit=True, allowed="why")
    assert inner.ancestry() == [inner, outer]
    log.close(inner, 3.0)
    assert inner.open_record() == {
        **{"record": "open", "window": 2, "phase": "warmup", "label": "i", "started": 2.0},
        **{"owner": "t", "attempt": 1, "explicit": True, "allowed": "why", "parent": 1, "scope": ""},
    }
    assert inner.close_record() == {"record": "close", "window": 2, "ended": 3.0}
    assert outer.open_record()["parent"] is None


steps = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.sampled_from(["setup", "serving", "warmup"])),
        st.tuples(st.just("block"), st.integers(0, 20)),
        st.tuples(st.just("close"), st.integers(0, 20)),
        st.tuples(st.just("nothing"), st.just(0)),
    ),
    max_size=30,
)


@given(steps, st.floats(-1, 32))
def test_around_finds_what_a_search_through_all_windows_finds(
    steps: list[tuple[str, str | int]], moment: float
) -> None:
    log = PhaseLog()
    open_windows: list[Window] = []
    for now, (action, choice) in enumerate(steps):
        if action == "open":
            open_windows.append(log.open(str(choice), "", float(now)))
        elif action == "block" and open_windows:
            around = open_windows[int(choice) % len(open_windows)]
            open_windows.append(log.open("serving", "", float(now), block=True, around=around))
        elif action == "close" and open_windows:
            closed = log.close(open_windows[int(choice) % len(open_windows)], float(now))
            assert closed
            open_windows = [window for window in open_windows if window not in closed]
    holding = [window for window in log.windows if window.contains(moment)]
    innermost = [w for w in holding if not any(w in other.ancestry()[1:] for other in holding)]
    assert log.around(moment) == innermost
