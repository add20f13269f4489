"""A verdict is relative to warmup, never to what an earlier test happened to compile."""

from __future__ import annotations

import pytest

from tests.conftest import GuardedRun

SUITE = """
fakejit.launch("warmed")

@pytest.mark.jitguard
def test_a():
    fakejit.launch("k")

@pytest.mark.jitguard
def test_b():
    fakejit.launch("k")
    fakejit.launch("warmed")

@pytest.mark.jitguard
def test_c():
    fakejit.launch("warmed")

def test_unguarded():
    fakejit.launch("k")
"""
EXPECTED = {"test_a": "violated", "test_b": "violated", "test_c": "clean", "test_unguarded": "unguarded"}


def test_two_tests_of_one_unwarmed_kernel_are_both_violated(guarded: GuardedRun) -> None:
    guarded.suite(SUITE)
    guarded.run()
    assert guarded.verdicts() == EXPECTED
    assert "first served by" not in guarded.violations("test_a")[0]["message"]
    assert (
        "first served by test_suite.py::test_a, whose variants were forgotten when it ended"
        in guarded.violations("test_b")[0]["message"]
    )
    assert guarded.report["order_dependent"] is False


@pytest.mark.parametrize("order", ["b a c unguarded", "unguarded c b a"])
def test_order_changes_no_verdict(guarded: GuardedRun, order: str) -> None:
    guarded.suite(SUITE)
    guarded.run(*(f"test_suite.py::test_{name}" for name in order.split()))
    assert guarded.verdicts() == EXPECTED


def test_two_workers_come_to_the_same_verdicts(guarded: GuardedRun) -> None:
    guarded.suite(SUITE)
    guarded.plugins += ["-p", "xdist"]
    result = guarded.run("-n2")
    assert result.ret == 1
    assert guarded.verdicts() == EXPECTED


def test_without_forgetting_the_report_says_order_dependent(guarded: GuardedRun) -> None:
    guarded.suite(SUITE)
    guarded.run("-o", "jitguard_forget=false")
    assert guarded.verdicts() == EXPECTED | {"test_b": "clean"}
    assert guarded.report["order_dependent"] is True


def test_attempts_of_one_node_id_share_a_verdict_and_parameters_do_not(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        @pytest.mark.jitguard
        @pytest.mark.parametrize("kernel", ["hot", "cold"])
        def test_parameter(kernel):
            if kernel == "cold":
                fakejit.launch(kernel)

        RAN = []

        @pytest.mark.jitguard
        def test_twice():
            if not RAN:
                fakejit.launch("first_time_only")
            RAN.append(1)

        @pytest.mark.xdist_group("gpu")
        @pytest.mark.jitguard
        @pytest.mark.parametrize("address", ["a@cold", "a@hot"])
        def test_at_sign(address):
            if address == "a@cold":
                fakejit.launch("k")
        """
    )
    guarded.plugins += ["-p", "xdist"]
    guarded.run("--keep-duplicates", "test_suite.py", "test_suite.py::test_twice")
    assert guarded.verdicts() == {
        "test_parameter[hot]": "clean",
        "test_parameter[cold]": "violated",
        "test_twice": "violated",
        "test_at_sign[a@cold]": "violated",
        "test_at_sign[a@hot]": "clean",
    }
    twice = next(test for test in guarded.report["tests"] if test["nodeid"].endswith("test_twice"))
    assert [attempt["verdict"] for attempt in twice["attempts"]] == ["violated", "violated"]


def test_loadgroup_suffix_is_no_part_of_the_node_id(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        @pytest.mark.xdist_group("gpu")
        @pytest.mark.jitguard
        @pytest.mark.parametrize("n", ["1@x", "2"])
        def test_grouped(n):
            fakejit.launch("k")
        """
    )
    guarded.plugins += ["-p", "xdist"]
    guarded.run("-n1", "--dist=loadgroup")
    assert guarded.verdicts() == {"test_grouped[1@x]": "violated", "test_grouped[2]": "violated"}
    assert (
        "first served by test_suite.py::test_grouped[1@x], whose" in guarded.violations("test_grouped[2]")[0]["message"]
    )
