"""A real vLLM 0.21.0: every compile while serving is found, in its request; the advised entries cure it.

Which requests compile what was measured without the guard: 14 compiles over nine prompt lengths (cold Triton cache,
H100, Triton 3.6), of which vLLM's own monitor logs 4.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest

from pytest_jitguard.core.verdicts import merge_entries
from tests.conftest import ROOT, GuardedRun
from tests.processes.conftest import reporting_python  # noqa: F401 - a fixture

pytestmark = pytest.mark.gpu

GEMMS = Counter({"fused_moe_kernel_gptq_awq": 2})
COMPILED = {
    "8": Counter({"_compute_slot_mapping_kernel": 2, "kernel_unified_attention": 2, "reduce_segments": 1}),
    "16": Counter({"_compute_slot_mapping_kernel": 1}),
    **dict.fromkeys(("500", "501", "28", "25"), GEMMS),
}


@pytest.fixture
def vllm(guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch, reporting_python: Path) -> GuardedRun:  # noqa: F811
    if importlib.util.find_spec("vllm") is None:  # not imported here: it cannot be imported twice
        pytest.skip("needs vLLM")
    guarded.python = str(reporting_python)
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "0")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Sockets of vLLM lie in the temporary folder by default, and their paths may have 107 characters at most.
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "/tmp")
    monkeypatch.chdir(ROOT)
    return guarded


@pytest.mark.parametrize("door", ["llm", "http"])
def test_every_compile_is_found_in_its_request_and_the_advice_cures_it(
    door: str, vllm: GuardedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    args = (f"examples/real_vllm/test_{door}.py", "--jitguard-cache=cold", "-q", "-s", "-o", "filterwarnings=default")
    first = vllm.run(*args, fake=False, timeout=280)
    report = vllm.report
    found = {
        test["nodeid"].partition("[")[2].rstrip("]"): Counter(v["kernel"] for v in test["violations"])
        for test in report["tests"]
        if test["violations"]
    }
    assert found == {f"{length}-first": kernels for length, kernels in COMPILED.items()}
    assert sum(sum(kernels.values()) for kernels in found.values()) == 14
    assert {v["role"] for t in report["tests"] for v in t["violations"]} == {"vllm engine core"}
    assert report["findings"] == []
    logged = len(re.findall(r"Triton kernel JIT compilation during inference", first.stdout.str()))
    print(f"{door}: vLLM's own monitor logged {logged} of 14 on this terminal")

    entries = merge_entries(v["cure"] for t in report["tests"] for v in t["violations"])
    (tmp_path / "entries.py").write_text(entries)
    print(entries)
    monkeypatch.setenv("WARMUP_ENTRIES", str(tmp_path / "entries.py"))
    cured = vllm.run(*args, fake=False, timeout=280)
    assert cured.ret == 0, [v["message"] for t in vllm.report["tests"] for v in t["violations"]]
    assert set(vllm.verdicts().values()) == {"clean"}
