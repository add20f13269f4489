"""What known servers tell: the end of their own warmup in their log, and their requests in flight."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pytest_jitguard.servers.adapters import ADAPTERS, in_flight, running_requests
from pytest_jitguard.servers.logs import Mark, tail
from pytest_jitguard.servers.server import ServerError, wait_idle
from tests.servers.smalls import Small

RECORDED = Path(__file__).parent / "sglang.log"
"""Lines as SGLang's sources format them, up to the moment before it is ready to roll."""

ROLL = "The server is fired up and ready to roll!"

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m {x} y"} 2.0
vllm:num_requests_running{engine="1",model_name="m {x} y"} 1.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m {x} y"} 4.0
vllm:num_requests_waiting{engine="1",model_name="m {x} y"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 100.0
vllm:num_requests_running_total 100 1395066363000
"""

SGLANG = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 3.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 1.0
sglang:num_grammar_queue_reqs{model_name="m"} 50.0
"""


def test_sglang_is_warmed_when_it_is_ready_to_roll_and_not_before(small: Small) -> None:
    flags = (f"--spit={RECORDED}", f"--mark=[2026-09-14 10:21:27] {ROLL}", "--mark-after=2")
    with small.server(*flags, kind="sglang") as server:
        assert server.ready_at is not None
        assert server.warmed_at is not None
        assert server.warmed_at > server.ready_at
        assert ROLL in server.tail(3)


def test_the_recorded_lines_before_it_do_not_look_like_it() -> None:
    assert not Mark(RECORDED, ADAPTERS["sglang"].mark).look()
    assert ADAPTERS["sglang"].mark == ROLL


def test_a_mark_of_an_earlier_server_in_the_same_log_does_not_count(small: Small) -> None:
    small.log.write_text(f"{ROLL}\n")
    with pytest.raises(ServerError, match="its log never said 'The server is fired up"):
        with small.server(kind="sglang", timeout=3):
            pass


def test_sglang_that_never_says_so_is_an_error_with_the_remedy(small: Small) -> None:
    with pytest.raises(ServerError) as error, small.server(f"--spit={RECORDED}", kind="sglang", timeout=3):
        pass
    first = str(error.value).splitlines()[0]
    assert first == (
        "server 'small' was not ready within 3 s: it answered, but its log never said 'The server is fired up and "
        "ready to roll!', the end of SGLang's own warmup (if --log-level silences that, say kind='none')"
    )
    assert "POST /generate" in str(error.value)


def test_sglang_that_dies_in_its_own_warmup(small: Small) -> None:
    with pytest.raises(ServerError, match="was killed by SIGKILL, which we did not send"):
        with small.server("--kill-after=3", kind="sglang"):
            pass


def test_vllm_is_warmed_when_it_is_ready(small: Small) -> None:
    with small.server(kind="vllm") as server:
        assert server.warmed_at == server.ready_at


def test_vllm_that_says_it_started_hints_at_the_url(small: Small) -> None:
    mark = "--mark=(APIServer pid=2417) INFO:     Application startup complete."
    with pytest.raises(ServerError, match=r"status 404; its log says 'Application startup complete.', so look at url="):
        with small.server("--status=404", mark, kind="vllm", timeout=3):
            pass


def test_requests_in_flight_are_added_up_over_engines() -> None:
    assert in_flight(VLLM, ADAPTERS["vllm"].gauges) == 7
    assert in_flight(SGLANG, ADAPTERS["sglang"].gauges) == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vllm:num_requests_running 0\n",
        "vllm:num_requests_running 0\nvllm:num_requests_waiting nan\n",
        "vllm:num_requests_running 0\nvllm:num_requests_waiting +Inf\n",
        "vllm:num_requests_running 0\nvllm:num_requests_waiting many\n",
        "<html>vllm:num_requests_running 0</html>",
    ],
)
def test_what_the_metrics_do_not_say_is_not_guessed(text: str) -> None:
    assert in_flight(text, ADAPTERS["vllm"].gauges) is None


def test_a_number_is_read_with_exponent_and_time() -> None:
    text = "vllm:num_requests_running 1e1\nvllm:num_requests_waiting 0 1395066363000\n"
    assert in_flight(text, ADAPTERS["vllm"].gauges) == 10


def test_running_requests_are_asked_of_the_server(small: Small, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    metrics.write_text(VLLM)
    with small.server(f"--metrics={metrics}", kind="vllm") as server:
        assert running_requests("vllm", server.url) == 7
        assert running_requests("vllm", f"{server.url}/") == 7
        assert running_requests("sglang", server.url) is None
        assert running_requests("none", server.url) is None
    assert running_requests("vllm", server.url) is None


def test_without_metrics_nothing_is_told(small: Small) -> None:
    with small.server("--status=404", ready_status=404, kind="vllm") as server:
        assert running_requests("vllm", server.url) is None
        assert wait_idle(server.command.adapter, server.url, 60) is None


def test_idle_is_waited_for(small: Small, tmp_path: Path) -> None:
    metrics, idle = tmp_path / "metrics", tmp_path / "idle"
    metrics.write_text(SGLANG)
    idle.write_text("sglang:num_running_reqs 0.0\nsglang:num_queue_reqs 0.0\n")
    with small.server(f"--metrics={metrics}", f"--mark={ROLL}", kind="sglang") as server:
        assert wait_idle(server.command.adapter, server.url, 0.3) == 4
        timer = threading.Timer(0.5, idle.replace, (metrics,))
        timer.start()
        assert wait_idle(server.command.adapter, server.url, 60) == 0
        timer.join()


def test_a_tail_is_fit_for_a_terminal(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(
        b"first\n\x1b[36m(EngineCore)\x1b[0m gr\xc3\xbc\xc3\x9fe\r\nload:  1%\rload: 99%\rload: 100%\n"
        b"binary \xff\x00\x07 end\n" + b"y" * 5000 + b"\n\n\n"
    )
    lines = tail(log, 10).splitlines()
    assert lines[:4] == ["first", "(EngineCore) grüße", "load: 100%", "binary ��� end"]
    assert len(lines[4]) == 500
    assert len(lines) == 5
    assert tail(log, 1) == lines[4]
    assert tail(log, 0) == ""
    assert tail(log, 9, start=6).splitlines()[0] == "(EngineCore) grüße"
    assert tail(tmp_path / "no log", 5) == ""


def test_a_tail_of_one_endless_line_is_its_end_at_least(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"z" * 2_000_000)
    assert tail(log, 3).startswith("zzz")


def test_a_huge_log_costs_little_and_its_mark_is_found(small: Small) -> None:
    with small.server("--flood=24", f"--mark={ROLL}", "--mark-after=1", kind="sglang") as server:
        assert small.log.stat().st_size > 24 * 1024 * 1024
        assert server.tail(3).count("\n") == 2
        assert ROLL in server.tail(3)
        assert len(server.tail(1_000_000)) < 512 * 1024


def test_a_mark_across_two_reads_is_found(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * (1024 * 1024 - 10) + ROLL.encode()[:20])
    mark = Mark(log, ROLL)
    assert not mark.look()
    with log.open("ab") as file:
        file.write(ROLL.encode()[20:])
    assert mark.look()


def test_a_mark_across_the_boundary_of_a_read_is_found(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * (1024 * 1024 - 10) + ROLL.encode() + b"y" * 100)
    assert Mark(log, ROLL).look()
