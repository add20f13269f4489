"""FlashInfer's own operators on a real GPU: what a request has nvcc build is that request's violation."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from typing import Any

import pytest

from tests.conftest import GuardedRun

pytestmark = pytest.mark.gpu

SERVED = """
    import flashinfer, torch

    def decode(head_dim):
        q = torch.randn(8, head_dim, device="cuda", dtype=torch.float16)
        k, v = (torch.randn(128, 2, head_dim, device="cuda", dtype=torch.float16) for _ in range(2))
        got = flashinfer.single_decode_with_kv_cache(q, k, v)
        k, v = (each.repeat_interleave(4, dim=1).transpose(0, 1) for each in (k, v))
        expected = torch.nn.functional.scaled_dot_product_attention(q[:, None], k, v)[:, 0]
        torch.testing.assert_close(got, expected, atol=1e-2, rtol=1e-2)

    def activate(how):
        x = torch.randn(4, 256, device="cuda", dtype=torch.float16)
        return getattr(flashinfer, how)(x)

    def warm_up():
        decode(64)
        activate("silu_and_mul")
"""
SUITE = """
    from served import activate, decode

    pytestmark = pytest.mark.jitguard

    def test_warm_decode(): decode(64)
    def test_cold_decode(): decode(128)
    def test_cold_decode_again(): decode(128)
    def test_warm(): activate("silu_and_mul")
    def test_cold(): activate("gelu_and_mul")
"""


@pytest.fixture
def flashinfer(guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch) -> GuardedRun:
    if importlib.util.find_spec("flashinfer") is None:  # not imported here: it brings much that stays
        pytest.skip("needs FlashInfer")
    monkeypatch.setenv("FLASHINFER_WORKSPACE_BASE", str(guarded.path / "workspace"))
    guarded.pytester.makepyfile(served=SERVED)
    guarded.suite(SUITE)
    return guarded


def told(report: Any) -> dict[str, Counter[tuple[str, str, str]]]:
    return {
        test["nodeid"].rpartition("::")[2]: Counter((v["system"], v["kind"], v["kernel"]) for v in test["violations"])
        for test in report["tests"]
        if test["violations"]
    }


@pytest.mark.tells("flashinfer", "compile", "hit", "cache_load", "name", "seconds", "reason", "key")
@pytest.mark.parametrize("witness", ["off", "cupti"])
def test_what_nvcc_builds_for_a_request_is_its_violation(witness: str, flashinfer: GuardedRun) -> None:
    """With all monitors and both nets: nvcc, ptxas and ninja below it are no events of their own."""
    args = ("--jitguard-warmup=served:warm_up", f"--jitguard-witness={witness}")
    flashinfer.run(*args, fake=False, timeout=280)
    found = told(flashinfer.report)
    assert found.keys() == {"test_cold_decode", "test_cold"}
    assert found["test_cold"] == {("flashinfer", "compile", "gelu_and_mul"): 1}
    (decode,) = flashinfer.violations("test_cold_decode")
    assert (decode["system"], decode["kind"]) == ("flashinfer", "compile")
    assert re.search(r"single_decode.*head_dim_qk_128", decode["kernel"])
    assert re.match(r".*head_dim_qk: 64 → 128, .*head_dim_vo: 64 → 128 against the nearest module", decode["cause"])
    assert decode["seconds"] > 1
    assert flashinfer.report["findings"] == []

    flashinfer.run(*args, fake=False, timeout=280)
    found = told(flashinfer.report)
    assert {kind for kinds in found.values() for _, kind, _ in kinds} == {"cache_load"}
    assert flashinfer.report["findings"] == []
