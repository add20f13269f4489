"""The judgement over one test in words: by kind, without counting parts twice, with the budget that was exceeded."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_jitguard.core.events import CompileEvent, topmost
from pytest_jitguard.core.explain import Background
from pytest_jitguard.core.kinds import KINDS, WORDS, count, deeds
from pytest_jitguard.core.policy import Allowance, Policy
from pytest_jitguard.core.verdicts import Served, Verdict, Violation, deed, judge


def event(id: str, kind: str = "compile", seconds: float | None = 1.0, **more: Any) -> CompileEvent:
    fields: dict[str, Any] = {"status": "ok", "cure": f"import m\n\nm.k.warmup({id!r})", **more}
    return CompileEvent(id, "triton", "k", "m", 10.0, kind, ended=None if seconds is None else 10.0 + seconds, **fields)


def tuning() -> list[CompileEvent]:
    """An autotune run of 3 s, 2.5 s of which went into its two configs, one of which compiled a helper."""
    return [
        event("run", "autotune", 3.0, cure="# call it once"),
        event("one", seconds=1.5, parent="run"),
        event("helper", seconds=1.0, parent="one"),
        event("two", "cache_load", 1.0, parent="run"),
    ]


def judged(events: list[CompileEvent], **policy: Any) -> Verdict:
    verdict = Verdict("t.py::test", "unguarded")
    served = [Served(event) for event in events]
    return judge(verdict, served, Policy(**policy), Background(), lambda event, why: False, 20.0)


def test_what_is_part_of_another_event_is_not_counted_beside_it() -> None:
    events = tuning()
    assert [e.id for e in topmost([*events, event("other", parent="elsewhere")])] == ["run", "other"]
    wire = [violation.to_wire() for violation in judged(events).violations]
    assert [violation["parent"] for violation in wire] == [None, "run", "one", "run"]
    assert [violation["event"] for violation in topmost(wire)] == ["run"]
    assert [violation["event"] for violation in topmost(wire[1:])] == ["one", "two"]


def test_an_autotune_run_is_one_violation_with_its_own_cure() -> None:
    assert judged(tuning()).text.splitlines() == [
        "k (triton) autotuned in 3.00 s while serving: this kernel was never tuned by the warmup",
        "",
        "  within   1 compile and 1 load from disk, 2.50 s, one for each config that was tried",
        "",
        "  add this to the warmup:",
        "    # call it once",
    ]


def test_what_is_allowed_is_allowed_with_its_parts() -> None:
    events = [event("whole", "compile", 3.0), *(event(name, parent="whole") for name in "ab"), event("other")]
    for part in events[1:]:
        part.kernel = "part"
    verdict = judged(events, allowances=(Allowance("triton:k", "known"),))
    assert [(allowed["event"], allowed["reason"]) for allowed in verdict.allowed] == [
        *(("whole", "known"), ("a", "known"), ("b", "known"))
    ]
    assert [violation.event.id for violation in verdict.violations if violation.event] == ["other"]


def test_parts_of_what_fails_nobody_are_judged_for_themselves() -> None:
    events = [event("whole", "graph_capture", 3.0), event("part", parent="whole")]
    verdict = judged(events, allowances=())
    assert [violation.event.id for violation in verdict.violations if violation.event] == ["part"]


def test_a_system_s_own_reason_is_the_cause() -> None:
    verdict = judged([event("a", reason="tensor 'x' dtype mismatch")])
    assert verdict.headline == "k (triton) compiled in 1.00 s while serving: tensor 'x' dtype mismatch"


def test_compiles_whose_autotune_run_is_no_violation_stand_for_themselves() -> None:
    verdict = judged(tuning(), fail_on=frozenset({"compile"}))
    assert verdict.headline == "k (triton) compiled in 1.50 s while serving: this kernel was never warmed"
    assert "m.k.warmup('one')" in verdict.text


@pytest.mark.parametrize(
    ("policy", "exceeded"),
    [
        ({"max_events": 1}, ""),
        ({"max_seconds": 3.0}, ""),
        ({"max_seconds": 2.9}, "max_seconds=2.9"),
        ({"max_events": 0, "max_seconds": 9}, "max_events=0"),
        ({"max_events": 0, "max_seconds": 1}, "max_events=0 and max_seconds=1"),
        ({}, ""),
    ],
)
def test_a_budget_counts_an_autotune_run_once(policy: dict[str, Any], exceeded: str) -> None:
    verdict = judged(tuning(), **policy)
    assert verdict.verdict == ("violated" if exceeded or not policy else "allowed")
    if verdict.violated:
        assert verdict.headline.startswith(f"{exceeded} exceeded: k (triton)" if exceeded else "k (triton)")


def test_the_budget_that_was_exceeded_is_named_first() -> None:
    verdict = judged([event("a"), event("b"), event("c", "cache_load")], max_events=1)
    assert verdict.headline == (
        "max_events=1 exceeded: 2 unexpected compiles and 1 unexpected load from disk, 3.00 s together, "
        "first: k (triton) compiled in 1.00 s while serving: this kernel was never warmed"
    )


def test_an_event_without_an_end_is_in_no_budget_of_time() -> None:
    running = event("a", seconds=None, status="running")
    assert judged([running], max_seconds=100).headline.startswith("max_seconds=100 exceeded: k (triton) still comp")
    assert judged([running], max_events=1).verdict == "allowed"


def test_expectations_that_were_not_met_cost_no_time() -> None:
    missed = [Violation(f"nothing that matches {name!r}") for name in "ab"]
    assert Verdict("t", "violated", violations=missed).headline == (
        "2 expected kernels not reached, first: nothing that matches 'a'"
    )
    verdict = judged([event("a")])
    verdict.violations += missed
    assert verdict.headline.startswith("1 unexpected compile and 2 expected kernels not reached, 1.00 s together")


@pytest.mark.parametrize(
    ("kind", "status", "told"),
    [
        ("compile", "running", "still compiling after 5.0 s"),
        ("autotune", "running", "still tuning after 5.0 s"),
        ("autotune", "failed", "failed to tune (within 1.00 s)"),
        ("cache_load", "interrupted", "began to load from disk and never came to an end"),
        ("cache_load", "ok", "loaded from disk in 1.00 s"),
        ("download", "running", "still downloading after 5.0 s"),
    ],
)
def test_a_deed_is_told_by_its_kind(kind: str, status: str, told: str) -> None:
    assert deed(event("a", kind, status=status), 15.0) == told


def test_every_kind_has_its_words() -> None:
    assert set(WORDS) == set(KINDS)
    assert deeds(["compile", "cache_load", "expect", "compile"]) == (
        "2 compiles, 1 load from disk and 1 expected kernel not reached"
    )
    assert deeds(["of another version"] * 2) == "2 events"
    assert (count(1, "launch", "launches"), count(0, "test")) == ("1 launch", "0 tests")
