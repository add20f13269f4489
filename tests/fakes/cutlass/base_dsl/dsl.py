"""From a call of a program down to its cache: memory, then disk, then the compiler."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from cutlass.base_dsl.compiler import CompileOptions, Compiler
from cutlass.numbers import Int32, Number, traced


class DSLSingletonMeta(type):
    _instances: ClassVar[dict[type, Any]] = {}

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls not in DSLSingletonMeta._instances:
            DSLSingletonMeta._instances[cls] = super().__call__(*args, **kwargs)
        return DSLSingletonMeta._instances[cls]

    def clear_instances(cls) -> None:
        DSLSingletonMeta._instances.pop(cls, None)


class Module:
    """What tracing yields: operations, of which the first is the entry."""

    def __init__(self, name: str, inputs: list[str], lines: list[str]) -> None:
        entry = SimpleNamespace(name=f'"{name}"', type=SimpleNamespace(inputs=inputs), text=name)
        rest = [SimpleNamespace(name="line", text=line) for line in lines]
        self.body = SimpleNamespace(operations=[entry, *rest])

    def text(self) -> str:
        return "\n".join(operation.text for operation in self.body.operations)


class JitCompiledFunction:
    def __init__(self, module: Any, engine: Any, capi_func: Any, function_name: str) -> None:
        self.ir_module, self.engine, self.capi_func, self.function_name = module, engine, capi_func, function_name

    def run_compiled_program(self) -> None:
        self.capi_func()


class JitCacheDict:
    def __init__(self) -> None:
        self._dict: dict[Any, tuple[Any, Any]] = {}

    def get(self, key: Any) -> Any:
        held = self._dict.get(key)
        return held[0] if held else None

    def set(self, key: Any, value: Any, funcBody: Any = None) -> None:
        finalizer = weakref.finalize(funcBody, self._dict.pop, key, None) if funcBody else None
        self._dict[key] = (value, finalizer)


class BaseDSL(metaclass=DSLSingletonMeta):
    def __init__(self) -> None:
        self.compiler_provider = Compiler()
        self.compile_options = CompileOptions()
        self.jit_cache = JitCacheDict()
        self.envar = SimpleNamespace(arch=os.environ.get("CUTE_DSL_ARCH", "sm_90a"))

    @classmethod
    def _get_dsl(cls) -> Any:
        return cls()

    @classmethod
    def jit(cls, function: Any) -> Any:
        function._dsl_cls = cls

        @functools.wraps(function)
        def jit_wrapper(*args: Any, **kwargs: Any) -> Any:
            return cls._get_dsl()._func(function, *args, **kwargs)

        return jit_wrapper

    def _func(self, funcBody: Any, *args: Any, **kwargs: Any) -> Any:
        compile_only, no_cache = kwargs.pop("compile_only", False), kwargs.pop("no_cache", False)
        pipeline = kwargs.pop("pipeline", "builtin.module(cute-to-nvvm)")
        sig = inspect.signature(funcBody)
        bound = sig.bind(*args, **kwargs)
        bound.apply_defaults()
        return self.generate_mlir(funcBody, tuple(bound.arguments.values()), sig, pipeline, no_cache, compile_only)

    def generate_mlir(
        self, funcBody: Any, args: Any, sig: Any, pipeline: str, no_cache: bool, compile_only: bool
    ) -> Any:
        parameters = list(sig.parameters.values())
        dynamic = [
            value
            for parameter, value in zip(parameters, args, strict=True)
            if "Constexpr" not in str(parameter.annotation) and parameter.name != "self"
        ]
        plain = [str(value) for value in args if not hasattr(value, "__dict__")]
        name = "_".join(["cutlass", funcBody.__name__, *plain])
        traced.clear()
        funcBody(*(Int32(value) if type(value) is int else value for value in args))
        module = Module(name, [_type_of(value) for value in dynamic], traced)
        text = f"{module.text()} {funcBody.__module__} {self.compile_options.to_str()}"
        module_hash = None if no_cache else hashlib.sha256(text.encode()).hexdigest()
        function = None if no_cache else self.jit_cache.get(module_hash)
        if function is None or function.capi_func is None:
            function = self.compile_and_cache(
                module,
                module_hash,
                name,
                pipeline,
                sig,
                no_cache,
                False,
                full_args=args,
                full_kwargs={},
                dynamic_args=dynamic,
                dynamic_kwargs={},
                original_function_name=funcBody.__name__,
                funcBody=funcBody,
            )
        if compile_only:
            return function
        function.run_compiled_program()
        return None

    def compile_and_cache(
        self,
        module: Any,
        module_hash: str | None,
        function_name: str,
        pipeline: str,
        sig: Any,
        no_cache: bool,
        no_jit_engine: bool,
        *,
        full_args: Any = None,
        full_kwargs: Any = None,
        dynamic_args: Any = None,
        dynamic_kwargs: Any = None,
        original_function_name: str | None = None,
        funcBody: Any = None,
    ) -> Any:
        stored = _cache_folder() / f"cute_dsl_{module_hash}.mlir"
        if not no_cache and stored.exists():
            engine = self.compiler_provider.jit(module)
        else:
            engine = self.compiler_provider.compile_and_jit(module, pipeline, (), self.envar.arch)
        function = JitCompiledFunction(module, engine, engine.lookup(function_name), function_name)
        if not no_cache:
            self.jit_cache.set(module_hash, function, funcBody)
            stored.parent.mkdir(parents=True, exist_ok=True)
            stored.write_text(module.text())
        return function


def _type_of(value: Any) -> str:
    if isinstance(value, Number):
        return str(value.mlir_type)
    return {"int": "i32", "bool": "i1", "float": "f32"}.get(type(value).__name__, "!cute.memref")


def _cache_folder() -> Path:
    return Path(os.environ["CUTE_DSL_CACHE_DIR"])
