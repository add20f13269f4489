"""The functions that are C++ in the real library."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

from . import _config
from ._jit import Jit

jit = Jit(os.environ.get("FAKE_DEEP_GEMM", "G2"))


def fp8_gemm_nt(a: Any, b: Any, d: Any, c: Any = None, recipe: Any = None, compiled_dims: str = "nk") -> None:
    (m, k), n = a[0].shape, b[0].shape[0]
    code = _config.gemm(m, n, k, 1, "Normal", compiled_dims)
    jit.build("sm90_fp8_gemm_1d2d", code + ("// FAIL" if m == 13 else ""))


def m_grouped_fp8_gemm_nt_contiguous(a: Any, b: Any, d: Any, m_indices: Any, compiled_dims: str = "nk") -> None:
    (m, k), (groups, n) = a[0].shape, b[0].shape[:2]
    code = _config.gemm(m, n, k, groups, "MGroupedContiguous", compiled_dims)
    jit.build("sm90_m_grouped_fp8_gemm_contiguous_1d2d", code)


def get_mn_major_tma_aligned_tensor(x: Any) -> Any:
    jit.build("transpose_fp32", _config.transpose(x.shape[-1] * 128))
    return x


class _MethodDef(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_kept: list[Any] = []


def without_frame(function: Callable[..., Any]) -> Any:
    """Return what pybind11 would make of a function: a builtin, which has no frame (see native.c)."""
    native = ctypes.PyDLL(os.environ["FAKE_NATIVE"])
    address = ctypes.cast(native.native, ctypes.c_void_p).value
    method = _MethodDef(function.__name__.encode(), address, 0x1 | 0x2, None)
    _kept.extend((native, method, function))
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.POINTER(_MethodDef), ctypes.py_object, ctypes.c_void_p]
    return make(ctypes.byref(method), function, None)
