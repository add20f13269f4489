"""The record of a run: kept to the byte, private, and sent again as it was."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from pytest_jitguard.traffic.http import drive, replay
from pytest_jitguard.traffic.record import Record, RecordError, TrafficError
from pytest_jitguard.traffic.requests import Request
from pytest_jitguard.traffic.sweeps import sweep
from tests.traffic.completions_app import CompletionsApp

pytestmark = pytest.mark.timeout(120)

REQUESTS = [
    Request(20),
    Request(9, endpoint="chat", stream=True, at=0.4, label="ü\u2028"),
    Request(0, body={"prompt": [1, 2], "user": "\ud800 😀"}),
]


def test_a_record_comes_back_as_it_was_saved(url: str, app: CompletionsApp, tmp_path: Path) -> None:
    app.misdeeds[5] = "500"
    record = drive(url, [*REQUESTS, Request(3, 5)], model="m", seed=3, concurrency=2, check=False, keep_text=True)
    record.save(tmp_path / "run.jsonl")
    assert Record.load(tmp_path / "run.jsonl") == record


def test_a_record_is_private(url: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    drive(url, [Request(3)], model="m", headers={"Authorization": "Bearer secret"}).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "secret" not in path.read_text()
    assert "text" not in json.loads(path.read_text().splitlines()[1])


def test_a_replay_sends_the_same_bytes_at_the_same_offsets(url: str, app: CompletionsApp, tmp_path: Path) -> None:
    drive(url, REQUESTS, model="m", seed=3, concurrency=2).save(tmp_path / "run.jsonl")
    record = Record.load(tmp_path / "run.jsonl")
    assert record.sent[1].started - record.began >= 0.4
    again = replay(record, url)
    first, second = (sorted(arrived, key=lambda got: got.number) for arrived in (app.got[:3], app.got[3:]))
    assert [got.body for got in first] == [got.body for got in second] == [sent.body for sent in record.sent]
    assert [got.path for got in first] == [got.path for got in second]
    for before, after in zip(record.sent, again.sent, strict=True):
        assert after.started - again.began >= before.started - record.began
    assert (again.model, again.seed, again.concurrency) == ("m", 3, 2)
    assert [sent.tokens for sent in again.sent] == [sent.tokens for sent in record.sent]


def test_a_replay_keeps_the_gaps_that_a_slow_answer_made(url: str, app: CompletionsApp) -> None:
    app.gathered = 2
    first = drive(url, sweep([3, 4]), model="m", check=False, timeout=0.3)  # each waits for another one: given up
    app.gathered = 1
    again = replay(first, url)
    assert again.sent[1].started - again.began >= 0.3


def test_a_replay_tells_failures_and_takes_headers(url: str, app: CompletionsApp) -> None:
    record = drive(url, sweep([3, 4]), model="m")
    app.misdeeds[4] = "500"
    with pytest.raises(TrafficError, match=r"^2 of 2 requests failed, first: request 1 "):
        replay(record, url, headers={"Authorization": "Bearer x"})
    assert app.got[-1].headers["authorization"] == "Bearer x"
    assert [sent.status for sent in replay(record, url, check=False).sent] == [500, 500]


def test_saving_over_an_older_record_leaves_nothing_of_it(url: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    drive(url, sweep([3, 4, 5]), model="m").save(path)
    drive(url, sweep([3]), model="m").save(path)
    assert len(Record.load(path).sent) == 1


HEADER = '{"record":"traffic","schema":1,"url":"http://h/v1","model":"m","seed":0,"concurrency":1,"began":1.5}\n'
SENT = (
    '{"id":"a-1","number":1,"started":1.6,"first":null,"ended":null,"status":null,"tokens":null,"error":"",'
    '"request":{"prompt_tokens":3},"body":"{}"}\n'
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no record of traffic: its first line is b''"),
        ("{", "is no record of traffic"),
        ('{"prompt_tokens": 3}\n', "is no record of traffic"),
        (HEADER.replace('"schema":1', '"schema":2'), "has schema 2, this version reads 1"),
        (HEADER.replace('"seed":0,', ""), ":1: seed must be of type int, not None"),
        (HEADER + SENT[:40], ":2: "),
        (HEADER + SENT.replace('"number":1,', ""), ":2: the request has no 'number'"),
        (HEADER + SENT + SENT.replace("1.6", '"soon"'), ":3: started must be of type float, not 'soon'"),
        (HEADER + SENT.replace('"prompt_tokens":3', '"prompt_tokens":-3'), ":2: prompt_tokens must be a whole number"),
        (HEADER + "[1]\n", ":2: "),
    ],
)
def test_a_file_that_is_no_record_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    with pytest.raises(RecordError) as caught:
        Record.load(path)
    assert str(caught.value).startswith(f"{path}{'' if said.startswith(':') else ' '}{said}")


def test_the_example_of_a_record_is_one(tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_text(HEADER + SENT)
    (sent,) = Record.load(tmp_path / "run.jsonl").sent
    assert (sent.id, sent.body, sent.started, sent.seconds) == ("a-1", b"{}", 1.6, None)
