"""Machines without a GPU: real images from the assembler, and a libcupti that calls back when a test says so."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_jitguard.witness import build
from tests.conftest import ROOT

PTX = """//
.version 8.0
.target sm_90
.address_size 64

.visible .entry add_one(.param .u64 p)
{
    ret;
}

.visible .entry _ZN2ns5scaleILi3EEEvPf(.param .u64 p)
{
    ret;
}
"""


def _assembler() -> str:
    found = shutil.which("ptxas") or ""
    spec = importlib.util.find_spec("triton")
    for folder in spec.submodule_search_locations or () if spec else ():
        own = Path(folder, "backends", "nvidia", "bin", "ptxas")
        found = found or (str(own) if own.is_file() else "")
    return found


@pytest.fixture(scope="session")
def ptx() -> str:
    return PTX


@pytest.fixture(scope="session")
def cubin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real cubin of two kernels."""
    assembler, folder = _assembler(), tmp_path_factory.mktemp("cubin")
    if not assembler:
        pytest.skip("needs ptxas, which Triton brings")
    (folder / "two.ptx").write_text(PTX)
    subprocess.run([assembler, "-arch=sm_90", "two.ptx", "-o", "two.cubin"], cwd=folder, check=True)
    return folder / "two.cubin"


@pytest.fixture(scope="session")
def fake_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages with a libcupti that obeys tests, and beside it a driver that does nothing."""
    folder = tmp_path_factory.mktemp("site")
    place = folder / "nvidia" / "cu13" / "lib"
    place.mkdir(parents=True)
    source = Path(__file__).with_name("fake_cupti.c")
    line = [*build.compiler(), "-O1", "-shared", "-fPIC", "-std=gnu11", str(source), "-o"]
    subprocess.run([*line, str(place / "libcupti.so.13")], check=True)
    subprocess.run([*line, str(place / "libcuda.so.1")], check=True)
    return folder


Child = Callable[..., "subprocess.CompletedProcess[str]"]

HEAD = """
import ctypes, glob, os, sys, threading, time
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet
from pytest_jitguard.witness import cupti

def arm(*names):
    recorder = Recorder("cafe0001", lambda record: None)
    monitors = MonitorSet([*names, "pytest_jitguard.witness.cupti:CuptiWitness"], recorder)
    monitors.arm()
    return recorder, monitors, monitors.named("cupti")

def libraries():
    driver = ctypes.CDLL("libcuda.so.1")
    (path,) = [p for folder in sys.path for p in glob.glob(f"{folder}/nvidia/cu13/lib/libcupti.so.13")]
    fake = ctypes.CDLL(path)
    fake.fake_load.argtypes = [ctypes.c_uint, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64] + [
        ctypes.c_char_p, ctypes.c_size_t]
    fake.fake_enter.argtypes = fake.fake_leave.argtypes = [ctypes.c_uint, ctypes.c_char_p]
    fake.fake_module.argtypes = [ctypes.c_uint, ctypes.c_char_p, ctypes.c_size_t]
    fake.fake_jit.argtypes = [ctypes.c_uint, ctypes.c_uint, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint]
    fake.fake_overhead.argtypes = [ctypes.c_uint, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint]
    return driver, fake

"""


@pytest.fixture
def child(tmp_path: Path) -> Child:
    """Run a script in a process of its own, with the witness at hand and, if asked for, the fake CUDA."""

    def run(script: str, *args: object, cuda: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), **variables}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([str(cuda)] if cuda else [])])
        environment["LD_LIBRARY_PATH"] = str(cuda / "nvidia" / "cu13" / "lib") if cuda else ""
        line = [sys.executable, "-c", HEAD + textwrap.dedent(script), *map(str, args)]
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=100)

    return run
