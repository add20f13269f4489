"""quack's kernels by the CuTe DSL's monitor: compiles and loads of its `.o` cache, under its own names."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "monitors"))

from cutedsl_scenes import MONITOR, environment
from scenes import Scene, Stage

pytestmark = pytest.mark.heavy
pytest.importorskip("nvidia_cutlass_dsl")

_BEGIN = """
import torch
from cutlass import Float16, Float32
from quack.rmsnorm import _compile_rmsnorm_fwd
def rmsnorm(size):
    return _compile_rmsnorm_fwd(Float16, Float16, None, Float32, None, None, size, False, False, False, False)
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    variables = {"QUACK_ARCH": "90", "QUACK_CACHE_DIR": str(tmp_path / "quack")}
    return Stage(MONITOR, tmp_path, {**environment(tmp_path), **variables})


def play(stage: Stage, body: str) -> Scene:
    pytest.importorskip("quack")
    return stage.play(_BEGIN + textwrap.dedent(body))


@pytest.mark.tells("cutedsl", "compile", "hit", "cache_load", "name", "key")
def test_a_compile_and_a_load_have_the_name_of_the_function_that_quack_caches(stage: Stage) -> None:
    body = """
    rmsnorm(1024); say("first")
    rmsnorm(1024); say("again")
    told["misses"] = _compile_rmsnorm_fwd.cache_info().misses
    """
    cold, warm = play(stage, body), play(stage, body)
    assert cold.kinds("first") == ["compile _compile_rmsnorm_fwd"]
    assert warm.kinds("first") == ["cache_load _compile_rmsnorm_fwd"]
    assert (cold["misses"], warm["misses"]) == (1, 0)
    assert cold["again"] == warm["again"] == []
    for told in (cold, warm):
        assert {"dtype=Float16", "weight_dtype=Float32", "N=1024", "arch=sm_90a"} <= set(told.one("first")["key"])
        assert told["state"] == ["armed", ""]
    assert cold.one("first")["hash"] == warm.one("first")["hash"] is not None


@pytest.mark.tells("cutedsl", "failed", "cache_load")
def test_an_object_file_that_is_broken_is_a_failed_load_and_then_a_compile(stage: Stage) -> None:
    play(stage, "rmsnorm(1024)")
    (stored,) = (stage.folder / "quack").rglob("*.o")
    stored.write_bytes(b"no object file")
    told = play(stage, "rmsnorm(1024); say('broken')")
    assert told.kinds("broken") == ["cache_load _compile_rmsnorm_fwd failed", "compile _compile_rmsnorm_fwd"]
