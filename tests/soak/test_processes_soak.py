"""Many workers on one cold cache: each kernel is compiled once in all, and verdicts are those of a single process."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import FAKEJIT, ROOT, GuardedRun
from tests.processes.conftest import reporting_python  # noqa: F401 - a fixture

pytest.importorskip("xdist")
pytest.importorskip("triton")

WARMUP = "--jitguard-warmup=kernels:launch_all"
SUITE = """
    import kernels, torch

    def scale(n, block):
        x = torch.empty(n, device="cuda")
        kernels.scale[(1,)](x, x, n, BLOCK=block)

    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", range(8))
    def test_clean(n): kernels.launch_all()

    @pytest.mark.jitguard
    @pytest.mark.parametrize("block", [32, 512, 1024])
    def test_block_of_its_own(block): scale(64, block)

    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", range(4))
    def test_same_gap(n): scale(64, 2048)

    @pytest.mark.jitguard
    def test_retuned():
        x = torch.empty(4096, device="cuda")
        kernels.square[(1,)](x, x, 4096)

    @pytest.mark.jitguard
    @pytest.mark.xdist_group("together")
    @pytest.mark.parametrize("n", range(2))
    def test_grouped(n): scale(64, 16)

    def test_unguarded(): scale(64, 256)
"""
GAPS = ("test_block_of_its_own", "test_same_gap", "test_retuned", "test_grouped")
WARMED = 24
"""Variants of the warmup: two kernels with three blocks and one with two, for sizes that are 1, divisible by 16, or
neither."""


@pytest.fixture
def cold(guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch) -> GuardedRun:
    """A guarded run with real Triton on the offline target, each time on a cold cache."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("PYTHONPATH", f"{guarded.path}:{ROOT}:{FAKEJIT}")
    (guarded.path / "kernels.py").write_text(Path(__file__).with_name("kernels.py").read_text())
    guarded.suite(SUITE)
    guarded.args = ("--jitguard-offline=cuda:90", "--jitguard-cache=cold", WARMUP, "-q", "-p", "xdist")
    return guarded


def run(cold: GuardedRun, *args: str) -> Any:
    cold.run(*cold.args, *args, fake=False, timeout=300)
    return cold.report


def verdicts(report: Any) -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """What each test is said to have done, without what differs by chance: which worker built a binary."""
    return {
        test["nodeid"]: (test["verdict"], sorted((v["system"], v["kernel"]) for v in test["violations"]))
        for test in report["tests"]
    }


def builds(report: Any) -> Counter[str]:
    """How often each binary of the warmup was built, over all processes."""
    warmed = [event for event in report["events"] if event["phase"] == "warmup" and event["kind"] == "compile"]
    return Counter(event["artifact_hash"] for event in warmed)


def loads(report: Any) -> Counter[str]:
    """How often each binary of the warmup was loaded, over all processes."""
    warmed = [event for event in report["events"] if event["phase"] == "warmup" and event["kind"] == "cache_load"]
    return Counter(event["artifact_hash"] for event in warmed)


def check(report: Any, alone: Any, workers: int) -> None:
    """Each binary of the warmup is built once and loaded by all the others; verdicts are those of one process."""
    assert (len(builds(report)), set(builds(report).values())) == (WARMED, {1})
    assert loads(report) == Counter(dict.fromkeys(builds(report), workers - 1))
    assert verdicts(report) == verdicts(alone)
    assert [process["status"] for process in report["warmup"]["processes"]] == ["ok"] * workers
    assert report["findings"] == []
    assert report["children"]["silent"] == []


def test_one_process_compiles_for_all(cold: GuardedRun) -> None:
    alone = run(cold)
    assert {n.partition("::")[2].partition("[")[0] for n, (v, _) in verdicts(alone).items() if v == "violated"} == {
        *GAPS
    }
    check(alone, alone, 1)
    check(run(cold, "-n", "2"), alone, 2)


@pytest.mark.soak
def test_eight_workers_on_one_cold_cache_twenty_times(cold: GuardedRun) -> None:
    alone = run(cold)
    for _ in range(20):
        check(run(cold, "-n", "8"), alone, 8)


@pytest.mark.soak
@pytest.mark.parametrize("dist", ["loadgroup", "loadfile", "loadscope", "worksteal"])
def test_however_tests_are_distributed(cold: GuardedRun, dist: str) -> None:
    alone = run(cold)
    check(run(cold, "-n", "8", f"--dist={dist}"), alone, 8)


@pytest.mark.soak
def test_a_worker_that_is_replaced_loads_as_well(cold: GuardedRun) -> None:
    alone = run(cold)
    cold.suite(
        """
        import os

        @pytest.mark.jitguard
        def test_dies(): os._exit(1)
        """,
        "test_deadly.py",
    )
    report = run(cold, "-n", "4")
    died = {test["nodeid"]: test["verdict"] for test in report["tests"] if "test_dies" in test["nodeid"]}
    assert died == {"test_deadly.py::test_dies": "interrupted"}
    report["tests"] = [test for test in report["tests"] if "test_dies" not in test["nodeid"]]
    check(report, alone, 5)


@pytest.mark.soak
def test_workers_of_another_python(cold: GuardedRun, reporting_python: Path) -> None:  # noqa: F811
    alone = run(cold)
    report = run(cold, "--dist=load", "--tx", f"popen//python={reporting_python}", "--tx", "popen")
    check(report, alone, 2)
    programs = {process["argv"][0] for process in report["processes"] if process["role"] == "xdist worker"}
    assert len(programs) == 2
    assert str(reporting_python) in programs
