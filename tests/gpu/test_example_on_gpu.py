"""The example, guarded for real: same verdicts as the offline target on the same Triton, with correct outputs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT, GuardedRun
from tests.docs.pages import blocks

pytestmark = pytest.mark.gpu

SERVING = "examples/wna16_moe/test_serving.py"
WARMUPS = ("warmup_as_it_was", "warmup_with_a_large_batch", "warmup_that_covers")
CANARY = """
import torch
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet

monitors = MonitorSet(["triton"], Recorder("canary", lambda record: None))
monitors.arm()
import triton
monitors.prove()
assert [monitor.state for monitor in monitors] == ["armed"], [monitor.to_wire() for monitor in monitors]
assert not torch.cuda.is_initialized()
x = torch.empty(16, device="cuda")
assert torch.cuda.is_initialized()
"""


def shape(report: Any) -> dict[str, Any]:
    """What must be equal on the GPU and on the offline target."""
    return {
        "warmed": report["warmup"]["compiled"] + report["warmup"]["cache_loaded"],
        "tests": {
            test["nodeid"]: (test["verdict"], sorted(_changes(violation) for violation in test["violations"]))
            for test in report["tests"]
        },
    }


def _changes(violation: Any) -> Any:
    return (violation["kernel"], violation["kind"], tuple(sorted(map(str, violation["changes"]))))


@pytest.mark.parametrize("warmup", WARMUPS)
def test_verdicts_are_those_of_the_offline_target(
    guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, warmup: str
) -> None:
    monkeypatch.chdir(request.config.rootpath)
    args = (SERVING, f"--jitguard-warmup=examples.wna16_moe.warmup:{warmup}", "--jitguard-cache=cold", "-q")
    real = guarded.run(*args, fake=False, timeout=300)
    on_gpu = guarded.report
    offline = guarded.run(*args, "--jitguard-offline=h100", fake=False, timeout=300)
    assert shape(guarded.report) == shape(on_gpu)
    assert real.ret == offline.ret == (0 if warmup == "warmup_that_covers" else 1)
    assert on_gpu["environment"]["offline"] is None


def test_the_entry_that_the_guard_advises_cures_the_readmes_tour(guarded: GuardedRun) -> None:
    serving, tests = blocks((ROOT / "README.md").read_text(), "python", "## A tour")[:2]
    (guarded.path / "serving.py").write_text(serving)
    (guarded.path / "test_serving.py").write_text(tests)
    guarded.run("--jitguard-warmup=serving:warm_up", fake=False).assert_outcomes(failed=1, passed=2)
    (violation,) = guarded.violations("test_request[500]")
    body = "\n".join(f"    {line}" for line in violation["cure"].splitlines())
    (guarded.path / "cured.py").write_text(f"import serving\n\n\ndef warm_up():\n    serving.warm_up()\n{body}\n")
    guarded.run("--jitguard-warmup=cured:warm_up", fake=False).assert_outcomes(passed=3)


def test_the_canary_creates_no_cuda_context() -> None:
    subprocess.run([sys.executable, "-c", CANARY], check=True)


def test_a_hit_costs_no_frame_of_ours_on_the_gpu() -> None:
    subprocess.run([sys.executable, "-m", "tests.gpu.count_frames"], check=True)
