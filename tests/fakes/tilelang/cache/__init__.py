"""The caches of programs, one for each execution backend."""

from __future__ import annotations

from typing import Any

from tilelang.cache.kernel_cache import KernelCache

_dispatch_map: dict[str, KernelCache] = {"cython": KernelCache(), "tvm_ffi": KernelCache()}


def cached(func: Any = None, out_idx: Any = None, **options: Any) -> Any:
    return _dispatch_map["cython"].cached(func, out_idx, **options)
