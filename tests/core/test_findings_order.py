"""Reasons to mistrust a green, the gravest first."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.findings import Facts, failing, findings
from pytest_jitguard.core.settings import WAIVERS
from pytest_jitguard.core.stalls import stalls

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


FLEET: dict[str, Any] = {
    "between": ["server x: k compiled"],
    "longest": stalls([CompileEvent("e", "s", "k", "m", 1.0, ended=9.0)])[0],
    "budgets": {"liveness_probe": 5.0, "watchdog": 600.0},
    "silent": ["1 of 2 Python processes did not report: python -S x.py (pid 3)"],
    "silent_servers": ["vllm (vllm serve m)"],
    "children": "require",
}
REST = ["blind:a", "blind:b", "between", "server-silent", "stall-budget", "children", "journal-incomplete", "paid-debt"]


@pytest.mark.parametrize(
    ("worst", "first"),
    [
        ({"warmups": [FAILED]}, ["warmup-failed"]),  # no guarded test ran, of course: no news
        ({"warmups": [EMPTY]}, ["warmup-empty", "nothing-guarded"]),
        ({"warmups": [EMPTY], "guarded": 2}, ["warmup-empty", "nothing-watched"]),
    ],
)
def test_the_gravest_comes_first(worst: dict[str, Any], first: list[str]) -> None:
    assert names(**{"monitors": BLIND, "lost_records": 2, "paid_debt": ["x"], **FLEET, **worst}) == first + REST


def test_what_is_waived_does_not_fail_and_every_name_but_one_can_be() -> None:
    facts = [Facts(monitors=BLIND, lost_records=1, paid_debt=["x"], warmups=[EMPTY], **FLEET), Facts(guarded=1)]
    found = [finding for each in facts for finding in findings(each)]
    assert {finding.name.replace(":a", ":NAME").replace(":b", ":NAME") for finding in found} == {*WAIVERS} - {
        "interpret",  # a usage error
        "late",  # noted by the guard that saw it
    }
    lifted = [
        "blind:b",
        "warmup-empty",
        "paid-debt",
        "nothing-watched",
        "between",
        "server-silent",
        "stall-budget",
        "children",
    ]
    assert [f.name for f in failing(found, lifted)] == [
        "nothing-guarded",
        "blind:a",
        "journal-incomplete",
    ]
    assert failing(found, []) == found


def test_children_that_did_not_report_fail_only_where_they_are_required() -> None:
    (lenient,) = findings(Facts(**{**FINE, "silent": FLEET["silent"]}))
    assert (lenient.name, lenient.severity, failing([lenient], [])) == ("children", "warning", [])
    (strict,) = findings(Facts(**{**FINE, "silent": FLEET["silent"], "children": "require"}))
    assert failing([strict], []) == [strict]


def test_a_stall_is_held_against_every_budget() -> None:
    (finding,) = findings(Facts(**{**FINE, **{key: FLEET[key] for key in ("longest", "budgets")}}))
    assert "stood still for 8.00 s (k), over liveness_probe (5.00 s)" in finding.message
    assert findings(Facts(**{**FINE, "longest": FLEET["longest"], "budgets": {"watchdog": 8.0}})) == []
