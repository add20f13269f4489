"""A server from its start to its end: readiness, what is said when it does not come, and nobody left behind."""

from __future__ import annotations

import http.server
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_jitguard.servers.server import HowItEnded, Observer, Server, ServerCommand, ServerError
from tests.servers.smalls import LIMIT, Small, wait_for


class Heard:
    """Records what an observer is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.times: list[float] = []
        self.how: HowItEnded | None = None

    def observer(self) -> Observer:
        return Observer(
            starting=lambda server: self.told.append(f"starting {server.pid}"),
            ready=lambda server, at: self._reached("ready", at),
            warmed=lambda server, at: self._reached("warmed", at),
            stopped=self._stopped,
        )

    def _reached(self, what: str, at: float) -> None:
        self.told.append(what)
        self.times.append(at)

    def _stopped(self, server: Server, how: HowItEnded) -> None:
        self.told.append("stopped")
        self.how = how


def get(url: str) -> int:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
        answer.read()
        return int(answer.status)


def test_a_server_is_started_waited_for_and_stopped(small: Small) -> None:
    heard = Heard()
    with small.server("--children=2", observer=heard.observer()) as server:
        assert get(f"{server.url}/anything") == 200
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert server.pid in small.alive()
        assert len(small.alive()) == 3
        still = server.ended
        assert still is None
        assert heard.told == ["starting 0", "ready", "warmed"]
    assert small.alive() == []
    assert heard.told[3:] == ["stopped"]
    how = server.stop()
    assert how == heard.how == server.ended == HowItEnded(signal=signal.SIGTERM, asked=True)
    assert heard.told[3:] == ["stopped"]
    assert how.text == "stopped (SIGTERM)"
    moments = [server.started, server.ready_at, server.stopped_at]
    assert None not in moments
    assert moments == sorted(moments, key=lambda at: at or 0.0)


def test_the_time_before_readiness_counts(small: Small) -> None:
    with small.server("--late=1.5") as server:
        assert server.started is not None
        assert server.ready_at is not None
        assert server.ready_at - server.started >= 1.4


def test_another_status_may_mean_ready(small: Small) -> None:
    with small.server("--status=404", ready="/x", ready_status=404) as server:
        assert server.ready_at is not None


def test_the_callers_warmup_runs_between_ready_and_warmed(small: Small) -> None:
    heard = Heard()

    def warm(server: Server) -> None:
        heard.told.append(f"warming {get(server.url)}")

    with small.server(observer=heard.observer(), warm=warm) as server:
        assert heard.told == ["starting 0", "ready", "warming 200", "warmed"]
        assert server.warmed_at == heard.times[1] > heard.times[0]


def test_a_warmup_that_fails_goes_through_and_leaves_nobody(small: Small) -> None:
    def warm(server: Server) -> None:
        raise LookupError("no such route")

    with pytest.raises(LookupError):
        with small.server(warm=warm):
            pass
    assert small.gone()


def test_environment_folder_and_log(small: Small, tmp_path: Path) -> None:
    folder = tmp_path / "folder with spaces"
    folder.mkdir()
    command = small.command("--show-environment=SMALL_SAID", environment={"SMALL_SAID": "first"}, cwd=folder)
    small.log.write_text("what an earlier server said\n")
    with Server(command, "", small.log, environment={"SMALL_SAID": "grüße"}) as server:
        assert server.tail(1000).splitlines()[0] == f"grüße {folder}"
    assert small.log.read_text().startswith("what an earlier server said\ngrüße")


def test_a_new_log_is_private(small: Small) -> None:
    with small.server():
        assert small.log.stat().st_mode & 0o777 == 0o600


def test_a_proxy_of_the_environment_is_not_asked(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with small.server() as server:
        assert server.ready_at is not None


def test_a_wrong_path_of_readiness_is_told_with_the_remedy(small: Small) -> None:
    with pytest.raises(ServerError, match=r"last said: status 404; say which path .* \(ready=\)"):
        with small.server("--status=404", timeout=1):
            pass


def test_never_ready_says_the_last_status_and_the_log(small: Small, tmp_path: Path) -> None:
    (tmp_path / "said").write_text("loading weights\nstill loading\n")
    heard = Heard()
    server = small.server("--status=503", f"--spit={tmp_path / 'said'}", observer=heard.observer(), timeout=3)
    with pytest.raises(ServerError) as error, server:
        pass
    first, *rest = str(error.value).splitlines()
    assert first == f"server 'small' was not ready within 3 s: {server.url}/health last said: status 503"
    assert small.marker in rest[0]
    assert rest[1] == f"{small.log} ends with:"
    assert "still loading" in rest
    assert heard.told == ["starting 0", "stopped"]
    assert small.alive() == []


def test_a_redirect_is_no_readiness(small: Small) -> None:
    with pytest.raises(ServerError, match="last said: status 302"), small.server("--status=302", timeout=2):
        pass


def test_a_server_that_never_listens(small: Small) -> None:
    with pytest.raises(ServerError, match=r"not ready within 1 s: .* last said: connection refused") as error:
        with small.server("--deaf", timeout=1):
            pass
    assert f"{small.log} is empty" in str(error.value)


def test_a_readiness_url_that_hangs_does_not_hang_us(small: Small) -> None:
    began = time.monotonic()
    with pytest.raises(ServerError, match=r"not ready within 2 s: .* last said: no answer in time"):
        with small.server("--hang", timeout=2):
            pass
    assert time.monotonic() - began < LIMIT


def test_a_server_that_dies_at_once_shows_its_traceback(small: Small) -> None:
    began = time.monotonic()
    with pytest.raises(ServerError) as error, small.server("--die", timeout=600):
        pass
    text = str(error.value)
    assert text.startswith("server 'small' exited with code 1 by itself before it was ready, after ")
    assert text.endswith("RuntimeError: no such model: llama-0.5B")
    assert time.monotonic() - began < LIMIT


def test_a_server_that_leaves_for_the_background_is_told_to_stay(small: Small) -> None:
    command = ServerCommand(("sh", "-c", f"{' '.join(small.argv())} &"), name="gone", timeout=LIMIT)
    with pytest.raises(ServerError, match=r"exited with code 0 by itself .* \(a server must stay in the foreground\)"):
        with Server(command, "", small.log):
            pass
    assert small.alive() == []


def test_a_server_killed_by_somebody_else_is_told_so(small: Small) -> None:
    with pytest.raises(ServerError, match="was killed by SIGKILL, which we did not send: probably memory ran out"):
        with small.server("--kill-after=0.2", "--deaf", "--children=2"):
            pass
    assert small.alive() == []


def test_a_death_while_serving_is_seen(small: Small) -> None:
    with small.server("--children=1") as server:
        os.kill(server.pid, signal.SIGSEGV)
        assert wait_for(lambda: server.ended is not None)
        assert server.ended is not None
        assert server.ended.text == "was ended by SIGSEGV, which we did not send"
    assert server.stop() == HowItEnded(signal=signal.SIGSEGV)


def test_a_server_deaf_to_sigterm_is_forced(small: Small) -> None:
    with small.server("--stubborn", grace=0.5) as server:
        pass
    assert server.stop() == HowItEnded(signal=signal.SIGKILL, asked=True, forced=True)
    assert server.stop().text == "had to be killed, because it did not end in its grace"


def test_daemons_in_sessions_of_their_own_do_not_survive(small: Small) -> None:
    with small.server("--daemon", "--children=2", grace=1.0) as server:
        assert len(small.alive()) == 4
    assert small.alive() == []
    assert server.stop() == HowItEnded(signal=signal.SIGTERM, asked=True, left_over=1)
    assert server.stop().text.endswith("(SIGTERM), 1 process of its tree had to be killed")


def test_what_a_dead_server_left_behind_is_ended_too(small: Small) -> None:
    with small.server("--daemon", "--children=2", grace=1.0) as server:
        os.kill(server.pid, signal.SIGKILL)
        assert small.gone()
    assert server.stop().left_over == 1


def test_zero_grace_is_no_grace(small: Small) -> None:
    with small.server("--stubborn", "--children=1", grace=0) as server:
        pass
    assert server.stop().forced
    assert small.alive() == []


@contextmanager
def foreign_server() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_foreign_server_on_the_port_is_never_taken_for_ours(small: Small) -> None:
    heard = Heard()
    with foreign_server() as port:
        assert get(f"http://127.0.0.1:{port}/") == 200
        words = f"port {port} is already in use, so server 'small' was not started: end"
        with pytest.raises(ServerError, match=words), small.server(port=port, ready="/", observer=heard.observer()):
            pass
    assert heard.told == []
    assert small.alive() == []


def test_a_port_that_is_held_but_not_served_is_in_use_as_well(small: Small) -> None:
    with foreign_server() as port:
        pass
    with small.server(port=port) as server:
        assert get(server.url) == 200  # leaves a connection that is being closed
        with pytest.raises(ServerError, match="already in use"):
            small.server(port=port).start()
    with small.server(port=port) as again:
        assert again.ready_at is not None


def test_a_foreign_server_that_takes_the_port_meanwhile_is_found_out(small: Small, tmp_path: Path) -> None:
    go, other = tmp_path / "go", Small(tmp_path)
    foreign = other.server(f"--serve-when={go}")
    foreign.start()
    try:
        ours = small.server("--deaf", port=foreign.port)
        ours.start()
        go.touch()
        words = f"cannot be tested: port {foreign.port} is served by process {foreign.pid}, which was there before it"
        with pytest.raises(ServerError, match=words):
            ours.wait_ready()
    finally:
        foreign.stop()
    assert small.alive() == []


def test_a_server_starts_once(small: Small) -> None:
    with small.server() as server:
        with pytest.raises(ServerError, match="was started before: make another Server"):
            server.start()


def test_what_cannot_be_executed_is_told_and_observers_hear_the_end(small: Small, tmp_path: Path) -> None:
    program = tmp_path / "broken"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    heard = Heard()
    server = Server(ServerCommand((str(program), "{port}")), "", small.log, heard.observer())
    with pytest.raises(ServerError, match="server 'broken' could not be started: cannot be executed: No such file"):
        server.start()
    assert heard.told == ["starting 0", "stopped"]
    assert server.stop().code == 127


def test_before_the_start_there_is_nothing_to_stop_or_wait_for(small: Small) -> None:
    with pytest.raises(ServerError, match="nothing to stop"):
        small.server().stop()
    with pytest.raises(ServerError, match="call start"):
        small.server().wait_ready()


def test_two_servers_at_once_have_ports_and_ends_of_their_own(small: Small, tmp_path: Path) -> None:
    other = Small(tmp_path)
    with small.server() as first:
        with other.server() as second:
            assert first.port != second.port
        assert other.alive() == []
        assert get(first.url) == 200
