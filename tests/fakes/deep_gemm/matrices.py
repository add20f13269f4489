"""What the tests give to DeepGEMM: things like tensors, or tensors where ops of torch are called."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Like:
    """As much of a tensor as DeepGEMM's shapes need."""

    shape: tuple[int, ...]
    dtype: str

    def stride(self) -> tuple[int, ...]:
        return self.shape[1], 1


def tensor(shape: tuple[int, ...], dtype: str) -> Any:
    if os.environ.get("FAKE_DEEP_GEMM") != "G3":
        return Like(shape, f"torch.{dtype}")
    import torch

    return torch.empty(shape, dtype=getattr(torch, dtype))


def gemm(m: int, n: int = 2112, k: int = 7168) -> tuple[Any, Any, Any]:
    """Return a, b and d of `fp8_gemm_nt`."""
    a = tensor((m, k), "float8_e4m3fn"), tensor((m, k // 128), "float32")
    b = tensor((n, k), "float8_e4m3fn"), tensor((n // 128, k // 128), "float32")
    return a, b, tensor((m, n), "bfloat16")
