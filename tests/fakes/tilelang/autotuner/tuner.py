"""Compiles the configurations on the threads of a pool, and measures none of them: there is no GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any


class AutoTuner:
    def __init__(self, fn: Any, configs: Any) -> None:
        self.fn, self.configs = fn, configs
        self.jit_compile: Any = None
        self._kernel_parameters: Any = None
        self._function_parameters: dict[str, Any] = {}

    def _prepare_compile_execution(self, config_args: Any, compile_func: Any) -> Any:
        pool = ThreadPoolExecutor(max_workers=1)

        def compile_unit(config: dict[str, Any]) -> Any:
            self.jit_compile = compile_func
            return compile_func(**config)

        return pool, [pool.submit(compile_unit, config) for config in config_args]

    def run(self) -> Any:
        pool, futures = self._prepare_compile_execution(self.configs, self.jit_compile)
        for future in futures:
            future.result()
        pool.shutdown()
        raise RuntimeError("Auto-tuning failed: No configuration successfully compiled and passed benchmarking.")


class AutoTuneImpl:
    def __init__(self, jit_impl: Any, configs: Any) -> None:
        self.jit_impl, self.configs = jit_impl, configs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tuner = AutoTuner(self.jit_impl.func, self.configs)
        tuner.jit_compile = lambda **config: self.jit_impl(*args, **kwargs, **config)
        tuner._kernel_parameters = (args, tuple(sorted(kwargs.items())))
        tuner._function_parameters = dict(self.jit_impl.signature.parameters)
        return tuner.run()
