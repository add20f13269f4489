"""Guarded tests take turns on one server while requests of the test before are still being answered."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.serving.conftest import ServedRun

COUNTS = (8, pytest.param(100, marks=pytest.mark.soak))

SERVER = """
    import json, random, urllib.request

    @pytest.fixture(scope="session")
    def server(jitguard_server):
        return jitguard_server([*COMMAND, "--ranks", "2", "--warm", "warm"], name="one", model="m", drain={drain})

    def per_rank(n, i):
        "Rank 0 compiles for the even requests, rank 1 for every one; a test in four compiles nothing."
        if n % 4 == 3:
            return [["warm"], ["warm"]]
        return [[f"k{{n}}_{{i}}_rank0"] if i % 2 == 0 else [], [f"k{{n}}_{{i}}_rank1"]]

    def work(n, i, chance):
        seconds = 0.0 if n % 4 == 3 else chance.uniform(0, 0.05)
        return {{"kernels": per_rank(n, i), "after": chance.uniform(0, 0.05), "seconds": seconds}}
"""
LEAVES = """
    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", range({count}))
    def test_leaves(server, n):
        chance = random.Random(n)
        for i in range(3):
            server.start_drive([ask(**work(n, i, chance))])
        time.sleep(chance.uniform(0, 0.1))
"""
CLIENT = """
    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", range({count}))
    def test_asks(server, n):
        chance = random.Random(n)
        def post(i):
            data = json.dumps(work(n, i, chance)).encode()
            urllib.request.urlopen(f"{{server.url}}/v1/completions", data=data, timeout=60).read()
        threads = [threading.Thread(target=post, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
"""


def expected(n: int) -> Counter[str]:
    """The kernels that test `n` makes the two ranks compile."""
    if n % 4 == 3:
        return Counter()
    return Counter([*(f"k{n}_{i}_rank1" for i in range(3)), f"k{n}_0_rank0", f"k{n}_2_rank0"])


def compiled(report: Any, nodeid: str) -> Counter[str]:
    """The kernels of the events that were put down to a test."""
    return Counter(event["kernel"] for event in report["events"] if event["test"] == nodeid)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("name", "test"), [("test_leaves", LEAVES), ("test_asks", CLIENT)])
def test_each_test_has_exactly_its_own_events(served: ServedRun, name: str, test: str, count: int) -> None:
    served.suite(SERVER.format(drain=60) + test.format(count=count))
    served.run("-q", timeout=600).assert_outcomes(failed=count - count // 4, passed=count // 4)
    report = served.report
    for n in range(count):
        assert compiled(report, f"test_suite.py::{name}[{n}]") == expected(n), n
        violations = served.violations(f"{name}[{n}]")
        assert Counter(violation["kernel"] for violation in violations) == expected(n), n
        assert all(violation["kernel"].endswith(f"_rank{violation['rank']}") for violation in violations)
        if name == "test_leaves":
            senders = {text.rpartition(" of ")[2] for v in violations for text in v["request"].split("; ")}
            assert senders <= {f"test_leaves[{n}]"}, "no request of another test was under way"
    assert {(e["kernel"], e["phase"]) for e in report["events"] if not e["test"]} == {("warm", "warmup")}
    assert report["findings"] == []
    assert report["children"]["silent"] == []


@pytest.mark.parametrize("rounds", [3, pytest.param(30, marks=pytest.mark.soak)])
def test_what_is_answered_too_late_is_between_and_tells_who_sent_it(served: ServedRun, rounds: int) -> None:
    served.suite(
        SERVER.format(drain=0.05)
        + f"""
    SENT = []

    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", range({2 * rounds}))
    def test_turn(server, n):
        if n % 2 == 0:
            SENT.append(server.start_drive([ask([[f"late{{n}}"], ["warm"]], after=0.8)]))
        else:
            SENT[-1].wait(30)
            server.drive([ask([["warm"], [f"own{{n}}"]] if n % 4 == 1 else ["warm"])])
    """
    )
    result = served.run("-q", timeout=600)
    report = served.report
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    for n in range(2 * rounds):
        own = [f"own{n}"] if n % 4 == 1 else []
        assert [v["kernel"] for v in served.violations(f"test_turn[{n}]")] == own, n
    late = {event["kernel"]: event for event in report["events"] if event["kernel"].startswith("late")}
    assert sorted(late) == sorted(f"late{n}" for n in range(0, 2 * rounds, 2))
    assert {(event["phase"], event["test"], event["served"]) for event in late.values()} == {("between", None, False)}
    (finding,) = report["findings"]
    assert finding["name"] == "between"
    told = finding["message"].split("; ")
    assert told[0].endswith("for a late request of test_suite.py::test_turn[0]"), told
    assert "late0 (fakejit)" in told[0]
    assert len(told) == min(rounds, 4)


def test_where_requests_of_two_tests_are_under_way_both_are_named(served: ServedRun) -> None:
    served.suite(
        SERVER.format(drain=0.05)
        + """
    @pytest.mark.jitguard
    def test_leaves(server):
        driving = server.start_drive([ask([["late"], []], after=2.0)])
        while not driving.in_flight:
            time.sleep(0.01)
        time.sleep(0.5)  # the ranks are at it by then, and take the next request after it

    @pytest.mark.jitguard
    def test_drives(server): server.drive([ask([["warm"], ["own"]])])
    """
    )
    result = served.run("-q")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert served.verdicts() == {"test_leaves": "clean", "test_drives": "violated"}
    by_kernel = {v["kernel"]: v["request"].split("; ") for v in served.violations("test_drives")}
    assert "own" in by_kernel
    assert [text.rpartition(" of ")[2] for text in by_kernel["late"]] == ["test_leaves", "test_drives"]
