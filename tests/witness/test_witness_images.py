"""What a loaded image is, and which kernels are in it; on what real assemblers wrote."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pytest_jitguard.witness import images
from pytest_jitguard.witness.images import CUBIN, FATBIN, FILE, LARGE, PTX, UNKNOWN, WRAPPER, Image, image_of

KERNELS = {"add_one", "_ZN2ns5scaleILi3EEEvPf"}

CUDA = """
extern "C" __device__ __noinline__ float helper(float x) { return x * x + sinf(x); }
extern "C" __global__ void add_one(float* x) { x[threadIdx.x] = helper(x[threadIdx.x]) + 1; }
namespace ns { template <int N> __global__ void scale(float* x) { x[threadIdx.x] *= N; } }
template __global__ void ns::scale<3>(float*);
"""


def test_a_cubin_names_its_kernels(cubin: Path) -> None:
    data = cubin.read_bytes()
    image = image_of(data)
    assert (image.kind, image.size, set(image.kernels)) == (CUBIN, len(data), KERNELS)


def test_ptx_names_its_entries(ptx: str) -> None:
    image = image_of(ptx.encode())
    assert (image.kind, set(image.kernels)) == (PTX, KERNELS)


def test_what_nvcc_makes(tmp_path: Path) -> None:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("needs nvcc")
    (tmp_path / "k.cu").write_text(CUDA)
    for form in ("cubin", "ptx", "fatbin"):
        subprocess.run([compiler, "-arch=sm_90", f"-{form}", "k.cu", "-o", f"k.{form}"], cwd=tmp_path, check=True)
    made = {form: image_of((tmp_path / f"k.{form}").read_bytes()) for form in ("cubin", "ptx", "fatbin")}
    assert [image.kind for image in made.values()] == [CUBIN, PTX, FATBIN]
    assert set(made["cubin"].kernels) == set(made["ptx"].kernels) == KERNELS  # and not the helper
    assert all(image.is_generated for image in made.values())


def test_a_wrapper_of_the_runtime_is_a_library() -> None:
    image = image_of(struct.pack("<IIQQ", 0x466243B1, 1, 0x7F0012345678, 0))
    assert (image.kind, image.is_generated) == (WRAPPER, False)


@pytest.mark.parametrize(
    ("kind", "size", "generated"), [(CUBIN, LARGE, False), (CUBIN, LARGE - 1, True), (FILE, 0, True)]
)
def test_what_is_large_is_a_library(kind: str, size: int, generated: bool) -> None:
    assert Image(kind, size).is_generated is generated


@pytest.mark.parametrize("length", [0, 3, 4, 17, 64, 200, -1, -100])
def test_an_image_that_is_cut_off_has_no_names_and_raises_nothing(cubin: Path, length: int) -> None:
    data = cubin.read_bytes()
    image = image_of(data[:length], len(data))
    assert image.size == len(data)
    assert set(image.kernels) <= KERNELS


def test_an_elf_of_another_machine_has_no_kernels() -> None:
    assert images.kernels_of_elf(Path("/proc/self/exe").read_bytes()) == ()


@pytest.mark.parametrize("data", [b"", b"\0\1\2\3", b"BC\xc0\xde1234", b"\x7fTileIR\0"])
def test_a_form_that_is_not_known_yet_is_no_library(data: bytes) -> None:
    assert (image_of(data).kind, image_of(data).is_generated) == (UNKNOWN, True)


@pytest.mark.parametrize(
    ("symbol", "names", "shown"),
    [
        ("add_one", ("add_one",), "add_one"),
        ("_Z7add_onePf", ("add_one",), "add_one"),
        ("_ZN2ns5scaleILi3EEEvPf", ("ns", "scale"), "ns::scale"),
        ("_Zanything", ("_Zanything",), "_Zanything"),
    ],
)
def test_symbols_as_people_write_them(symbol: str, names: tuple[str, ...], shown: str) -> None:
    assert images.identifiers(symbol) == names
    assert images.shown(symbol) == shown
