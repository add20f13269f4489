"""The heavy JIT systems in a child of a guarded test: what they compile there is that test's violation."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import GuardedRun
from tests.processes.conftest import reporting_python  # noqa: F401 - a fixture
from tests.serving.test_serving_systems import check_children, need

pytestmark = pytest.mark.heavy

TILELANG = """
import tilelang
import tilelang.language as T

@tilelang.jit(out_idx=[-1], target="c")
def scale(size):
    @T.prim_func
    def main(A: T.Tensor((size,), "float32"), B: T.Tensor((size,), "float32")):
        with T.Kernel(1):
            for i in T.serial(size):
                B[i] = A[i] * 8

    return main

scale(8)
"""

CUTEDSL = """
import cutlass
from cutlass import cute

@cute.jit
def scale(n: cutlass.Int32) -> None:
    m = n * 8

scale(1)
"""

JAX = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
import jax, numpy

@jax.jit
def scale(x):
    return x * 8

scale(jax.device_put(numpy.ones(8, numpy.float32)))
"""


@pytest.mark.tells("tilelang", "children")
def test_tilelang_compiles_in_a_child(
    guarded: GuardedRun,
    reporting_python: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need("tilelang")
    monkeypatch.setenv("TILELANG_CACHE_DIR", str(tmp_path / "tilelang"))
    check_children(guarded, reporting_python, tmp_path, {"tilelang": TILELANG})


@pytest.mark.tells("cutedsl", "children")
def test_cutedsl_compiles_in_a_child(
    guarded: GuardedRun,
    reporting_python: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need("cutlass")
    # Its folder comes by a .pth file of its own, which the children's Python does not read.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], *filter(None, sys.path)]))
    check_children(guarded, reporting_python, tmp_path, {"cutedsl": CUTEDSL})


@pytest.mark.tells("jax", "children")
def test_jax_compiles_in_a_child(guarded: GuardedRun, reporting_python: Path, tmp_path: Path) -> None:  # noqa: F811
    need("jax")
    check_children(guarded, reporting_python, tmp_path, {"jax": JAX})
