"""Real JIT systems in a child of a guarded test: what they compile there is that test's violation."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from tests.conftest import GuardedRun

SUITE = """
    import pathlib, subprocess, sys
    PROGRAMS = pathlib.Path({folder!r})

    @pytest.mark.jitguard
    @pytest.mark.parametrize("system", {systems!r})
    def test_child(system):
        subprocess.run([sys.executable, str(PROGRAMS / f"{{system}}_program.py")], check=True)
"""

TRITON = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

@triton.jit
def scale(x, SIZE: tl.constexpr):
    tl.store(x, tl.load(x) * SIZE)

source = ASTSource(scale, {"x": "*fp32", "SIZE": "constexpr"}, {(1,): 8})
triton.compile(source, target=GPUTarget("cuda", 90, 32))
"""

NUMBA = """
import numba

@numba.njit
def scale(x):
    return x * 8

scale(1)
"""

NVRTC = """
from cuda.bindings import nvrtc

code, program = nvrtc.nvrtcCreateProgram(b"__global__ void scale(int* x) { *x *= 8; }", b"scale.cu", 0, [], [])
assert not code
assert nvrtc.nvrtcCompileProgram(program, 0, []) == (nvrtc.nvrtcResult.NVRTC_SUCCESS,)
"""

TORCH = """
import torch

@torch.compile(backend="eager")
def scale(x):
    return x * 8

scale(torch.ones(8))
"""


def need(*libraries: str) -> None:
    """Skip without these; they are not imported, since pytester takes out of this process what comes in meanwhile."""
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"needs {library}")


def nvrtc_folders() -> list[str]:
    found = (path for folder in filter(None, sys.path) for path in Path(folder).glob("nvidia/*/lib/libnvrtc.so.*"))
    return sorted({str(path.parent) for path in found})


def check_children(guarded: GuardedRun, python: Path, folder: Path, programs: dict[str, str]) -> None:
    """Run each program in a child of a guarded test of its own; each compiles `scale`, and nothing else."""
    guarded.python = str(python)
    for system, program in programs.items():
        (folder / f"{system}_program.py").write_text(program)
    guarded.suite(SUITE.format(folder=str(folder), systems=list(programs)))
    guarded.run("-q", fake=False, timeout=300)
    for system in programs:
        violations = guarded.violations(f"test_child[{system}]")
        assert [(found["system"], found["kernel"].partition(".")[0]) for found in violations] == [(system, "scale")]
    assert guarded.verdicts() == {f"test_child[{system}]": "violated" for system in programs}
    assert guarded.report["findings"] == []


@pytest.mark.tells("triton", "children")
@pytest.mark.tells("numba", "children")
@pytest.mark.tells("nvrtc", "children")
def test_a_compile_in_a_child_is_its_test_s(
    guarded: GuardedRun, reporting_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("torch", "triton", "numba", "cuda.bindings")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    # The Python of the children has the packages on its path, and not in its own folder where cuda.bindings looks.
    monkeypatch.setenv("LD_LIBRARY_PATH", os.pathsep.join(nvrtc_folders()))
    check_children(
        guarded, reporting_python, tmp_path, {"triton": TRITON, "numba": NUMBA, "nvrtc": NVRTC, "dynamo": TORCH}
    )
