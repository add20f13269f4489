"""The places on disk where JIT systems keep what they compiled: the one table of them."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """One cache of compiled code.

    `variable` moves it, `cold` is its subfolder in a cold start. `below` is where the cache lies inside the folder that
    the variable names, `defaults` are the full paths without the variable (`~`, `{tmp}`, `{user}`). `entries` are the
    patterns of what stands for one compile, a file or a whole folder, below that. `systems` are those whose events
    explain a new entry, besides systems that this table does not know.
    """

    variable: str
    cold: str
    defaults: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    below: str = ""


_TORCH = ("inductor", "dynamo", "triton", "helion")
_SGLANG = ("sglang_jit", "sglang", "deep_gemm", "cutedsl", "tvm_ffi", "triton", "flashinfer", "tilelang", *_TORCH)
_HIP = ("aiter", "flydsl", "triton", "cpp_extension")

PLACES: tuple[Place, ...] = (
    Place("TRITON_CACHE_DIR", "triton", ("~/.triton/cache",), ("*",), (*_TORCH, "aiter", "flashinfer", "tilelang")),
    Place(
        "TORCHINDUCTOR_CACHE_DIR",
        "inductor",
        ("{tmp}/torchinductor_{user}",),
        ("??/*.so", "triton/*/*", "fxgraph/*/*", "aotautograd/*"),
        _TORCH,
    ),
    Place(
        "TORCH_EXTENSIONS_DIR",
        "torch_extensions",
        ("~/.cache/torch_extensions",),
        ("*/*.so", "*/*/*.so"),
        ("cpp_extension", "aiter", "inductor"),
    ),
    Place(
        "PYTORCH_KERNEL_CACHE_PATH",
        "torch_kernels",
        ("~/.cache/torch/kernels",),
        ("*",),
        ("jiterator", "torch_nvrtc", "nvrtc", *_TORCH),
    ),
    Place(
        "VLLM_CACHE_ROOT",
        "vllm",
        ("~/.cache/vllm",),
        (
            "deep_gemm/cache/*",
            "torch_compile_cache/*/*/inductor_cache/??/*.so",
            "torch_compile_cache/*/*/triton_cache/*",
        ),
        ("deep_gemm", *_TORCH),
    ),
    Place("SGLANG_CACHE_DIR", "sglang", ("~/.cache/sglang",), ("triton/*", "inductor/??/*.so"), _SGLANG),
    Place("SGLANG_DG_CACHE_DIR", "sglang/deep_gemm", ("~/.cache/sglang/deep_gemm",), ("cache/*",), ("deep_gemm",)),
    Place("SGLANG_JIT_CACHE_DIR", "sglang/jit", ("~/.cache/sglang/jit",), ("*/*/build-*/deps-*",), _SGLANG),
    Place("SGLANG_CUTE_AOT_CACHE_DIR", "sglang/cute_aot", ("~/.cache/sglang/cute_aot",), ("*.o", "*/*.o"), _SGLANG),
    Place("DG_JIT_CACHE_DIR", "deep_gemm", ("~/.deep_gemm", "~/.dj"), ("cache/*",), ("deep_gemm",)),
    Place(
        "FLASHINFER_WORKSPACE_BASE",
        "flashinfer",
        ("~/.cache/flashinfer",),
        ("*/*/cached_ops/*/*.so", "*/*/cached_ops/*/*.o"),
        ("flashinfer", "cutedsl"),
        below=".cache/flashinfer",
    ),
    Place(
        "CUTE_DSL_CACHE_DIR",
        "cute_dsl",
        ("{tmp}/{user}/cutlass_python_cache",),
        ("*.mlir",),
        ("cutedsl", "flashinfer", "inductor", "helion"),
    ),
    Place("QUACK_CACHE_DIR", "quack", ("{tmp}/{user}/quack_cache",), ("*/*.o",), ("cutedsl", "quack")),
    Place("TILELANG_CACHE_DIR", "tilelang", ("~/.tilelang/cache",), ("*/*/kernels/*",), ("tilelang",)),
    Place(
        "TVM_FFI_CACHE_DIR",
        "tvm_ffi",
        ("~/.cache/tvm-ffi",),
        ("*/*.so",),
        ("tvm_ffi", "flashinfer", "tilelang", "sglang_jit"),
    ),
    Place("AITER_JIT_DIR", "aiter", ("~/.aiter/jit",), ("*.so",), _HIP),
    Place("AITER_ROOT_DIR", "aiter_root", ("~/.aiter",), ("build/*/*.so", "build/*/*.hsaco"), _HIP),
    Place("HELION_CACHE_DIR", "helion", ("{tmp}/torchinductor_{user}/helion",), ("triton/*/*",), _TORCH),
    Place("CUDA_TILE_CACHE_DIR", "cutile", ("~/.cache/cutile-python",), ("*.db",), ("cutile", "flashinfer")),
    Place("HUMMING_CACHE_DIR", "humming", ("~/.humming/cache",), ("*",), ("humming", "nvrtc")),
    Place("FLYDSL_RUNTIME_CACHE_DIR", "flydsl", ("~/.flydsl/cache",), ("*/*.pkl",), ("flydsl", "aiter")),
    # Without the variable numba writes beside the sources, which is nobody's place.
    Place("NUMBA_CACHE_DIR", "numba", (), ("*/*.nbc",), ("numba", "numba_cuda")),
    Place("CUPY_CACHE_DIR", "cupy", ("~/.cupy/kernel_cache",), ("*.cubin", "*.hsaco"), ("cupy", "nvrtc")),
    Place("JAX_COMPILATION_CACHE_DIR", "jax", (), ("*-cache",), ("jax",)),
    Place(
        "CUDA_CACHE_PATH",
        "cuda",
        ("~/.nv/ComputeCache",),
        ("*/*/*",),
        ("nvrtc", "cuda_core", "torch_nvrtc", "cupy", "numba_cuda", "driver"),
    ),
)
"""Every cache that a variable moves. Generous in `systems`: a nested system's compile is its outer one's event."""

CACHE_ROOTS = {place.variable: place.cold for place in PLACES}
"""Environment variable to subfolder of a cold start."""

SYSTEMS = frozenset(system for place in PLACES for system in place.systems)
"""The systems whose writing is known; any other may write anywhere."""
