"""The recorder: what reaches the sink, in what order, from how many threads."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.keys import Component, SpecializationKey
from pytest_jitguard.core.recorder import Recorder

KEY = SpecializationKey((Component("n", "argument", "i32", "1"),))


def test_each_record_is_in_the_sink_before_anything_else_hears_of_it() -> None:
    seen: list[str] = []
    recorder = Recorder("im", lambda record: seen.append(f"sink {record['record']} {record['event']}"))
    recorder.on_begin = lambda event: seen.append(f"on_begin {event.id}")
    recorder.on_end = lambda event: seen.append(f"on_end {event.id}")
    recorder.on_finished = lambda event: seen.append(f"on_finished {event.id}")
    first, second = recorder.begin("s", "k", "m"), recorder.begin("s", "k", "m")
    recorder.end(second)
    recorder.finished(second)
    recorder.end(first, status="failed")
    assert seen == [
        *("sink begin im-1", "on_begin im-1", "sink begin im-2", "on_begin im-2"),
        *("sink end im-2", "on_end im-2", "on_finished im-2", "sink end im-1", "on_end im-1"),
    ]
    assert recorder.events == [first, second]


def test_an_event_says_where_it_began() -> None:
    recorder = Recorder("im", lambda record: None, host="h", role="gw0", rank=3)
    before = time.monotonic()
    event = recorder.begin("s", "k", "m", kind="autotune", stack=("a:1:f",), parent="im-0")
    assert before <= event.started <= time.monotonic()
    assert (event.host, event.role, event.rank, event.thread) == ("h", "gw0", 3, threading.current_thread().name)
    assert (event.kind, event.stack, event.parent) == ("autotune", ("a:1:f",), "im-0")
    assert (event.status, event.ended, event.seconds) == ("running", None, None)
    assert recorder.begin("s", "k", "m", started=1.5).started == 1.5


def test_what_begins_inside_an_event_on_its_thread_is_a_part_of_it() -> None:
    recorder = Recorder("im", lambda record: None)
    outer = recorder.begin("a", "k", "m")
    with recorder.inside(outer):
        inner = recorder.begin("b", "k", "m")
        with recorder.inside(inner):
            innermost = recorder.begin("c", "k", "m")
        given = recorder.begin("c", "k", "m", parent="im-0")
        elsewhere: list[CompileEvent] = []
        thread = threading.Thread(target=lambda: elsewhere.append(recorder.begin("d", "k", "m")))
        thread.start()
        thread.join()
    after = recorder.begin("e", "k", "m")
    events = (outer, inner, innermost, given, *elsewhere, after)
    assert [event.parent for event in events] == [None, outer.id, inner.id, "im-0", None, None]
    assert recorder.enclosing() is None


def test_an_event_that_raises_leaves_nothing_to_be_a_part_of() -> None:
    recorder = Recorder("im", lambda record: None)
    with pytest.raises(KeyError), recorder.inside(recorder.begin("a", "k", "m")):
        raise KeyError
    assert recorder.begin("b", "k", "m").parent is None


def test_a_second_witness_is_no_second_event() -> None:
    records: list[Any] = []
    recorder = Recorder("im", records.append)
    event = recorder.begin("a", "k", "m")
    recorder.corroborate(event, "toolchain")
    assert [record["record"] for record in records] == ["begin"]
    recorder.end(event, reason="it was not there", kernel="k2")
    recorder.corroborate(event, "toolchain")
    recorder.corroborate(event, "cache folders")
    assert [record["record"] for record in records] == ["begin", "end", "end"]
    read = CompileEvent.from_begin(records[0])
    read.finish(records[-1])
    assert (read.witnesses, read.reason, read.kernel) == (("toolchain", "cache folders"), "it was not there", "k2")
    old = {name: value for name, value in records[1].items() if name not in ("reason", "witnesses")}
    read.finish(old)
    assert (read.witnesses, read.reason) == ((), ""), "a journal of the first release has neither"


def test_the_end_replaces_what_was_guessed_and_keeps_what_it_does_not_know() -> None:
    records: list[Any] = []
    recorder = Recorder("im", records.append)
    event = recorder.begin("s", "k", "m", started=1.0)
    recorder.end(
        event, kind="cache_load", ended=3.0, key=KEY, artifact_hash="h", stages={"ptx": 1.0}, detail="d", cure="c"
    )
    assert (event.kind, event.status, event.seconds, event.key) == ("cache_load", "ok", 2.0, KEY)
    assert records[1] == event.end_record()
    recorder.end(event, status="failed", ended=4.0)
    assert (event.kind, event.status, event.seconds) == ("cache_load", "failed", 3.0)
    assert (event.key, event.artifact_hash, event.stages) == (KEY, "h", {"ptx": 1.0})
    assert (event.detail, event.cure) == ("d", "c")


def test_what_is_raised_at_the_very_last_comes_out_and_nothing_is_lost() -> None:
    records: list[Any] = []
    recorder = Recorder("im", records.append)
    event = recorder.begin("s", "k", "m")
    recorder.end(event)
    recorder.finished(event)  # nobody listens

    def complain(event: CompileEvent) -> None:
        raise RuntimeError(event.id)

    recorder.on_finished = complain
    with pytest.raises(RuntimeError, match="im-1"):
        recorder.finished(event)
    assert [record["record"] for record in records] == ["begin", "end"]


def test_many_threads_write_one_record_at_a_time_and_each_beginning_before_its_end() -> None:
    records: list[tuple[str, str]] = []
    at_work: list[str] = []
    crowd: list[int] = []

    def sink(record: Any) -> None:
        at_work.append(threading.current_thread().name)
        time.sleep(0.0002)  # lets others in, if they can get in
        crowd.append(len(at_work))
        records.append((record["record"], record.get("event", "")))
        at_work.pop()

    recorder = Recorder("im", sink)
    together = threading.Barrier(8)

    def work() -> None:
        together.wait()
        for _ in range(20):
            event = recorder.begin("s", "k", "m")
            recorder.note({"record": "open"})
            recorder.end(event)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(crowd) == {1}
    assert len({event.id for event in recorder.events}) == 160
    assert [event.id for event in recorder.events] == [id for kind, id in records if kind == "begin"]
    assert sorted(records) == sorted(
        [("open", "")] * 160 + [(kind, event.id) for event in recorder.events for kind in ("begin", "end")]
    )
    assert all(records.index(("begin", e.id)) < records.index(("end", e.id)) for e in recorder.events)


def test_a_sink_may_be_called_from_within_a_hook_of_the_same_thread() -> None:
    records: list[str] = []
    recorder = Recorder("im", lambda record: records.append(record["record"]))
    recorder.on_begin = lambda event: recorder.note({"record": "open"})
    recorder.begin("s", "k", "m")
    assert records == ["begin", "open"]
