"""The driver against a real server: order, concurrency, times, streams, and what is told of each request."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time

import pytest

from pytest_jitguard.traffic.http import adrive, drive, start_drive
from pytest_jitguard.traffic.record import Sent, TrafficError
from pytest_jitguard.traffic.requests import Request
from pytest_jitguard.traffic.sweeps import sweep
from tests.traffic.completions_app import WORD, CompletionsApp

pytestmark = pytest.mark.timeout(120)


def test_requests_arrive_in_order_one_at_a_time(url: str, app: CompletionsApp) -> None:
    record = drive(url, sweep([500, 501, 28]), model="m")
    assert [len(got.json["prompt"]) for got in app.got] == [500, 501, 28]
    assert app.most == 1
    assert [sent.number for sent in record.sent] == [1, 2, 3]
    assert [sent.body for sent in record.sent] == app.bodies
    assert app.got[0].json == {
        "model": "m",
        "prompt": app.got[0].json["prompt"],
        "max_tokens": 4,
        "temperature": 0,
        "stream": False,
    }


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_the_url_is_taken_with_or_without_v1(url: str, app: CompletionsApp, ending: str) -> None:
    drive(url + ending, [Request(3), Request(3, endpoint="chat")], model="m")
    assert [got.path for got in app.got] == ["/v1/completions", "/v1/chat/completions"]


@pytest.mark.parametrize("concurrency", [3, 120])  # 120: more than httpx has connections for by default
def test_concurrency_is_reached_and_never_exceeded(url: str, app: CompletionsApp, concurrency: int) -> None:
    app.gathered = concurrency
    drive(url, sweep([4] * (concurrency * 3)), model="m", concurrency=concurrency, timeout=100)
    assert app.most == concurrency
    assert len(app.got) == concurrency * 3


def test_no_request_is_sent_before_its_time_and_later_ones_wait_behind_it(url: str, app: CompletionsApp) -> None:
    requests = [Request(4), Request(5, at=0.3), Request(6), Request(7, at=0.6)]
    record = drive(url, requests, model="m", concurrency=4)
    arrived = sorted(app.got, key=lambda got: got.number)
    assert [len(got.json["prompt"]) for got in arrived] == [4, 5, 6, 7]
    offsets = [sent.started - record.began for sent in record.sent]
    assert offsets == sorted(offsets)
    assert offsets[1] >= 0.3
    assert offsets[3] >= 0.6
    assert all(got.arrived >= record.began + at for got, at in zip(arrived, (0, 0.3, 0.3, 0.6), strict=True))


def test_same_seed_same_bodies_and_another_seed_others(url: str, app: CompletionsApp) -> None:
    requests = [*sweep([20, 20, 7]), Request(9, endpoint="chat"), Request(6, prompt="text", stream=True)]
    for seed in (1, 1, 2):
        drive(url, requests, model="m", seed=seed)
    first, again, other = app.bodies[:5], app.bodies[5:10], app.bodies[10:]
    assert first == again
    assert not set(first) & set(other)


def test_the_next_run_of_the_same_seed_does_not_begin_like_this_one(url: str, app: CompletionsApp) -> None:
    for length in (500, 501, 502, 503):
        drive(url, [Request(length)], model="m")
    assert len({got.json["prompt"][0] for got in app.got}) == 4


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_read_to_its_end(url: str, app: CompletionsApp, endpoint: str, stream: bool) -> None:
    request = Request(12, max_tokens=5, endpoint=endpoint, stream=stream)  # type: ignore[arg-type]
    (sent,) = drive(url, [request], model="m", keep_text=True).sent
    assert (sent.status, sent.tokens, sent.error, sent.text) == (200, 5, "", WORD * 5)
    assert sent.first is not None
    assert sent.ended is not None
    assert sent.started < sent.first <= sent.ended
    assert sent.seconds == sent.ended - sent.started
    assert app.got[0].json["stream"] is stream


def test_the_first_event_of_a_stream_is_timed_not_its_end(url: str, app: CompletionsApp) -> None:
    app.misdeeds[5] = "stall"
    with start_drive(url, [Request(3, max_tokens=5, stream=True)], model="m") as driving:
        _until(lambda: app.in_flight == 1)
        time.sleep(0.3)
        released = time.monotonic()
        app.release.set()
    (sent,) = driving.wait().sent
    assert sent.first is not None
    assert sent.ended is not None
    assert sent.first < released < sent.ended


def test_answers_are_not_kept_unless_asked_for(url: str) -> None:
    assert drive(url, [Request(3)], model="m").sent[0].text is None


def test_headers_and_the_requests_id_are_sent(url: str, app: CompletionsApp) -> None:
    record = drive(url, sweep([3, 4]), model="m", headers={"Authorization": "Bearer x"})
    assert [got.headers["authorization"] for got in app.got] == ["Bearer x"] * 2
    assert [got.headers["x-request-id"] for got in app.got] == [sent.id for sent in record.sent]
    assert len({sent.id for sent in record.sent}) == 2
    drive(url, [Request(3)], model="m", headers={"x-request-id": "mine"})
    assert app.got[-1].headers["x-request-id"] == "mine"


def test_bodies_of_ones_own_and_extra_fields(url: str, app: CompletionsApp) -> None:
    own = {"prompt": [1, 2, 3], "max_tokens": 2, "suffix": "ü\ud800"}
    requests = [
        Request(0, body=own),
        Request(0, body={**own, "model": "other"}),
        Request(3, extra={"ignore_eos": True}),
    ]
    drive(url, requests, model="m")
    assert [got.json.get("model") for got in app.got] == ["m", "other", "m"]
    assert app.got[1].json == {**own, "model": "other"}
    assert app.got[2].json["ignore_eos"] is True


def test_the_observer_hears_each_request_start_and_end(url: str) -> None:
    heard: list[Sent] = []
    drive(url, sweep([3, 4], label="edge"), model="m", observer=heard.append)
    assert [(sent.number, sent.ended is None) for sent in heard] == [(1, True), (1, False), (2, True), (2, False)]
    assert [str(sent) for sent in heard[1:3]] == ["request 1 (edge, 3 tokens)", "request 2 (edge, 4 tokens)"]
    assert [sent.status for sent in heard] == [None, 200, None, 200]


def test_what_the_observer_raises_ends_the_run(url: str, app: CompletionsApp) -> None:
    def observe(sent: Sent) -> None:
        raise OSError("the journal's disk is full")

    with pytest.raises(OSError, match="disk is full"):
        drive(url, [Request(3)], model="m", observer=observe)


def test_an_empty_list_is_a_run_of_nothing(url: str, app: CompletionsApp) -> None:
    assert drive(url, [], model="m").sent == []
    assert app.got == []


def test_a_test_may_go_on_while_its_requests_are_answered(url: str, app: CompletionsApp) -> None:
    app.misdeeds[7] = "hang"
    driving = start_drive(url, sweep([3, 4, 5], max_tokens=7), model="m", concurrency=2)
    _until(lambda: driving.in_flight == 2 and app.in_flight == 2)
    assert not driving.done
    with pytest.raises(TrafficError, match=r"^3 of 3 requests not ended after 0.01 s, 2 of them in flight$"):
        driving.wait(0.01)
    app.release.set()
    assert len(driving.wait(60).sent) == 3
    assert (driving.done, driving.in_flight) == (True, 0)


def test_a_run_is_stopped_when_its_block_raises(url: str, app: CompletionsApp) -> None:
    app.misdeeds[7] = "hang"
    heard: list[Sent] = []
    with pytest.raises(KeyError):
        with start_drive(url, sweep([3, 4, 5], max_tokens=7), model="m", observer=heard.append) as driving:
            _until(lambda: app.in_flight == 1)
            raise KeyError
    assert driving.done
    assert [(sent.number, sent.error) for sent in heard] == [(1, ""), (1, "stopped before its answer was complete")]
    assert [sent.number for sent in driving.stop().sent] == [1]


def test_an_interrupted_drive_leaves_nothing_in_flight(url: str, app: CompletionsApp) -> None:
    code = f"""
import os, signal, threading
from pytest_jitguard.traffic.http import drive
from pytest_jitguard.traffic.requests import Request

def observe(sent):
    print(sent.error, flush=True)
    if sent.ended is None:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    drive({url!r}, [Request(3, max_tokens=7)], model="m", observer=observe)
except KeyboardInterrupt:
    print("interrupted")
"""
    app.misdeeds[7] = "hang"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout == "\nstopped before its answer was complete\ninterrupted\n", ran.stderr


def test_it_works_inside_a_running_event_loop(url: str, app: CompletionsApp) -> None:
    async def main() -> tuple[int, int]:
        blocking = drive(url, sweep([3, 4]), model="m")
        awaited = await adrive(url, sweep([3, 4]), model="m", concurrency=2)
        return len(blocking.sent), len(awaited.sent)

    assert asyncio.run(main()) == (2, 2)


def test_the_awaited_variant_leaves_the_loop_free_and_can_be_cancelled(url: str, app: CompletionsApp) -> None:
    app.misdeeds[7] = "hang"
    heard: list[Sent] = []

    async def main() -> None:
        task = asyncio.create_task(adrive(url, [Request(3, max_tokens=7)], model="m", observer=heard.append))
        while not app.in_flight:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert [sent.error for sent in heard] == ["", "stopped before its answer was complete"]


def test_this_machine_is_not_asked_through_a_proxy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for host in ("127.0.0.1", "localhost"):
        assert drive(url.replace("127.0.0.1", host), [Request(3)], model="m").sent[0].status == 200


def test_the_password_in_an_address_is_sent_and_not_kept(url: str, app: CompletionsApp) -> None:
    record = drive(url.replace("//", "//me:secret@"), [Request(3)], model="m")
    assert app.got[0].headers["authorization"].startswith("Basic ")
    assert record.url == f"{url}/v1"


def test_httpx_is_imported_when_it_is_needed_and_its_absence_told() -> None:
    code = """
import sys
import pytest_jitguard.traffic.http as http
from pytest_jitguard.traffic.requests import Request
assert not {"httpx", "pytest"} & set(sys.modules)
sys.modules["httpx"] = None
try:
    http.drive("http://127.0.0.1:9", [Request(3)], model="m")
except ModuleNotFoundError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout.startswith("driving HTTP traffic needs httpx ("), ran.stderr
    assert ran.stdout.endswith("): pip install 'pytest-jitguard[http]'\n")


def test_the_openai_client_speaks_with_the_tests_server(url: str, app: CompletionsApp) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        whole = client.completions.create(model="m", prompt=[1, 2, 3], max_tokens=2)
        streamed = list(client.completions.create(model="m", prompt="a b", max_tokens=2, stream=True))
        chat = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "a b c d"}], max_tokens=3
        )
        pieces = list(
            client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "a"}], max_tokens=3, stream=True
            )
        )
    assert whole.choices[0].text == WORD * 2
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == 3
    assert "".join(chunk.choices[0].text for chunk in streamed) == WORD * 2
    assert chat.choices[0].message.content == WORD * 3
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == WORD * 3
    assert [json.loads(body)["max_tokens"] for body in app.bodies] == [2, 2, 3, 3]


def _until(reached: object) -> None:
    assert callable(reached)
    limit = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < limit, f"not reached; threads: {threading.enumerate()}"
        time.sleep(0.005)
