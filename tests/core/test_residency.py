"""Who warmed what: laws of the sets, against a model that writes everything down."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_jitguard.core.residency import SHARED, Residency

NAMES = [SHARED, "fixture", "marker", "other"]
tokens = st.sets(st.integers(0, 12), max_size=8)
groups = st.sets(st.sampled_from(NAMES))
history = st.lists(st.tuples(tokens, tokens, st.sampled_from(NAMES)), max_size=8)

History = list[tuple[set[int], set[int], str]]


def told(history: History) -> Residency:
    residency = Residency()
    for resident, before, group in history:
        residency.keep(resident, before, group)
    return residency


def warmed(history: History, groups: set[str]) -> set[int]:
    return {token for resident, before, group in history if group in groups for token in resident - before}


@given(history, groups)
def test_a_group_has_what_came_in_its_windows(history: History, groups: set[str]) -> None:
    assert told(history).of(groups) == warmed(history, groups)


@given(history, tokens)
def test_a_stray_is_resident_and_nobodys(history: History, resident: set[int]) -> None:
    assert told(history).stray(resident) == resident - warmed(history, set(NAMES))


@given(history, tokens, groups)
def test_the_foreign_is_resident_and_neither_shared_nor_of_the_groups(
    history: History, resident: set[int], groups: set[str]
) -> None:
    assert told(history).foreign(resident, groups) == resident - warmed(history, {SHARED} | groups)


@given(history, tokens, groups, groups)
def test_more_groups_leave_less_foreign_and_all_of_them_the_strays(
    history: History, resident: set[int], some: set[str], more: set[str]
) -> None:
    residency = told(history)
    assert residency.foreign(resident, some | more) <= residency.foreign(resident, some)
    assert residency.foreign(resident, NAMES) == residency.stray(resident)
    assert residency.stray(resident) <= residency.foreign(resident, some)


@given(history, tokens, groups)
def test_the_order_of_warming_does_not_matter(history: History, resident: set[int], groups: set[str]) -> None:
    residency, backwards = told(history), told(history[::-1])
    assert residency.foreign(resident, groups) == backwards.foreign(resident, groups)
    assert residency.stray(resident) == backwards.stray(resident)


def test_what_was_there_before_is_not_warmed_by_whoever_comes_next() -> None:
    residency = Residency()
    residency.keep({1, 2}, {1}, "fixture")
    assert residency.of(["fixture"]) == {2}
    assert residency.foreign({1, 2}, []) == {1, 2}
    assert residency.foreign({1, 2}, ["fixture"]) == {1}
    assert residency.of(["never heard of"]) == set()


def test_answers_are_copies() -> None:
    residency = told([({1}, set(), "fixture")])
    residency.of(["fixture"]).add(9)
    residency.stray({5}).clear()
    assert residency.of(["fixture"]) == {1}
