"""Events of several processes: one binary seen twice, and how long ranks stood still."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.kinship import doubles_of, mark_origins
from pytest_jitguard.core.policy import Policy
from pytest_jitguard.core.stalls import GAP, over_budget, stalls


def event(id: str, **facts: Any) -> CompileEvent:
    given = {"started": 1.0, "ended": 2.0, "artifact_hash": "h", "scope": "server:x#1", "pid": 1, **facts}
    return CompileEvent(id, "triton", "k", "m", **given)


@pytest.mark.parametrize(
    ("built", "loaded", "origin"),
    [
        ({}, {"pid": 2}, "warmup"),
        ({}, {"pid": 1}, ""),  # its own process built it and has lost it
        ({}, {"pid": 2, "artifact_hash": "other"}, ""),
        ({}, {"pid": 2, "scope": "server:y#1"}, ""),
        ({"scope": ""}, {"pid": 2, "scope": ""}, ""),
        ({}, {"pid": 2, "kind": "compile"}, ""),
        ({"kind": "cache_load"}, {"pid": 2}, ""),  # found on disk by the warmup too: nobody built it
    ],
)
def test_a_load_of_what_the_server_s_warmup_built_elsewhere(built: Any, loaded: Any, origin: str) -> None:
    load = event("b", **{"kind": "cache_load", **loaded})
    mark_origins([load], [event("a", **built)])
    assert load.origin == origin


def test_such_a_load_fails_only_where_asked() -> None:
    load = event("b", kind="cache_load", origin="warmup")
    assert not Policy().forbids(load)
    assert Policy(fail_on=frozenset(["cache_load:warmup"])).forbids(load)
    assert not Policy(fail_on=frozenset(["cache_load:warmup"])).forbids(event("c", kind="cache_load"))


def test_what_a_compile_worker_built_for_another_process_is_one_event() -> None:
    worker, asker = event("w", role="compile worker", pid=2), event("a")
    assert set(doubles_of([worker, asker])) == {"w"}
    assert set(doubles_of([worker])) == set(), "nobody else tells of it"
    assert set(doubles_of([worker, event("a", artifact_hash="other")])) == set()
    nameless = [event("w", role="compile worker", artifact_hash=None), event("a", artifact_hash=None)]
    assert set(doubles_of(nameless)) == set()


def test_events_close_together_in_one_process_are_one_stall() -> None:
    first, second = event("a", rank=3, world=8), event("b", started=2.0 + GAP / 2, ended=9.0, rank=3, world=8)
    apart = event("c", started=9.2, ended=9.9, rank=3, world=8)
    elsewhere = event("d", started=1.5, ended=3.0, pid=2)
    longest, *rest = stalls([apart, second, elsewhere, first])
    assert (longest.seconds, longest.events, longest.ranks) == (8.0, 2, 8)
    assert str(longest) == "rank 3 of 8 stood still for 8.00 s (2 events, first k): up to 8.00 s × 8 GPUs"
    assert sorted(stall.seconds for stall in rest) == pytest.approx([0.7, 1.5])


def test_a_stall_within_another_does_not_shorten_it() -> None:
    (stall,) = stalls([event("a", ended=5.0), event("b", started=2.0, ended=3.0)])
    assert stall.seconds == 4.0


def test_parts_of_an_event_and_what_never_ended_make_no_stall_of_their_own() -> None:
    (stall,) = stalls([event("a", ended=5.0), event("b", parent="a"), event("c", ended=None)])
    assert stall.events == 1
    assert stalls([]) == []


def test_budgets_that_are_exceeded_are_named_the_tightest_first() -> None:
    longest = stalls([event("a", ended=31.0)])[0]
    budgets = {"watchdog": 600.0, "request_timeout": 20.0, "liveness_probe": 10.0}
    assert over_budget(longest, budgets) == ["liveness_probe (10 s)", "request_timeout (20 s)"]
    assert over_budget(None, budgets) == []
