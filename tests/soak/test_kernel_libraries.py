"""Kernels that nobody here wrote: libraries from PyPI, unmodified, guarded under the offline target."""

from __future__ import annotations

import importlib.util

import pytest

from tests.conftest import GuardedRun

pytestmark = pytest.mark.soak

ROWS = "(1, 2, 7, 16, 33, 64, 100, 128)"

LIGER = f"""
    import torch
    ROWS = {ROWS}

    def rms_norm(rows):
        from liger_kernel.transformers.functional import liger_rms_norm
        return liger_rms_norm(torch.randn(rows, 512, device="cuda"), torch.ones(512, device="cuda"), 1e-6)

    def swiglu(rows):
        from liger_kernel.transformers.functional import liger_swiglu
        return liger_swiglu(torch.randn(rows, 512, device="cuda"), torch.randn(rows, 512, device="cuda"))

    def rope(rows):
        from liger_kernel.transformers.functional import liger_rope
        q, k = torch.randn(1, 8, rows, 64, device="cuda"), torch.randn(1, 2, rows, 64, device="cuda")
        cos, sin = torch.randn(1, rows, 64, device="cuda"), torch.randn(1, rows, 64, device="cuda")
        return liger_rope(q, k, cos, sin)

    def cross_entropy(rows):
        from liger_kernel.transformers.functional import liger_cross_entropy
        target = torch.zeros(rows, dtype=torch.long, device="cuda")
        return liger_cross_entropy(torch.randn(rows, 1000, device="cuda"), target)

    OPS = {{"rms_norm": rms_norm, "swiglu": swiglu, "rope": rope, "cross_entropy": cross_entropy}}

    @pytest.mark.jitguard
    @pytest.mark.parametrize("op", OPS)
    def test_cold(op):
        for rows in ROWS:
            OPS[op](rows)

    @pytest.mark.jitguard
    @pytest.mark.parametrize("op", OPS)
    def test_warmed_with_128_rows(op, jitguard):
        with jitguard.warmup():
            OPS[op](128)
        for rows in ROWS:
            OPS[op](rows)
"""
FLA = """
    import torch

    def norm(rows):
        from fla.modules.layernorm import rms_norm
        x = torch.randn(rows, 256, device="cuda")
        return rms_norm(x, torch.ones(256, device="cuda"), None)

    @pytest.mark.jitguard
    def test_cold():
        norm(64)

    @pytest.mark.jitguard
    def test_other_row_counts_are_warmed_by_one(jitguard):
        with jitguard.warmup():
            norm(64)
        for rows in (64, 128):
            norm(rows)
"""


@pytest.fixture
def library_run(guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch) -> GuardedRun:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(guarded.path / "cache"))
    guarded.args = ("--jitguard-offline=cuda:90", "-q", "-W", "ignore")
    return guarded


def need(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps {package}")


def test_liger_kernel(library_run: GuardedRun) -> None:
    need("liger_kernel", "liger-kernel")
    library_run.suite(LIGER)
    library_run.run(*library_run.args, fake=False, timeout=300)
    counts = {t["nodeid"].rpartition("::")[2]: len(t["violations"]) for t in library_run.report["tests"]}
    assert counts == {
        "test_cold[rms_norm]": 1,
        "test_cold[swiglu]": 1,
        "test_cold[rope]": 3,
        "test_cold[cross_entropy]": 3,
        "test_warmed_with_128_rows[rms_norm]": 0,
        "test_warmed_with_128_rows[swiglu]": 0,
        "test_warmed_with_128_rows[rope]": 2,
        "test_warmed_with_128_rows[cross_entropy]": 2,
    }
    explained = library_run.violations("test_warmed_with_128_rows[rope]")
    assert all(violation["changes"] and not violation["never_warmed"] for violation in explained)


def test_flash_linear_attention(library_run: GuardedRun) -> None:
    need("fla", "fla-core")
    library_run.suite(FLA)
    library_run.run(*library_run.args, fake=False, timeout=300)
    kinds = [violation["kind"] for violation in library_run.violations("test_cold")]
    assert kinds.count("autotune") == 1
    assert kinds.count("compile") > 1
