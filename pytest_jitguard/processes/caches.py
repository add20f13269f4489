"""The disk caches of JIT systems: the variable that moves each, and a cold start in a fresh folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pytest_jitguard.processes import environment

CACHE_ROOTS = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "PYTORCH_KERNEL_CACHE_PATH": "torch_kernels",
    "VLLM_CACHE_ROOT": "vllm",
    "SGLANG_CACHE_DIR": "sglang",
    "SGLANG_DG_CACHE_DIR": "sglang/deep_gemm",
    "SGLANG_JIT_CACHE_DIR": "sglang/jit",
    "SGLANG_CUTE_AOT_CACHE_DIR": "sglang/cute_aot",
    "DG_JIT_CACHE_DIR": "deep_gemm",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "CUTE_DSL_CACHE_DIR": "cute_dsl",
    "QUACK_CACHE_DIR": "quack",
    "TILELANG_CACHE_DIR": "tilelang",
    "TVM_FFI_CACHE_DIR": "tvm_ffi",
    "AITER_JIT_DIR": "aiter",
    "AITER_ROOT_DIR": "aiter_root",
    "HELION_CACHE_DIR": "helion",
    "CUDA_TILE_CACHE_DIR": "cutile",
    "HUMMING_CACHE_DIR": "humming",
    "FLYDSL_RUNTIME_CACHE_DIR": "flydsl",
    "NUMBA_CACHE_DIR": "numba",
    "CUPY_CACHE_DIR": "cupy",
    "JAX_COMPILATION_CACHE_DIR": "jax",
    "CUDA_CACHE_PATH": "cuda",
}
"""Environment variable to subfolder, for every system whose cache a variable moves."""


def redirect(folder: Path) -> Callable[[], None]:
    """Point every known cache root into an empty folder; return what puts the environment back."""
    places = {variable: folder / name for variable, name in CACHE_ROOTS.items()}
    for place in places.values():
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return environment.put({variable: str(place) for variable, place in places.items()})
