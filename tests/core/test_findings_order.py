"""Reasons to mistrust a green, the gravest first."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_jitguard.core.findings import Facts, failing, findings
from pytest_jitguard.core.settings import WAIVERS

FAILED = {"status": "failed", "cause": "it broke", "steps": [{}]}
EMPTY = {"status": "ok", "cause": "", "steps": [{}]}
BLIND = [{"name": n, "state": "blind", "detail": "hidden"} for n in ("a", "b")]
FINE: dict[str, Any] = {
    "guarded": 1,
    "tests": 1,
    "ever_armed": frozenset(["a"]),
    "warmups": [EMPTY],
    "warmup_events": 1,
}


def names(**facts: Any) -> list[str]:
    return [finding.name for finding in findings(Facts(**facts))]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"warmups": [EMPTY, FAILED]}, ["warmup-failed"]),
        ({"warmups": [{**FAILED, "status": "timeout"}]}, ["warmup-failed"]),
        ({"warmup_events": 0}, ["warmup-empty"]),
        ({"warmup_events": 0, "warmups": []}, []),
        ({"guarded": 0}, ["nothing-guarded"]),
        ({"ever_armed": frozenset()}, ["nothing-watched"]),
        ({"guarded": 0, "ever_armed": frozenset()}, ["nothing-guarded"]),
        ({"monitors": BLIND}, ["blind:a", "blind:b"]),
        ({"monitors": [{**BLIND[0], "state": "unproven"}]}, []),
        ({"lost_records": 1}, ["journal-incomplete"]),
        ({"paid_debt": ["x"]}, ["paid-debt"]),
    ],
)
def test_each_fact_has_its_finding(changed: dict[str, Any], expected: list[str]) -> None:
    assert names(**{**FINE, **changed}) == expected


REST = ["blind:a", "blind:b", "journal-incomplete", "paid-debt"]


@pytest.mark.parametrize(
    ("worst", "first"),
    [
        ({"warmups": [FAILED]}, ["warmup-failed"]),  # no guarded test ran, of course: no news
        ({"warmups": [EMPTY]}, ["warmup-empty", "nothing-guarded"]),
        ({"warmups": [EMPTY], "guarded": 2}, ["warmup-empty", "nothing-watched"]),
    ],
)
def test_the_gravest_comes_first(worst: dict[str, Any], first: list[str]) -> None:
    assert names(**{"monitors": BLIND, "lost_records": 2, "paid_debt": ["x"], **worst}) == first + REST


def test_what_is_waived_does_not_fail_and_every_name_but_one_can_be() -> None:
    facts = [Facts(monitors=BLIND, lost_records=1, paid_debt=["x"], warmups=[EMPTY]), Facts(guarded=1)]
    found = [finding for each in facts for finding in findings(each)]
    assert {finding.name.replace(":a", ":NAME").replace(":b", ":NAME") for finding in found} == {*WAIVERS} - {
        "interpret"
    }
    assert [f.name for f in failing(found, ["blind:b", "warmup-empty", "paid-debt", "nothing-watched"])] == [
        "nothing-guarded",
        "blind:a",
        "journal-incomplete",
    ]
    assert failing(found, []) == found
