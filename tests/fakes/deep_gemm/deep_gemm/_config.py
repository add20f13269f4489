"""A rule of our own for choosing a kernel, with the properties of the real ones: pieces of constant choice in M."""

from __future__ import annotations

state = {"num_sms": 132}

_TEXT = """#include <deep_gemm/impls/{header}.cuh>

using namespace deep_gemm;

static void __instantiate_kernel() {{
    auto ptr = reinterpret_cast<void*>(&{function}<
        {arguments}
    >);
}};
"""


def gemm(m: int, n: int, k: int, groups: int, kind: str, compiled: str) -> str:
    """Return the source of the kernel that a GEMM of this size gets."""
    block_m = 64 if m <= 576 else 128
    stages = 8 if m <= 64 else 5
    shapes = [size if letter in compiled else 0 for letter, size in zip("mnk", (m, n, k), strict=True)]
    swizzles, threads = (128, 128, 64), (128, 256)
    numbers = [*shapes, groups, block_m, 96, 128, *swizzles, stages, *threads, 2, "false", state["num_sms"]]
    arguments = ["cute::UMMA::Major::K", *numbers, f"GemmType::{kind}", "epilogue::transform::EpilogueIdentity"]
    text = ", ".join(map(str, arguments))
    return _TEXT.format(header="sm90_fp8_gemm_1d2d", function="sm90_fp8_gemm_1d2d_impl", arguments=text)


def transpose(k: int) -> str:
    """Return the source of the kernel that brings scales into their layout."""
    return _TEXT.format(header="smxx_layout", function="transpose_fp32", arguments=f"512, 64, {k // 128}")
