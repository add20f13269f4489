"""Keys as components: differences, the nearest of several, and the way to the journal and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_jitguard.core.keys import Change, Component, SpecializationKey, diff, distance, nearest

components = st.builds(
    Component,
    name=st.sampled_from(["x", "y", "n", "BLOCK", "num_warps", "device"]),
    role=st.sampled_from(["argument", "constexpr", "option", "target", "device", "tuning"]),
    type=st.sampled_from(["", "i32", "i64", "*fp32", "*fp16"]),
    value=st.sampled_from(["", "1", "64", "divisible by 16", "not divisible by 16", "16-byte aligned", "unaligned"]),
)


def _family(component: Component) -> tuple[str, str]:
    return ("argument" if component.role == "constexpr" else component.role, component.name)


keys = st.lists(components, max_size=6, unique_by=_family).map(lambda found: SpecializationKey(tuple(found)))


@given(keys)
def test_a_key_does_not_differ_from_itself(key: SpecializationKey) -> None:
    assert diff(key, key) == ()
    assert distance(key, key) == 0


@given(keys, keys)
def test_a_difference_names_every_component_that_differs_and_no_other(
    a: SpecializationKey, b: SpecializationKey
) -> None:
    changes = diff(a, b)
    differing = {at for at in a.by_name().keys() | b.by_name().keys() if a.by_name().get(at) != b.by_name().get(at)}
    assert {(change.role, change.component) for change in changes} == differing
    assert len(changes) == len(differing)
    assert all(change.warmed != change.served for change in changes)
    assert all(
        "→" in str(change) and set(change.to_wire()) == {"component", "warmed", "served", "text"} for change in changes
    )


@given(keys, keys)
def test_a_difference_read_backwards_is_the_opposite(a: SpecializationKey, b: SpecializationKey) -> None:
    back = {(c.role, c.component): (c.served, c.warmed) for c in diff(b, a)}
    assert {(c.role, c.component): (c.warmed, c.served) for c in diff(a, b)} == back
    assert distance(a, b) == distance(b, a)


@given(keys, st.lists(keys, max_size=5))
def test_the_nearest_is_nearest_and_of_equals_the_last(
    served: SpecializationKey, warmed: list[SpecializationKey]
) -> None:
    found = nearest(served, warmed)
    if not warmed:
        assert found is None
        return
    assert found is not None
    least = min(distance(key, served) for key in warmed)
    assert distance(found, served) == least
    assert found is [key for key in warmed if distance(key, served) == least][-1]


@given(keys)
def test_there_and_back(key: SpecializationKey) -> None:
    assert SpecializationKey.from_wire(json.loads(json.dumps(key.to_wire()))) == key


@pytest.mark.parametrize("wire", [[["x", "argument", "i32"]], [["x", "argument", "i32", 16]], [["a"] * 5]])
def test_what_is_no_key_is_refused(wire: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="a key component must be"):
        SpecializationKey.from_wire(wire)


def argument(type: str, value: str, name: str = "n") -> Component:
    return Component(name, "argument", type, value)


@pytest.mark.parametrize(
    ("warmed", "served", "text"),
    [
        (argument("i32", "divisible by 16"), argument("i32", "not divisible by 16"), "n: divisible by 16 → not"),
        (
            argument("i32", "not divisible by 16"),
            argument("i32", "divisible by 16"),
            "n: not divisible by 16 → divisible",
        ),
        (argument("", "1"), argument("i32", "divisible by 16"), "n: 1 → other"),
        (argument("i64", ""), argument("", "1"), "n: other → 1"),
        (argument("i32", ""), argument("i64", ""), "n: i32 → i64"),
        (
            argument("i32", "divisible by 16"),
            argument("i64", "not divisible by 16"),
            "n: i32, divisible by 16 → i64, not divisible by 16",
        ),
        (argument("", "None"), argument("*fp32", "unaligned"), "n: None → *fp32, unaligned"),
        (argument("i32", "divisible by 16"), argument("i32", ""), "n: divisible by 16 → unspecialized"),
        (Component("n", "constexpr", "", "1"), Component("n", "constexpr", "", "2"), "n: 1 → 2"),
        (Component("n", "option", "", "4"), None, "n: 4 → absent"),
        (None, Component("n", "option", "", "4"), "n: absent → 4"),
    ],
)
def test_a_change_in_words(warmed: Component | None, served: Component | None, text: str) -> None:
    assert str(Change("n", "argument", warmed, served)) == text


def test_a_constexpr_that_was_an_argument_is_one_change() -> None:
    before = SpecializationKey((argument("i32", "divisible by 16"),))
    after = SpecializationKey((Component("n", "constexpr", "", "64"),))
    assert len(diff(before, after)) == 1


def test_another_target_is_farther_than_anything_else() -> None:
    served = SpecializationKey((Component("target", "target", "", "cuda:90"), argument("i32", "", "a")))
    elsewhere = SpecializationKey((Component("target", "target", "", "cuda:80"), argument("i32", "", "a")))
    other = SpecializationKey((Component("target", "target", "", "cuda:90"), argument("*fp16", "unaligned", "a")))
    assert nearest(served, [other, elsewhere]) is other
