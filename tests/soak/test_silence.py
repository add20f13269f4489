"""Silence where there is nothing to say, and the same verdicts whatever the order."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import GuardedRun

pytestmark = pytest.mark.soak

TESTS = 1000
SHUFFLE = """
    import random, os
    def pytest_collection_modifyitems(items):
        if os.environ.get("ORDER"):
            random.Random(os.environ["ORDER"]).shuffle(items)
"""
CLEAN = f"""
    import kernels
    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", range({TESTS}))
    def test_clean(n, jitguard):
        assert kernels.launch_all() >= 20
        assert jitguard.events == []
"""
MIXED = """
    import kernels, torch

    @pytest.fixture(scope="session")
    def engine():
        x = torch.empty(2048, device="cuda")
        kernels.scale[(1,)](x, x, 2048, BLOCK=512)
        return x

    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", range(20))
    def test_clean(n):
        kernels.launch_all()

    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", range(20))
    def test_same_gap(n):
        x = torch.empty(64, device="cuda")
        kernels.scale[(1,)](x, x, 64, BLOCK=1024)

    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", range(10))
    def test_retuned(n):
        x = torch.empty(4096, device="cuda")
        kernels.square[(1,)](x, x, 4096)

    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", range(10))
    def test_with_engine(engine, n):
        kernels.scale[(1,)](engine, engine, 2048, BLOCK=512)

    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", range(10))
    def test_without_engine(n):
        x = torch.empty(2048, device="cuda")
        kernels.scale[(1,)](x, x, 2048, BLOCK=512)

    @pytest.mark.parametrize("n", range(10))
    def test_unguarded(n):
        x = torch.empty(64, device="cuda")
        kernels.shift[(1,)](x, x, 64, BLOCK=1024)

    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", range(10))
    def test_same_as_unguarded(n):
        x = torch.empty(64, device="cuda")
        kernels.shift[(1,)](x, x, 64, BLOCK=1024)
"""
GAPS = ("test_same_gap", "test_retuned", "test_without_engine", "test_same_as_unguarded")


@pytest.fixture
def triton_run(guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch) -> GuardedRun:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(guarded.path / "cache"))
    (guarded.path / "kernels.py").write_text(Path(__file__).with_name("kernels.py").read_text())
    guarded.pytester.makeconftest(SHUFFLE)
    guarded.args = ("--jitguard-offline=cuda:90", "--jitguard-warmup=kernels:launch_all", "-q")
    return guarded


@pytest.mark.parametrize(("order", "workers"), [("", ()), ("7", ()), ("", ("-p", "xdist", "-n", "2"))])
def test_a_thousand_clean_tests_are_clean(
    triton_run: GuardedRun, monkeypatch: pytest.MonkeyPatch, order: str, workers: tuple[str, ...]
) -> None:
    monkeypatch.setenv("ORDER", order)
    triton_run.suite(CLEAN)
    result = triton_run.run(*triton_run.args, *workers, fake=False, timeout=600)
    result.assert_outcomes(passed=TESTS)
    assert set(triton_run.verdicts().values()) == {"clean"}
    assert sum(test["evidence"]["launches"] for test in triton_run.report["tests"]) >= 20 * TESTS


def test_verdicts_do_not_depend_on_the_order(triton_run: GuardedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    triton_run.suite(MIXED)
    seen = []
    for order, workers in [("", ()), ("1", ()), ("2", ()), ("3", ()), ("", ("-p", "xdist", "-n", "2"))]:
        monkeypatch.setenv("ORDER", order)
        triton_run.run(*triton_run.args, *workers, fake=False, timeout=600)
        seen.append(triton_run.verdicts())
    for verdicts in seen[1:]:
        assert verdicts == seen[0]
    violated = {name.partition("[")[0] for name, verdict in seen[0].items() if verdict == "violated"}
    assert violated == set(GAPS)
    assert {v for name, v in seen[0].items() if not name.startswith(GAPS)} == {"clean", "unguarded"}
