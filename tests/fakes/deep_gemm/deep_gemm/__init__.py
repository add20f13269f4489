"""DeepGEMM's surface over a fake of its JIT; FAKE_DEEP_GEMM says which generation (G1, G2, G3).

FAKE_NATIVE is the library made of native.c. G2 has pybind11's functions if FAKE_PYBIND is set. G3 has Python functions
that call ops of torch.
"""

from __future__ import annotations

import os
from typing import Any

from . import _config, _native

__version__ = {"G1": "1.0.0", "G2": "2.5.0", "G3": "2.8.1"}[_native.jit.generation]


def set_num_sms(number: int) -> None:
    _config.state["num_sms"] = number


def get_num_sms() -> int:
    return _config.state["num_sms"]


_NAMES = ("fp8_gemm_nt", "m_grouped_fp8_gemm_nt_contiguous", "get_mn_major_tma_aligned_tensor")

if _native.jit.generation == "G3":
    import torch

    _library = torch.library.Library("deep_gemm", "DEF")
    _library.define(
        "fp8_gemm_nt(Tensor a, Tensor sfa, Tensor b, Tensor sfb, Tensor(a!) d, str compiled_dims='nk') -> ()"
    )

    def _fp8_gemm_nt(a: Any, sfa: Any, b: Any, sfb: Any, d: Any, compiled_dims: str = "nk") -> None:
        _native.fp8_gemm_nt((a, sfa), (b, sfb), d, compiled_dims=compiled_dims)

    _library.impl("fp8_gemm_nt", _fp8_gemm_nt, "CPU")

    def fp8_fp4_gemm_nt(a: Any, b: Any, d: Any, c: Any = None, recipe: Any = None, compiled_dims: str = "") -> None:
        torch.ops.deep_gemm.fp8_gemm_nt.default(*a, *b, d, compiled_dims)

    fp8_gemm_nt = fp8_fp4_gemm_nt
    m_grouped_fp8_gemm_nt_contiguous = _native.m_grouped_fp8_gemm_nt_contiguous
    get_mn_major_tma_aligned_tensor = _native.get_mn_major_tma_aligned_tensor
else:
    for _name in _NAMES:
        _function = getattr(_native, _name)
        if os.environ.get("FAKE_PYBIND"):
            _function = _native.without_frame(_function)
        globals()[_name] = _function
