"""The server example with real kernels: two ranks as two processes on one GPU, the verdicts of the offline target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, GuardedRun
from tests.processes.conftest import reporting_python  # noqa: F401 - a fixture

pytestmark = pytest.mark.gpu


@pytest.fixture
def server(guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch, reporting_python: Path) -> GuardedRun:  # noqa: F811
    pytest.importorskip("uvicorn")
    guarded.python = str(reporting_python)
    monkeypatch.chdir(ROOT)
    return guarded


def shape(report: Any) -> Any:
    """What must be equal on the GPU and on the offline target: in which test, on which rank, which kernel, why."""
    return {
        test["nodeid"]: sorted(
            (v["rank"], v["kernel"], v["kind"], tuple(sorted(map(str, v["changes"])))) for v in test["violations"]
        )
        for test in report["tests"]
    }


@pytest.mark.parametrize("warmup", ["basic", "full"])
def test_verdicts_are_those_of_the_offline_target(
    warmup: str, server: GuardedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXAMPLE_WARMUP", warmup)
    args = ("examples/server", "--jitguard-cache=cold", "-q", "-o", "filterwarnings=default")
    real = server.run(*args, fake=False, timeout=250)
    on_gpu = shape(server.report)
    assert server.report["environment"]["offline"] is None
    assert server.report["findings"] == []
    offline = server.run(*args, "--jitguard-offline=h100", fake=False, timeout=250)
    assert shape(server.report) == on_gpu
    assert real.ret == offline.ret == (1 if warmup == "basic" else 0)
    ranks = [[violation[0] for violation in violations] for violations in on_gpu.values() if violations]
    assert sorted(ranks) == ([[0, 0, 1, 1], [1, 1], [1, 1]] if warmup == "basic" else [])
