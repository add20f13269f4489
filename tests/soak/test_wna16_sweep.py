"""The example layer over every token count: its variants are those that vLLM's own launchers have."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import GuardedRun

pytestmark = pytest.mark.soak

SWEEP = """
    from examples.wna16_moe.layer import WNA16MoE, request, serve

    @pytest.mark.parametrize("specialized", [True, False])
    def test_first_reached(jitguard, specialized, record_property):
        layer = WNA16MoE(token_scalars_specialized=specialized)
        first, known = {}, 0
        with jitguard.warmup():
            for tokens in range(1, 1025):
                layer(request(tokens))
                events = jitguard.events
                if len(events) > known:
                    first[tokens], known = len(events) - known, len(events)
        record_property("first", first)
        assert first == ({m: 2 for m in (25, 28, 32, 41, 44, 48)} if specialized else {25: 2, 41: 2})
        with jitguard.serving():
            layer(request(1024))

    @pytest.mark.jitguard
    def test_every_request():
        for tokens in range(1, 1025):
            serve(tokens)

    @pytest.mark.jitguard
    def test_large_request():
        serve(500)
"""
GRAPHS = """
def warm_up():
    from examples.wna16_moe.layer import serve
    for tokens in (8192, 1, 2, 4, *range(8, 513, 8)):
        serve(tokens)
"""


@pytest.fixture
def sweep(guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any) -> GuardedRun:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "wna16-cache"))
    guarded.suite(SWEEP)
    (guarded.path / "graphs.py").write_text(GRAPHS)
    guarded.args = ("--jitguard-offline=cuda:90", "-q")
    return guarded


def warmed_by(name: str) -> str:
    return f"--jitguard-warmup=examples.wna16_moe.warmup:{name}"


def test_variants_are_first_reached_where_vllm_reaches_them(sweep: GuardedRun) -> None:
    result = sweep.run(*sweep.args, "-k", "first_reached", fake=False)
    result.assert_outcomes(passed=2)
    by_test = [sum(e["test"] == t["nodeid"] for e in sweep.report["events"]) for t in sweep.report["tests"]]
    assert sorted(by_test) == [4, 12]


def test_six_token_counts_cover_every_request(sweep: GuardedRun) -> None:
    sweep.run(*sweep.args, "-k", "every_request", warmed_by("warmup_that_covers"), fake=False).assert_outcomes(passed=1)
    (test,) = sweep.report["tests"]
    assert (test["verdict"], test["evidence"]["launches"]) == ("clean", 2 * (1024 - 24))


def test_the_warmup_as_it_was_misses_both_gemms_of_a_large_request(sweep: GuardedRun) -> None:
    sweep.run(*sweep.args, "-k", "large_request", warmed_by("warmup_as_it_was"), fake=False).assert_outcomes(failed=1)
    first, second = sweep.violations("test_large_request")
    assert {first["kernel"], second["kernel"]} == {"wna16_moe_gemm"}
    assert first["never_warmed"]
    assert "K=512" in first["cure"]
    assert "K=256" in second["cure"]


def test_profile_run_and_graph_sizes_cover_four_of_twelve(sweep: GuardedRun) -> None:
    sweep.run(*sweep.args, "-k", "every_request", "--jitguard-warmup=graphs:warm_up", fake=False).assert_outcomes(
        failed=1
    )
    assert sweep.report["warmup"]["compiled"] + sweep.report["warmup"]["cache_loaded"] == 4
    missing = sweep.violations("test_every_request")
    assert len(missing) == 8
    changed = [{change["component"] for change in violation["changes"]} for violation in missing]
    assert all(components <= {"EM", "num_valid_tokens", "BLOCK_SIZE_M"} for components in changed)
