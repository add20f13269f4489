"""Factories, and the way from one of their calls to a kernel."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from tilelang.jit.kernel import JITKernel as JITKernel

from tilelang.cache import cached  # isort: skip - it needs JITKernel from here


def compile(func: Any = None, out_idx: Any = None, target: Any = None, pass_configs: Any = None) -> Any:
    return cached(func=func, out_idx=out_idx, target=target, pass_configs=pass_configs)


class JITImpl:
    mode = "lazy"

    def __init__(self, func: Any, out_idx: Any, target: Any, pass_configs: Any) -> None:
        self.func = SimpleNamespace(orig_func=func)
        self.signature = inspect.signature(func)
        self.out_idx, self.target, self.pass_configs = out_idx, target, pass_configs
        self._kernel_cache: dict[Any, Any] = {}

    def get_tir(self, *args: Any, **kwargs: Any) -> Any:
        return self.func.orig_func(*args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> Any:
        program = self.get_tir(*args, **kwargs)
        return compile(program, out_idx=self.out_idx, target=self.target, pass_configs=self.pass_configs)

    def par_compile(self, configs: Iterable[dict[str, Any]], num_workers: int | None = None) -> list[Any]:
        programs = [self.get_tir(**config) for config in configs]
        with ThreadPoolExecutor(num_workers, "tl-par-comp") as pool:
            return list(pool.map(lambda program: compile(program, self.out_idx, self.target), programs))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        key = tuple(bound.arguments.items())
        kernel = self._kernel_cache.get(key)
        if kernel is None:
            kernel = self._kernel_cache[key] = self.compile(*args, **kwargs)
        return kernel


def jit(*, out_idx: Any = None, target: Any = "c", pass_configs: Any = None) -> Any:
    return lambda func: JITImpl(func, out_idx, target, pass_configs)
