"""The real DeepGEMM, if there is one: vLLM's copy or upstream's. Each scenario compiles two GEMMs, 3 to 9 s each."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, GuardedRun

HARNESS = ROOT / "tests" / "fakes" / "deep_gemm" / "watched.py"


def _package() -> str:
    for name in ("vllm.third_party.deep_gemm", "deep_gemm"):
        try:
            if importlib.util.find_spec(name) is not None:
                return name
        except ImportError:
            continue
    return str(pytest.skip("needs DeepGEMM, alone or inside vLLM"))


SCRIPT = """
    import glob, importlib, os, sys, time
    # The fake of the same name lies beside the harness.
    sys.path = [place for place in sys.path if not place.endswith("fakes/deep_gemm")]
    watch = Watch()
    deep_gemm = importlib.import_module(os.environ["PACKAGE"])
    if watch.monitor.state == "waiting":
        watch.monitor.state = "unproven"
        watch.monitor.version = watch.monitor.version_of(deep_gemm)
        watch.monitor.install(deep_gemm)
    watch.monitors.prove()
    import torch

    fp8_gemm_nt_impl = deep_gemm.fp8_gemm_nt

    def fp8_gemm_nt(*args, **kwargs):
        return fp8_gemm_nt_impl(*args, **kwargs)

    def gemm(m, n=2112, k=7168):
        fp8 = {"dtype": torch.float8_e4m3fn, "device": "cuda"}
        a = torch.zeros((m, k), **fp8), torch.ones((m, k // 128), device="cuda")
        b = torch.zeros((n, k), **fp8), torch.ones((-(-n // 128), k // 128), device="cuda")
        d = torch.empty((m, n), dtype=torch.bfloat16, device="cuda")
        begun = time.monotonic()
        fp8_gemm_nt(a, b, d)
        torch.cuda.synchronize()
        return time.monotonic() - begun

    SCENARIO
    out["state"] = watch.monitor.to_wire()
    out["entries"] = sorted(map(os.path.basename, glob.glob(os.environ["DG_JIT_CACHE_DIR"] + "/cache/*")))
    out["events"] = watch.told
    watch.monitors.disarm()
"""


def run(cache: Path, scenario: str) -> Any:
    script = cache.parent / f"scenario{len(list(cache.parent.glob('scenario*')))}.py"
    script.write_text(textwrap.dedent(SCRIPT).replace("SCENARIO", textwrap.dedent(scenario).strip()))
    environment = {**os.environ, "DG_JIT_CACHE_DIR": str(cache), "PACKAGE": _package()}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(HARNESS), str(script)],
        env={name: value for name, value in environment.items() if not name.startswith("JITGUARD")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A cache folder that was empty, and what filling it looked like."""
    cache = tmp_path_factory.mktemp("deep_gemm") / "cache"
    scenario = """
out["seconds"] = {m: gemm(m) for m in (64, 577)}
out["hits"] = {m: gemm(m) for m in (64, 577)}
frames = 0
def count(frame, what, argument):
    global frames
    frames += what == "call" and "/pytest_jitguard/" in frame.f_code.co_filename
sys.setprofile(count)
for _ in range(1000):
    gemm(577)
sys.setprofile(None)
out["frames"] = frames
watch.settle()
"""
    return cache, run(cache, scenario)


@pytest.mark.tells("deep_gemm", "compile", "hit", "name", "seconds", "key", "reason", "no_frames")
def test_a_cold_m_is_found_with_family_shape_and_seconds(cold: tuple[Path, Any]) -> None:
    _, out = cold
    events = out["events"]
    assert len(events) == len(out["entries"])
    assert {event["artifact_hash"] for event in events} == {name.rpartition(".")[2] for name in out["entries"]}
    assert all((event["kind"], event["status"]) == ("compile", "ok") for event in events)
    gemms = [event for event in events if "gemm" in event["kernel"]]
    assert [event["launch"]["values"]["M"] for event in gemms] == ["64", "577"]
    for event in gemms:
        assert event["key"]["N"] == "2112"
        assert event["key"]["num_sms"].isdecimal()
        assert int(event["key"]["BLOCK_M"])
        assert 0.5 < event["seconds"] < out["seconds"][event["launch"]["values"]["M"]]
        assert event["stack"][0].endswith(":fp8_gemm_nt")
        assert re.search(r"deep_gemm\.fp8_(fp4_)?gemm_nt\(", event["cure"])  # two names of one function
    assert "M=577" in gemms[1]["reason"]
    assert max(out["hits"].values()) < 0.5
    assert out["frames"] == 0
    assert out["state"]["state"] == "armed", out["state"]


@pytest.mark.tells("deep_gemm", "cache_load")
def test_a_second_process_compiles_nothing(cold: tuple[Path, Any]) -> None:
    """Builds of generation 2 leave no trace of a load; those of generation 3 do."""
    cache, _ = cold
    out = run(cache, "out['seconds'] = {m: gemm(m) for m in (64, 577)}\nwatch.settle()")
    assert {event["kind"] for event in out["events"]} <= {"cache_load"}
    if (next((cache / "cache").iterdir()) / ".committed").exists():
        assert len(out["events"]) == len(out["entries"])


@pytest.mark.tells("deep_gemm", "refuse")
def test_a_refused_compile_raises_and_leaves_nothing(cold: tuple[Path, Any]) -> None:
    cache, before = cold
    scenario = """
watch.monitors.refuse(["deep_gemm"], on=True)
gemm(577)
try:
    gemm(64, n=4096)
except RuntimeError as error:
    out["error"] = str(error)
watch.settle()
"""
    out = run(cache, scenario)
    assert out["error"]
    assert [event["status"] for event in out["events"] if event["kind"] == "compile"] == ["failed"]
    assert out["entries"] == before["entries"]


SERVED = """
    import importlib, os, torch

    deep_gemm = importlib.import_module(os.environ["PACKAGE"])

    def gemm(m, n=2112, k=7168):
        fp8 = {"dtype": torch.float8_e4m3fn, "device": "cuda"}
        a = torch.zeros((m, k), **fp8), torch.ones((m, k // 128), device="cuda")
        b = torch.zeros((n, k), **fp8), torch.ones((-(-n // 128), k // 128), device="cuda")
        deep_gemm.fp8_gemm_nt(a, b, torch.empty((m, n), dtype=torch.bfloat16, device="cuda"))
        torch.cuda.synchronize()

    def warm_up(): gemm(64)
"""
SUITE = """
    from served import gemm

    pytestmark = pytest.mark.jitguard

    @pytest.mark.parametrize("time", range(3))
    def test_warm(time): gemm(64)
    def test_another_m(): gemm(577)
    def test_another_n(): gemm(64, n=4096)
"""


@pytest.mark.tells("deep_gemm", "compile", "name")
@pytest.mark.parametrize("witness", ["off", "cupti"])
def test_two_workers_on_one_cache_folder_are_each_told_their_own(
    witness: str, guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACKAGE", _package())
    monkeypatch.setenv("DG_JIT_CACHE_DIR", str(guarded.path / "cache"))
    guarded.pytester.makepyfile(served=SERVED)
    guarded.suite(SUITE)
    args = ("--jitguard-warmup=served:warm_up", f"--jitguard-witness={witness}")
    guarded.run("-p", "xdist", "-n", "2", *args, fake=False)
    assert guarded.report["findings"] == []
    events = {event["id"]: event for event in guarded.report["events"]}
    told = {
        name: [(v["system"], v["kind"], events[v["event"]]["launch"]["values"]["M"]) for v in guarded.violations(name)]
        for name, verdict in guarded.verdicts().items()
        if verdict != "clean"
    }
    assert told == {
        "test_another_m": [("deep_gemm", "compile", "577")],
        "test_another_n": [("deep_gemm", "compile", "64")],
    }
