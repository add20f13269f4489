"""What goes wrong on the way is told in the first line, with the request it happened to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from pytest_jitguard.traffic.http import drive
from pytest_jitguard.traffic.record import TrafficError
from pytest_jitguard.traffic.requests import Request, RequestError
from pytest_jitguard.traffic.sweeps import sweep
from tests.traffic.completions_app import CompletionsApp

pytestmark = pytest.mark.timeout(120)


def _told(url: str, requests: list[Request], **how: Any) -> list[str]:
    with pytest.raises(TrafficError) as caught:
        drive(url, requests, model="m", **how)
    return str(caught.value).splitlines()


def test_the_first_line_tells_how_many_failed_and_the_first(url: str, app: CompletionsApp) -> None:
    app.misdeeds.update({5: "500", 6: "400"})
    requests = [Request(8), Request(28), Request(500, 5), Request(1, 6, label="lone"), *sweep([7, 7, 7, 7])]
    assert _told(url, requests) == [
        "2 of 8 requests failed, first: request 3 (500 tokens): HTTP 500: the engine said 500",
        "  request 4 (lone, 1 token): HTTP 400: the engine said 400",
    ]
    assert len(app.got) == 8, "the others are sent all the same"


def test_failures_are_only_recorded_where_asked(url: str, app: CompletionsApp) -> None:
    app.misdeeds[5] = "500"
    record = drive(url, [Request(8), Request(9, 5)], model="m", check=False)
    assert [(sent.status, sent.error) for sent in record.sent] == [(200, ""), (500, "HTTP 500: the engine said 500")]


def test_many_failures_are_told_in_few_lines(url: str, app: CompletionsApp) -> None:
    app.misdeeds[4] = "500"
    lines = _told(url, sweep(range(1, 31)), concurrency=4)
    assert lines[0].startswith("30 of 30 requests failed, first: request ")
    assert len(lines) == 11
    assert lines[-1] == "  and 20 more"


def test_the_error_holds_the_record(url: str, app: CompletionsApp) -> None:
    app.misdeeds[5] = "500"
    with pytest.raises(TrafficError) as caught:
        drive(url, [Request(8), Request(9, 5)], model="m")
    assert [sent.status for sent in caught.value.record.sent] == [200, 500]


@pytest.mark.parametrize(
    ("misdeed", "stream", "said"),
    [
        ("break", True, "the connection broke after 2 events of its stream (RemoteProtocolError: "),
        ("break", False, "the connection broke in the middle of its answer (RemoteProtocolError: "),
        ("no done", True, "the stream ended without [DONE], after 2 events"),
        ("error event", True, "HTTP 200, but the answer is an error: out of memory"),
        ("html", False, "the answer is no JSON object: <html>a proxy's page</html>"),
        ("html", True, "no stream of events but text/html: <html>a proxy's page</html>"),
        ("500", True, "HTTP 500: the engine said 500"),
        ("hang", False, "no complete answer within 0.5 s (given up before the answer's first byte)"),
        ("stall", True, "no complete answer within 0.5 s (given up after 2 events of its stream)"),
    ],
)
def test_an_answer_that_is_none(url: str, app: CompletionsApp, misdeed: str, stream: bool, said: str) -> None:
    app.misdeeds[5] = misdeed
    timeout = 0.5 if misdeed in ("hang", "stall") else 60
    (line,) = _told(url, [Request(9, 5, stream=stream)], timeout=timeout)
    assert line.startswith(f"1 of 1 request failed, first: request 1 (9 tokens): {said}")


def test_a_server_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    lines = _told(f"http://127.0.0.1:{port}", sweep([3, 4]))
    begun = "2 of 2 requests failed, first: request 1 (3 tokens): no connection to "
    assert lines[0].startswith(f"{begun}http://127.0.0.1:{port}/v1: ")
    assert lines[0].endswith("(is the server running?)")


def test_a_server_that_hangs_up_before_it_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as rude:
        rude.settimeout(30)

        def serve() -> None:
            connection, _ = rude.accept()
            connection.recv(65536)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        (line,) = _told(f"http://127.0.0.1:{rude.getsockname()[1]}", [Request(3)])
        thread.join()
    assert "the connection broke before the answer's first byte (" in line


Arguments = dict[str, Any]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"url": "127.0.0.1:8000"},
            "url must be a server's address like 'http://127.0.0.1:8000', not '127.0.0.1:8000'",
        ),
        ({"url": "http://"}, "url must be a server's address"),
        ({"url": "http://h:port"}, "url must be a server's address"),
        ({"url": None}, "url must be a server's address like 'http://127.0.0.1:8000', not None"),
        ({"model": ""}, "model must be the name under which the server serves its model, not ''"),
        ({"concurrency": 0}, "concurrency must be a whole number of at least 1, not 0"),
        ({"concurrency": 1.5}, "concurrency must be a whole number of at least 1, not 1.5"),
        ({"timeout": 0}, "timeout must be seconds, more than 0, not 0"),
        ({"timeout": None}, "timeout must be seconds, more than 0, not None"),
        ({"requests": [500]}, "requests must be a list of Request, not of 500"),
        ({"vocabulary": [5]}, "vocabulary must have at least 2 entries"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: Arguments, said: str) -> None:
    fitting: Arguments = {"url": "http://127.0.0.1:9", "requests": [Request(3)], "model": "m"}
    with pytest.raises(RequestError) as caught:
        _drive(**{**fitting, **arguments})
    assert str(caught.value).startswith(said)


_drive: Callable[..., object] = drive
