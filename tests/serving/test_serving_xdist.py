"""Servers and children under pytest-xdist."""

from __future__ import annotations

import pytest

from tests.serving.conftest import ServedRun

pytest.importorskip("xdist")
XDIST = ("-p", "xdist", "-n", "2", "--dist=load")


def test_each_worker_has_a_server_of_its_own(served: ServedRun) -> None:
    served.suite("""
    @pytest.fixture(scope="session")
    def server(jitguard_server): return jitguard_server([*COMMAND, "--warm", "a"], model="m")

    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", range(6))
    def test_many(server, n):
        time.sleep(0.1)
        server.drive([ask(["a", f"cold{n}"] if n % 3 == 0 else ["a"])])
    """)
    result = served.run(*XDIST)
    result.assert_outcomes(passed=4, failed=2)
    assert served.verdicts() == {f"test_many[{n}]": "clean" if n % 3 else "violated" for n in range(6)}
    assert [[v["kernel"] for v in served.violations(f"test_many[{n}]")] for n in (0, 3)] == [["cold0"], ["cold3"]]
    scopes = {server["scope"] for server in served.report["servers"]}
    assert len(scopes) == 2
    assert served.report["findings"] == []


SHARED = """
    @pytest.fixture(scope="session")
    def server(jitguard_server): return jitguard_server([*COMMAND, "--warm", "a"], name="one", model="m", shared=True)

    @pytest.fixture
    def together():
        "Return when every test of the pair has come here."
        from pathlib import Path
        def meet(name, others):
            Path(name).touch()
            until = time.monotonic() + 30
            while not all(Path(other).exists() for other in others):
                assert time.monotonic() < until
                time.sleep(0.01)
        return meet
"""


def test_workers_that_share_a_server_are_all_charged_with_what_it_compiles_meanwhile(served: ServedRun) -> None:
    served.suite(
        SHARED
        + """
    @pytest.mark.jitguard
    def test_asks(server, together):
        together("asks", ["waits"])
        server.drive([ask(["cold"])])
        together("asked", ["asked"])

    @pytest.mark.jitguard
    def test_waits(server, together):
        together("waits", ["asks"])
        server.drive([ask(["a"], after=0.2)])
        together("waited", ["asked"])

    @pytest.mark.jitguard
    def test_elsewhere(): pass
    """
    )
    result = served.run(*XDIST)
    assert served.verdicts() == {"test_asks": "violated", "test_waits": "violated", "test_elsewhere": "clean"}
    (server,) = served.report["servers"]
    assert (server["name"], server["state"]) == ("one", "stopped")
    (event,) = [event for event in served.report["events"] if event["kernel"] == "cold"]
    assert {event["test"], *event["shared"]} == {"test_suite.py::test_asks", "test_suite.py::test_waits"}
    assert served.report["findings"] == []
    result.stdout.fnmatch_lines(["unexpected: 1 compile in 2 of 3 guarded tests, *", "cold: 1 compile in 2 tests, *"])


def test_a_shared_server_is_alive_until_the_last_worker_has_left(served: ServedRun) -> None:
    served.suite(
        SHARED
        + """
    @pytest.mark.jitguard
    def test_one(server, together):
        together("one", ["two"])
        stay(server)

    @pytest.mark.jitguard
    def test_two(server, together):
        together("two", ["one"])
        stay(server)

    def stay(server):
        if server.is_attached:  # the worker that has started it has nothing more to do meanwhile
            time.sleep(2)
        server.drive([ask(["a"])])
    """
    )
    served.run(*XDIST).assert_outcomes(passed=2)
    assert [server["state"] for server in served.report["servers"]] == ["stopped"]


def test_a_worker_that_dies_takes_its_server_with_it_and_the_next_has_a_new_one(served: ServedRun) -> None:
    served.suite(
        SHARED
        + """
    @pytest.mark.jitguard
    def test_dies(server):
        import os
        server.drive([ask(["cold"])])
        os._exit(3)

    @pytest.mark.jitguard
    def test_after(server): server.drive([ask(["a"])])
    """
    )
    served.run("-p", "xdist", "-n", "1")
    assert served.verdicts() == {"test_dies": "interrupted", "test_after": "clean"}
    assert [v["kernel"] for v in served.violations("test_dies")] == ["cold"]


def test_children_of_workers_belong_to_the_test_that_ran_then(served: ServedRun) -> None:
    served.suite("""
    import subprocess

    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", range(4))
    def test_many(n):
        subprocess.run([sys.executable, "-c", f"import fakejit; fakejit.launch('k{n}')"], check=True)
    """)
    served.run(*XDIST).assert_outcomes(failed=4)
    assert [[v["kernel"] for v in served.violations(f"test_many[{n}]")] for n in range(4)] == [
        [f"k{n}"] for n in range(4)
    ]
    assert served.report["children"]["silent"] == []
