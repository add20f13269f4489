"""Memory under a lock, then disk, then the compiler."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

from tilelang.jit import JITKernel


class KernelCache:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._memory_cache: dict[str, Any] = {}

    def cached(self, func: Any = None, out_idx: Any = None, *, target: Any = None, pass_configs: Any = None) -> Any:
        key = hashlib.sha256(f"{func.script()} {out_idx} {target} {pass_configs}".encode()).hexdigest()
        with self._lock:
            if key in self._memory_cache:
                return self._memory_cache[key]
        library = Path(os.environ["TILELANG_CACHE_DIR"]) / "kernels" / key / "kernel_lib.so"
        options = {"target": target, "pass_configs": pass_configs}
        if library.exists():
            kernel = JITKernel.from_database(func=func, kernel_lib_path=str(library), out_idx=out_idx, **options)
        else:
            kernel = JITKernel(func, out_idx=out_idx, **options)
            # As in the original, whose adapter resolves the numbers in the factory's own list.
            out_idx[:] = [index % len(func.params) for index in out_idx]
            library.parent.mkdir(parents=True, exist_ok=True)
            library.write_text("library")
        with self._lock:
            return self._memory_cache.setdefault(key, kernel)
