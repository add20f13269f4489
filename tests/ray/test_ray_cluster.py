"""A guard and the nodes of a real Ray cluster that share neither files nor clocks with it."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.processes.journal import read_folder
from pytest_jitguard.processes.relatives import Relatives
from tests.ray.conftest import OFFSETS, Run
from tests.ray.ray_jobs import GUARD

pytestmark = pytest.mark.ray

EXACT = 0.1
"""Seconds: more than half a round trip takes on a busy machine, far less than the clocks differ by."""


@pytest.fixture(scope="session")
def events(run: Run) -> dict[str, CompileEvent]:
    return {event.kernel: event for event in Relatives(run.folder, GUARD).poll()}


def _offset(run: Run, event: CompileEvent) -> float:
    """The last offset in the journal of the process that an event happened in."""
    path = next(p for p in run.folder.glob("*.jsonl") if f'"event":"{event.id}"' in p.read_text())
    told = [json.loads(line) for line in path.read_text().splitlines()]
    return next((r["offset"] for r in reversed(told) if r["record"] == "clock"), 0.0)


@pytest.mark.parametrize(
    "kernel", ["actor_head", "actor_one", "actor_two", "task_one", "nested_two", "detached", "by_itself"]
)
def test_what_compiled_on_a_node_lies_in_the_drivers_window_around_the_call(
    kernel: str, run: Run, events: dict[str, CompileEvent]
) -> None:
    opened, closed = run.facts["windows"][kernel]
    event = events[kernel]
    assert event.ended is not None
    assert opened - EXACT < event.started <= event.ended < closed + EXACT


@pytest.mark.parametrize("place", ["one", "two"])
def test_without_the_correction_it_would_lie_elsewhere(place: str, run: Run, events: dict[str, CompileEvent]) -> None:
    if not run.cluster.clocks:
        pytest.skip("time namespaces are not permitted here (unshare --time), so clocks cannot differ")
    event = events[f"actor_{place}"]
    opened, closed = run.facts["windows"][f"actor_{place}"]
    offset = _offset(run, event)
    assert offset == pytest.approx(-OFFSETS[place], abs=0.5)
    assert not opened <= event.started - offset <= closed


def test_a_clock_is_known_before_the_first_event(run: Run) -> None:
    mirrors = sorted(run.folder.glob("ray-*.jsonl"))
    assert mirrors
    for path in mirrors:
        hello, clock = (json.loads(line) for line in path.read_text().splitlines()[:2])
        assert (hello["record"], clock["record"]) == ("hello", "clock")
        assert 0 < clock["error"] < 1
        assert path.stat().st_mode & 0o777 == 0o600


def test_nodes_keep_journals_in_a_private_folder_that_the_driver_does_not_see(run: Run) -> None:
    looks = run.facts["looks"]
    for place in ("one", "two"):
        assert looks[place]["mode"] == 0o700
        assert not set(looks[place]["folder"]) & {path.name for path in run.folder.iterdir()}
    assert any(name.endswith(".jsonl") for name in looks["one"]["folder"])


def test_the_heads_journals_are_read_where_they_are(run: Run, events: dict[str, CompileEvent]) -> None:
    heads = [text.path.name for text in read_folder(run.folder) if text.hello["host"] == events["actor_head"].host]
    assert heads
    assert not any(name.startswith("ray-") for name in heads)


def test_both_doors_lead_in(run: Run) -> None:
    found = {place: look["start_up_file"] for place, look in run.facts["looks"].items()}
    assert found == {"head": False, "one": True, "two": False, "detached": True}


def test_variables_of_the_user_the_guard_and_the_actor_all_arrive(run: Run) -> None:
    both = {"OURS": "ours", "THEIRS": "theirs"}
    assert run.facts["looks"]["one"]["variables"] == {**both, "ITS_OWN": None}
    assert run.facts["looks"]["detached"]["variables"] == {**both, "ITS_OWN": "its own"}


def test_none_of_fifty_events_is_lost_or_told_twice(run: Run) -> None:
    records = [record for text in read_folder(run.folder) for record in text.records]
    for kind in ("begin", "end"):
        told = Counter(r["kernel"] for r in records if r["record"] == kind and r["kernel"].startswith("many_"))
        assert told == Counter(f"many_{number}" for number in range(50))


def test_nothing_that_was_mirrored_is_torn(run: Run) -> None:
    assert [line for text in read_folder(run.folder) for line in text.rejected] == []


def test_the_begin_of_a_compile_survives_the_kill_of_its_actor(run: Run, events: dict[str, CompileEvent]) -> None:
    assert run.facts["killed_seen"]
    assert events["killed"].ended is None


def test_the_last_is_read_before_the_job_ends_and_a_second_job_goes_on(
    run: Run, events: dict[str, CompileEvent]
) -> None:
    assert run.facts["seen_before_shutdown"]
    assert events["detached_again"].id.partition("-")[0] == events["detached"].id.partition("-")[0]


def test_readers_do_not_report_themselves(run: Run) -> None:
    reporting = {(text.hello["host"], text.hello["pid"]) for text in read_folder(run.folder)}
    for place in ("one", "two"):
        look = run.facts["looks"][place]
        assert look["readers"]
        assert not {(look["host"], pid) for pid in look["readers"]} & reporting


def test_a_node_that_dies_is_named_and_what_came_from_it_stays(run: Run, events: dict[str, CompileEvent]) -> None:
    assert run.facts["lost"] == ["two"]
    assert run.facts["fetch_after_loss"] < 30
    assert "after_many" in events
    assert [text for text in run.facts["said"] if "two" in text and "lost" in text]


def test_a_head_that_dies_is_named_once_and_nothing_waits_for_it(run: Run) -> None:
    (said,) = run.facts["said_without_head"]
    assert "the head of the Ray cluster" in said
    assert run.facts["fetch_without_head"] < 15, "Ray itself would wait for a minute, then end the process"


def test_readers_that_hang_cost_no_more_than_was_said_and_nothing_is_lost(run: Run) -> None:
    assert run.facts["stalled_fetch"] < 15
    assert run.facts["stalled_seen"]
    assert len(run.facts["late"]) == 2, "each node is named once"


def test_readers_that_die_are_replaced(run: Run) -> None:
    assert run.facts["readers_killed_seen"]


def test_a_job_that_sets_our_variable_is_started_and_told(run: Run) -> None:
    assert [text for text in run.facts["refused"] if "JITGUARD_PARENT" in text and "do not report" in text]


def test_a_job_that_began_before_the_guard_is_told(run: Run) -> None:
    assert [text for text in run.facts["too_late"] if "before the guard was on" in text]


def test_nothing_else_went_wrong(run: Run) -> None:
    others = [*run.facts["earlier"], *(text for text in run.facts["said"] if "node two" not in text)]
    assert others == []
    assert run.facts["undone"]
