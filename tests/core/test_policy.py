"""What a test tolerates: kinds, allowances and budgets, each for itself."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.kinds import FAILING_KINDS, RECORDED_KINDS
from pytest_jitguard.core.policy import Allowance, Policy


def event(seconds: float | None = 1.0, **fields: Any) -> CompileEvent:
    known = {"id": "e", "system": "triton", "kernel": "add_kernel", "module": "pkg.ops", **fields}
    return CompileEvent(started=10.0, ended=None if seconds is None else 10.0 + seconds, **known)


@pytest.mark.parametrize(
    ("pattern", "covered"),
    [
        ("add_kernel", True),
        ("add_*", True),
        ("*", True),
        ("pkg.ops.add_kernel", True),
        ("pkg.*", True),
        ("triton:add_kernel", True),
        ("triton:pkg.ops.add_*", True),
        ("tri*:add_kernel", True),
        ("*:add_kernel", True),
        ("add", False),
        ("ADD_KERNEL", False),
        ("ops.add_kernel", False),
        ("pkg.ops", False),
        ("other:add_kernel", False),
        ("triton:sub_kernel", False),
        ("triton", False),
        ("triton:", False),
        ("", False),
    ],
)
def test_an_allowance_is_a_glob_on_system_module_and_kernel(pattern: str, covered: bool) -> None:
    assert Allowance(pattern, "why").covers(event()) is covered


def test_a_kernel_without_a_module_goes_by_its_name_alone() -> None:
    lonely = event(module="")
    assert Allowance("add_kernel", "").covers(lonely)
    assert not Allowance("pkg.ops.add_kernel", "").covers(lonely)
    assert not Allowance(".add_kernel", "").covers(lonely)


def test_the_first_allowance_that_covers_is_the_one_that_is_told() -> None:
    allowances = tuple(Allowance(*pair) for pair in (("sub_*", "a"), ("add_*", "b"), ("*", "c")))
    policy = Policy(allowances=allowances)
    assert policy.allowance(event()) == Allowance("add_*", "b")
    assert policy.allowance(event(kernel="mul")) == Allowance("*", "c")
    assert Policy().allowance(event()) is None


def test_kinds_and_systems_that_are_not_asked_for_are_not_forbidden() -> None:
    assert all(Policy().forbids(event(kind=kind)) for kind in FAILING_KINDS)
    assert not any(Policy().forbids(event(kind=kind)) for kind in RECORDED_KINDS)
    narrow = Policy(fail_on=frozenset(["autotune"]), monitors=frozenset(["triton"]))
    assert narrow.forbids(event(kind="autotune"))
    assert not narrow.forbids(event(kind="compile"))
    assert not narrow.forbids(event(kind="autotune", system="other"))


@pytest.mark.parametrize(
    ("limits", "seconds", "within"),
    [
        ({}, [], True),
        ({}, [0.0], False),
        ({"max_events": 2}, [5.0, 5.0], True),
        ({"max_events": 2}, [0.0, 0.0, 0.0], False),
        ({"max_events": 0}, [0.0], False),
        ({"max_events": 1}, [None], True),
        ({"max_seconds": 2.0}, [0.5, 0.5, 1.0], True),
        ({"max_seconds": 2.0}, [1.5, 1.0], False),
        ({"max_seconds": 0.0}, [0.0], True),
        ({"max_seconds": 60.0}, [None], False),
        ({"max_seconds": 60.0}, [1.0, None], False),
        ({"max_events": 2, "max_seconds": 2.0}, [1.0, 1.0], True),
        ({"max_events": 1, "max_seconds": 2.0}, [0.5, 0.5], False),
        ({"max_events": 2, "max_seconds": 2.0}, [2.0, 0.5], False),
        ({"max_events": 2, "max_seconds": 2.0}, [None], False),
    ],
)
def test_every_limit_that_is_set_holds_and_an_unknown_time_fits_into_none(
    limits: dict[str, Any], seconds: list[float | None], within: bool
) -> None:
    events = [event(each, id=f"e{number}") for number, each in enumerate(seconds)]
    assert Policy(**limits).within_budget(events) is within


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({}, ""),
        ({"max_events": 0}, "max_events=0"),
        ({"max_seconds": 1.5}, "max_seconds=1.5"),
        ({"max_events": 2, "max_seconds": 10.0}, "max_events=2, max_seconds=10"),
    ],
)
def test_a_budget_in_words(limits: dict[str, Any], text: str) -> None:
    assert Policy(**limits).budget_text() == text
