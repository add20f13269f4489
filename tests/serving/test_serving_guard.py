"""A server under test: what its processes compile is judged in the test that sent the request."""

from __future__ import annotations

import pytest

from tests.serving.conftest import ServedRun

SESSION = """
    @pytest.fixture(scope="session")
    def server(jitguard_server):
        return jitguard_server([*COMMAND, {args}], name="fake", model="m", **{how})
"""


def session(*args: str, **how: object) -> str:
    return SESSION.format(args=", ".join(repr(arg) for arg in args), how=how)


def test_a_compile_in_a_rank_fails_the_test_that_asked_for_it(served: ServedRun) -> None:
    served.suite(
        session("--ranks", "2", "--warm", "warm")
        + """
    @pytest.mark.jitguard
    def test_clean(server): server.drive([ask(["warm"])])

    @pytest.mark.jitguard
    def test_one_rank(server): server.drive([ask([["warm"], ["cold"]])])

    @pytest.mark.jitguard
    def test_clean_again(server): server.drive([ask(["warm"])])

    @pytest.mark.jitguard
    def test_not_a_user(): pass
    """
    )
    result = served.run()
    result.assert_outcomes(passed=3, failed=1)
    assert served.verdicts() == {
        "test_clean": "clean",
        "test_one_rank": "violated",
        "test_clean_again": "clean",
        "test_not_a_user": "clean",
    }
    (violation,) = served.violations("test_one_rank")
    assert (violation["kernel"], violation["rank"], violation["world"]) == ("cold", 1, 2)
    assert "on rank 1 of 2 of server fake while serving: this kernel was never warmed" in violation["message"]
    assert violation["request"].endswith("of test_one_rank")
    (server,) = served.report["servers"]
    assert (server["name"], server["state"], server["events"]) == ("fake", "stopped", {"warmup": 2, "served": 1})
    assert served.report["children"]["silent"] == []
    assert served.report["order_dependent"]
    result.stdout.fnmatch_lines(["*server fake: warm after *, 2 events in its warmup, *"])


def test_warmup_requests_are_warmup(served: ServedRun) -> None:
    served.suite("""
    @pytest.fixture(scope="module")
    def server(jitguard_server):
        return jitguard_server(COMMAND, model="m", warmup=[ask(["a"])])

    @pytest.mark.jitguard
    def test_clean(server): server.drive([ask(["a"])])

    @pytest.mark.jitguard
    def test_block(server):
        with server.warmup():
            server.drive([ask(["b"])])
        server.drive([ask(["a", "b"])])

    @pytest.mark.jitguard
    def test_guard_block(server, jitguard):
        with jitguard.warmup():
            server.drive([ask(["c"])])
        server.drive([ask(["c"])])

    @pytest.mark.jitguard
    def test_cold(server): server.drive([ask(["d"])])
    """)
    served.run().assert_outcomes(passed=3, failed=1)
    assert served.verdicts()["test_cold"] == "violated"


def test_what_is_served_to_nobody_fails_the_session(served: ServedRun) -> None:
    served.suite(
        session()
        + """
    @pytest.fixture
    def nosy(server): server.drive([ask(["in_setup"])])

    @pytest.mark.jitguard
    def test_a(server, nosy): server.drive([ask()])
    """
    )
    result = served.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1)
    (finding,) = served.report["findings"]
    assert finding["name"] == "between"
    assert "fake, SpawnProcess-1 (pid " in finding["message"]
    assert "in_setup (fakejit) compiled in " in finding["message"]
    assert finding["message"].endswith(", for a request sent in the setup of test_suite.py::test_a")
    waived = served.run("--jitguard-waive=between")
    assert waived.ret == 0


def test_requests_that_are_still_answered_when_a_test_ends_are_its_own(served: ServedRun) -> None:
    served.suite(
        session()
        + """
    @pytest.mark.jitguard
    def test_leaves(server): server.start_drive([ask(["late"], after=1.0)])

    @pytest.mark.jitguard
    def test_next(server): server.drive([ask()])
    """
    )
    served.run()
    assert served.verdicts() == {"test_leaves": "violated", "test_next": "clean"}


def test_what_is_late_all_the_same_is_nobody_s_violation(served: ServedRun) -> None:
    served.suite("""
    @pytest.fixture(scope="session")
    def server(jitguard_server): return jitguard_server(COMMAND, model="m", drain=0.01)

    @pytest.mark.jitguard
    def test_leaves(server): server.start_drive([ask(["late"], after=1.0)])

    @pytest.mark.jitguard
    def test_next(server): time.sleep(2)
    """)
    served.run()
    assert served.verdicts() == {"test_leaves": "clean", "test_next": "clean"}
    (finding,) = served.report["findings"]
    assert finding["name"] == "between"
    assert "for a late request of test_suite.py::test_leaves" in finding["message"]


def test_a_server_of_one_test(served: ServedRun) -> None:
    served.suite("""
    @pytest.mark.jitguard
    def test_inside(jitguard_server):
        with jitguard_server([*COMMAND, "--warm", "a"], model="m") as server:
            server.drive([ask(["a", "b"])])

    @pytest.fixture
    def server(jitguard_server):
        with jitguard_server([*COMMAND, "--warm", "a"], model="m") as server:
            yield server

    @pytest.mark.jitguard
    def test_fixture(server): server.drive([ask(["a", "c"])])
    """)
    served.run()
    assert [v["kernel"] for v in served.violations("test_inside")] == ["b"]
    assert [v["kernel"] for v in served.violations("test_fixture")] == ["c"]


def test_a_load_of_what_another_rank_built_in_the_warmup_is_told_and_passes(
    served: ServedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKEJIT_CACHE", str(served.path / "cache"))
    served.suite(
        session("--ranks", "2", "--warm-rank-0", "swept")
        + """
    @pytest.mark.jitguard
    def test_a(server): server.drive([ask(["swept"])])
    """
    )
    served.run().assert_outcomes(passed=1)
    events = {(e["rank"], e["kind"], e["origin"]) for e in served.report["events"]}
    assert events == {(0, "compile", ""), (1, "cache_load", "warmup")}
    served.run("--jitguard-fail-on=compile,cache_load:warmup").assert_outcomes(passed=1)  # it is on disk by now
    (served.path / "cache" / "swept(seconds=0.0)").unlink()
    served.run("--jitguard-fail-on=compile,cache_load:warmup").assert_outcomes(failed=1)


def test_a_stall_over_budget_fails_the_session_whatever_the_mode(served: ServedRun) -> None:
    (served.path / "jitguard.toml").write_text("[budgets]\nliveness_probe = 0.5\nnccl_watchdog = 600\n")
    served.suite(
        session("--ranks", "2")
        + """
    @pytest.mark.jitguard
    def test_a(server): server.drive([ask([["slow"], []], seconds=1.0)])
    """
    )
    result = served.run("--jitguard-mode=record")
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (finding,) = served.report["findings"]
    assert finding["name"] == "stall-budget"
    assert finding["message"].startswith("rank 0 of 2 stood still for 1.0")
    assert "× 2 GPUs, over liveness_probe (0.50 s)" in finding["message"]
    assert served.run("--jitguard-mode=record", "--jitguard-waive=stall-budget").ret == 0


def test_a_server_that_does_not_report_is_named(served: ServedRun) -> None:
    served.suite("""
    @pytest.fixture(scope="session")
    def server(jitguard_server):
        return jitguard_server([COMMAND[0], "-S", *COMMAND[1:]], model="m")

    @pytest.mark.jitguard
    def test_a(server): fakejit.launch("here") if False else server.drive([ask()])
    """)
    result = served.run()
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED, "a server that nobody could look into proves nothing"
    result.stdout.fnmatch_lines(["server-silent: no process of server fake_server (* -S *fake_server.py *) reported *"])
    result.stdout.fnmatch_lines(["warning: children: 1 of * did not report: * -S *fake_server.py --port *"])
    assert served.report["children"]["silent"][0]["how"] == "server"
    waived = served.run("--jitguard-waive=server-silent,nothing-watched")
    assert waived.ret == 0
    strict = served.run("--jitguard-waive=server-silent,nothing-watched", "--jitguard-children=require")
    assert strict.ret == pytest.ExitCode.TESTS_FAILED


def test_servers_that_do_not_come_up_fail_their_tests_with_the_end_of_their_log(served: ServedRun) -> None:
    served.suite("""
    @pytest.fixture(scope="session")
    def server(jitguard_server):
        return jitguard_server([sys.executable, "-c", "print('no such model'); raise SystemExit(3)", "{port}"])

    @pytest.mark.jitguard
    def test_a(server): pass
    """)
    result = served.run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*exited with code 3*", "*no such model*"])
    assert served.report["servers"][0]["state"] == "failed"
    assert served.report["tests"][0]["verdict"] == "error"


def test_with_the_guard_off_servers_are_just_servers(served: ServedRun) -> None:
    served.suite(
        session()
        + """
    def test_a(server):
        with server.warmup(): pass
        server.use()
        assert server.drive([ask(["cold"])]).sent[0].status == 200
        assert server.pid and server.port and server.log.exists() and "serving" in server.tail()
    """
    )
    served.run(on=False).assert_outcomes(passed=1)


def test_children_that_are_let_be_are_not_seen(served: ServedRun) -> None:
    served.suite(
        session()
        + """
    @pytest.mark.jitguard
    def test_a(server):
        import os
        fakejit.launch("here")
        assert "JITGUARD_PARENT" not in os.environ
        server.drive([ask(["cold"])])
    """
    )
    served.run("--jitguard-children=off").assert_outcomes(failed=1)
    assert [v["kernel"] for v in served.violations("test_a")] == ["here"]


def test_a_server_of_which_nothing_is_heard_is_named_whatever_runs_it(served: ServedRun) -> None:
    served.suite("""
    @pytest.fixture(scope="session")
    def server(jitguard_server):
        shell = "exec " + " ".join([COMMAND[0], "-S", *COMMAND[1:]])
        return jitguard_server(["sh", "-c", shell], name="boxed", model="m")

    @pytest.mark.jitguard
    def test_a(server): server.drive([ask()])
    """)
    served.run().stdout.fnmatch_lines(["server-silent: no process of server boxed (sh -c *) reported *"])


def test_what_an_unguarded_test_compiled_on_a_server_hides_nothing(served: ServedRun) -> None:
    served.suite(
        session()
        + """
    def test_unguarded(server): server.drive([ask(["cold"])])

    @pytest.mark.jitguard
    def test_after(server): server.drive([ask(["cold"])])
    """
    )
    result = served.run()
    assert served.verdicts() == {"test_unguarded": "unguarded", "test_after": "clean"}
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (finding,) = served.report["findings"]
    assert finding["message"].endswith("in test_suite.py::test_unguarded, which is not guarded")


def test_kernels_of_servers_can_be_expected_and_are_among_the_events(served: ServedRun) -> None:
    served.suite(
        session("--warm", "warm")
        + """
    @pytest.mark.jitguard(expect=["warm"])
    def test_reached(server): server.drive([ask(["warm"])])

    @pytest.mark.jitguard(expect=["other"])
    def test_missed(server): server.drive([ask(["warm"])])

    @pytest.mark.jitguard(expect=["warm"])
    def test_not_a_user(): pass

    def test_events(server, jitguard):
        with jitguard.warmup():
            server.drive([ask(["new"])])
        assert [event.kernel for event in jitguard.events] == ["new"]
    """
    )
    served.run().assert_outcomes(passed=2, failed=2)
    assert served.verdicts()["test_reached"] == "clean"
    assert served.verdicts()["test_missed"] == served.verdicts()["test_not_a_user"] == "violated"


def test_a_wrong_argument_is_named(served: ServedRun) -> None:
    served.suite("""
    @pytest.mark.parametrize(("wrong", "meant"), [("env", "environment"), ("modle", "model"), ("warm_up", "warmup")])
    def test_a(jitguard_server, wrong, meant):
        with pytest.raises(TypeError, match=f"no argument '{wrong}' .did you mean '{meant}'"):
            jitguard_server(COMMAND, **{wrong: ""})
    """)
    served.run().assert_outcomes(passed=3)


def test_a_request_that_fails_is_told_with_the_end_of_the_log(served: ServedRun) -> None:
    served.suite(
        session()
        + """
    @pytest.mark.jitguard
    def test_a(server):
        server.drive([ask(["a"], after="soon")])
    """
    )
    result = served.run()
    result.stdout.fnmatch_lines(["E *.TrafficError: 1 of 1 request failed, *", "E *.log ends with:", "E *EOFError*"])


def test_a_mistake_in_a_command_is_shown_at_the_line_that_made_it(served: ServedRun) -> None:
    served.suite("""
    @pytest.fixture(scope="session")
    def server(jitguard_server): return jitguard_server(["no-such-program", "{port}"])

    @pytest.mark.jitguard
    def test_a(server): pass
    """)
    result = served.run()
    result.stdout.fnmatch_lines(["E * program 'no-such-program' of server *", "test_suite.py:*: ValueError"])
    for ours in ("guard.py", "serving.py", "command.py"):
        result.stdout.no_fnmatch_line(f"*{ours}:*")


def test_a_record_of_requests_is_replayed_as_the_test_s_own(served: ServedRun) -> None:
    served.suite(
        session()
        + """
    RECORDS = []

    @pytest.mark.jitguard
    def test_first(server): RECORDS.append(server.drive([ask(["cold"])]))

    @pytest.mark.jitguard
    def test_again(server): server.replay(RECORDS[0])
    """
    )
    served.run()
    assert served.verdicts() == {"test_first": "violated", "test_again": "clean"}
    assert "request 1" in served.violations("test_first")[0]["request"]


def test_requests_that_failed_behind_a_test_s_back_fail_it(served: ServedRun) -> None:
    served.suite(
        session()
        + """
    from pytest_jitguard.traffic.record import TrafficError

    BROKEN = Request(8, body={"kernels": 7})  # the server's handler raises, and the connection ends

    @pytest.mark.jitguard
    def test_looks_no_further(server): server.start_drive([BROKEN])

    @pytest.mark.jitguard
    def test_next(server): server.drive([ask()])

    @pytest.mark.jitguard
    def test_expects_it(server):
        with pytest.raises(TrafficError):
            server.start_drive([BROKEN]).wait()

    @pytest.mark.jitguard
    def test_its_own_failure_stays(server):
        server.start_drive([BROKEN])
        raise KeyError("mine")
    """
    )
    result = served.run()
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*TrafficError: 1 of 1 request failed*", "*KeyError: 'mine'"])


def test_no_two_runs_share_prompts_and_each_is_the_same_every_time(served: ServedRun) -> None:
    served.suite(
        session()
        + """
    from pathlib import Path

    def prompts(record): return [sent.body.decode() for sent in record.sent]

    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", [1, 2])
    def test_many(server, n):
        bodies = prompts(server.drive([ask(), ask()])) + prompts(server.drive([ask(), ask()]))
        with open("prompts.txt", "a") as file:
            print(*bodies, sep="\\n", file=file)
        assert prompts(server.drive([ask()], seed=3)) == prompts(server.drive([ask()], seed=3))
    """
    )
    served.run().assert_outcomes(passed=2)
    first = (served.path / "prompts.txt").read_text().splitlines()
    assert len(set(first)) == len(first) == 8
    (served.path / "prompts.txt").unlink()
    served.run().assert_outcomes(passed=2)
    assert (served.path / "prompts.txt").read_text().splitlines() == first
