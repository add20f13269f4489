"""A compiled kernel, from the compiler or from the database."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace
from typing import Any

_TOGETHER = threading.Barrier(int(os.environ.get("FAKE_TILELANG_TOGETHER", "1")))
"""How many compiles have to be under way before one goes on."""


class JITKernel:
    def __init__(
        self,
        func: Any = None,
        out_idx: Any = None,
        execution_backend: str = "cython",
        target: Any = "c",
        target_host: Any = None,
        verbose: bool = False,
        pass_configs: Any = None,
        from_database: bool = False,
        compile_flags: Any = None,
    ) -> None:
        self.prim_func, self.execution_backend = func, execution_backend
        self.target = SimpleNamespace(kind=SimpleNamespace(name=str(target)), attrs={})
        self.pass_configs, self.compile_flags = pass_configs or {}, compile_flags
        if from_database:
            return
        self.adapter = self._compile_and_create_adapter(func, out_idx)

    @classmethod
    def from_database(cls, func: Any, kernel_lib_path: str, out_idx: Any, **options: Any) -> JITKernel:
        kernel = cls(func=func, out_idx=out_idx, from_database=True, **options)
        kernel.adapter = kernel._create_adapter_from_database(
            params=[],
            result_idx=out_idx,
            target=kernel.target,
            func_or_mod=func,
            host_kernel_source=None,
            device_kernel_source=None,
            kernel_lib_path=kernel_lib_path,
        )
        return kernel

    def _compile_and_create_adapter(self, tilelang_func: Any, out_idx: Any) -> Any:
        time.sleep(0.01)
        _TOGETHER.wait(60)
        unknown = [name for name in self.pass_configs if not str(name).startswith("tl.")]
        if unknown:
            raise AttributeError(f"Invalid config option {unknown[0]!r}")
        return SimpleNamespace(func=tilelang_func)

    def _create_adapter_from_database(
        self,
        params: Any,
        result_idx: Any,
        target: Any,
        func_or_mod: Any,
        host_kernel_source: Any,
        device_kernel_source: Any,
        kernel_lib_path: str,
        pass_configs: Any = None,
        compile_flags: Any = None,
    ) -> Any:
        with open(kernel_lib_path, encoding="utf-8"):  # noqa: PTH123 - the path is a text, as in the original
            return SimpleNamespace(func=func_or_mod)
