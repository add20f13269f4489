"""A green that never reached its kernel is not green: launches are counted in what is served, on the offline target."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT, GuardedRun

pytest.importorskip("triton", reason="needs torch and Triton")


def test_only_launches_that_are_served_meet_an_expectation(
    guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(guarded.path / "cache"))
    (guarded.path / "kernels.py").write_text((Path(ROOT) / "tests/soak/kernels.py").read_text())
    guarded.suite("""
        import kernels, torch

        def scale():
            x = torch.empty(64, device="cuda")
            kernels.scale[(1,)](x, x, 64, BLOCK=64)

        pytestmark = pytest.mark.jitguard(expect=["triton:scale"])

        @pytest.fixture
        def warm(jitguard):
            scale()

        @pytest.fixture(scope="session")
        def engine():
            scale()

        def test_in_the_call(warm):
            scale()

        def test_in_setup_only(warm): pass

        def test_in_a_warmup_block_only(jitguard):
            with jitguard.warmup():
                scale()
                with jitguard.warmup():
                    scale()

        def test_in_a_fixture_inside_the_call_only(request):
            request.getfixturevalue("engine")

        def test_beside_serving_blocks_only(warm, jitguard):
            scale()
            with jitguard.serving():
                pass

        def test_in_a_serving_block(warm, jitguard):
            with jitguard.serving():
                with jitguard.serving("inner"):
                    scale()
    """)
    guarded.run("--jitguard-offline=cuda:90", fake=False)
    assert guarded.verdicts() == {
        "test_in_the_call": "clean",
        "test_in_setup_only": "violated",
        "test_in_a_warmup_block_only": "violated",
        "test_in_a_fixture_inside_the_call_only": "violated",
        "test_beside_serving_blocks_only": "violated",
        "test_in_a_serving_block": "clean",
    }
    launches = {t["nodeid"].rpartition("::")[2]: t["evidence"]["launches"] for t in guarded.report["tests"]}
    assert (launches["test_in_a_serving_block"], launches["test_in_a_warmup_block_only"]) == (1, 0)


def test_the_place_of_the_failure_is_in_the_test(guarded: GuardedRun) -> None:
    guarded.suite("""
        @pytest.mark.jitguard
        def test_compiles():
            fakejit.launch("gemm")
    """)
    result = guarded.run("--tb=line")
    result.stdout.fnmatch_lines(["*/test_suite.py:5: *gemm (fakejit) compiled in*"])


def test_the_short_summary_of_ci_has_the_first_line_and_no_more(
    guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    guarded.suite("""
        @pytest.mark.jitguard
        def test_compiles():
            fakejit.launch("gemm")
    """)
    printed = guarded.run("--tb=no").stdout.str().partition("short test summary info")[2]
    assert "gemm (fakejit) compiled in" in printed
    assert "add this to the warmup" not in printed
