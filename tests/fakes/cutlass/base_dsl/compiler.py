"""The compiler, and `cute.compile`, which is an object of this module's `CompileCallable`."""

from __future__ import annotations

import inspect
import os
import time
from typing import Any


class CompilerDiagnosticError(Exception):
    pass


class Compiler:
    def compile(self, module: Any, pipeline: str, arch: str = "", **options: Any) -> Any:
        time.sleep(float(os.environ.get("FAKE_CUTE_SECONDS", "0.002")))
        if not pipeline.startswith("builtin.module"):
            raise CompilerDiagnosticError(f"error: {pipeline} is no pipeline")
        return module

    def jit(self, module: Any, opt_level: int = 2, shared_libs: Any = ()) -> Any:
        return Engine(module)

    def compile_and_jit(self, module: Any, pipeline: str, shared_libs: Any = (), arch: str = "") -> Any:
        return self.jit(self.compile(module, pipeline, arch), 2, shared_libs)


class Engine:
    def __init__(self, module: Any) -> None:
        self.module = module

    def lookup(self, name: str) -> Any:
        return lambda: None


class CompileOptions:
    gpu_arch = ""

    def __init__(self, options: str = "") -> None:
        self.text = options or "opt-level=3 rdc=false"

    def to_str(self) -> str:
        return self.text


class CompileCallable:
    def __init__(self, options: str = "") -> None:
        self._compile_options = CompileOptions(options)

    def __getitem__(self, options: str) -> CompileCallable:
        return CompileCallable(options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._compile(*args, **kwargs)

    def _compile(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["compile_only"] = kwargs["no_cache"] = True
        if inspect.ismethod(func):
            func, args = func.__func__, (func.__self__, *args)
        elif not inspect.isfunction(func):
            func, args = type(func).__call__, (func, *args)
        func = inspect.unwrap(func)
        dsl = func._dsl_cls._get_dsl()
        dsl.compile_options = (
            CompileOptions(kwargs.pop("options", "")) if "options" in kwargs else self._compile_options
        )
        return dsl._func(func, *args, **kwargs)
