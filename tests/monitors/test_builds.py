"""What monitors of systems that build with ninja share."""

from __future__ import annotations

import pytest

from pytest_jitguard.core.keys import diff
from pytest_jitguard.monitors._builds import parameters

PREFILL = "batch_prefill_dtype_q_bf16_head_dim_qk_{head}_posenc_0_use_swa_False_f16qk_{reduced}{ending}"


@pytest.mark.parametrize(
    ("warmed", "served", "changes"),
    [
        ("norm_dtype_bf16_dim_64", "norm_dtype_bf16_dim_128", ["dim: 64 → 128"]),
        ("module_add_bfloat16_bfloat16", "module_add_bfloat16_float32", ["parameter 2: bfloat16 → float32"]),
        ("gemm_fp8e4m3_32", "gemm_fp8e5m2_32", ["gemm: fp8e4m3 → fp8e5m2"]),
        (
            PREFILL.format(head=128, reduced=False, ending=""),
            PREFILL.format(head=256, reduced=True, ending="_sm90"),
            ["head_dim_qk: 128 → 256", "f16qk: False → True", "ending: absent → sm90"],
        ),
        ("mha_bf16_nlogits_nbias", "mha_bf16_nlogits_alibi", ["ending: nlogits_nbias → nlogits_alibi"]),
        ("tile_a_2_a_3", "tile_a_3_a_2", ["tile_a: 2 → 3", "a: 3 → 2"]),
        ("a_2_a_3", "a_3_a_2", ["a: 2 → 3", "a #2: 3 → 2"]),
    ],
)
def test_names_of_modules_tell_in_what_they_differ(warmed: str, served: str, changes: list[str]) -> None:
    before, after = parameters(warmed), parameters(served)
    assert before is not None
    assert after is not None
    assert [str(change) for change in diff(before, after)] == changes


@pytest.mark.parametrize("name", ["", "decode", "page_sm90", "x\u0663"])
def test_a_name_without_values_tells_nothing(name: str) -> None:
    assert parameters(name) is None
