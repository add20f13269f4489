from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from . import env as jit_env
from .cpp_ext import ninja_file, run_ninja


class MissingJITCacheError(RuntimeError):
    def __init__(self, message: str, spec: Any) -> None:
        self.spec = spec
        super().__init__(message)


class Context:
    TARGET_CUDA_ARCHS = {(9, "0a")}  # noqa: RUF012


current_compilation_context = Context()


def get_tmpdir() -> Path:
    (jit_env.FLASHINFER_JIT_DIR / "tmp").mkdir(parents=True, exist_ok=True)
    return jit_env.FLASHINFER_JIT_DIR / "tmp"


class JitSpec:
    name: str
    lock_path: Path

    def try_load(self) -> Any:
        raise NotImplementedError

    def build(self) -> None:
        raise NotImplementedError

    def load(self) -> Any:
        raise NotImplementedError

    def build_and_load(self) -> Any:
        cached = self.try_load()
        if cached is not None:
            return cached
        with FileLock(self.lock_path, thread_local=False):
            cached = self.try_load()
            if cached is not None:
                return cached
            if os.environ.get("FLASHINFER_DISABLE_JIT"):
                raise MissingJITCacheError("JIT compilation is disabled via FLASHINFER_DISABLE_JIT", spec=self)
            self.build()
            return self.load()


class JitSpecNvcc(JitSpec):
    def __init__(self, name: str, sources: Sequence[Path]) -> None:
        self.name, self.sources = name, list(sources)
        self.build_dir = jit_env.FLASHINFER_JIT_DIR / name
        self.ninja_path = self.build_dir / "build.ninja"
        self.jit_library_path = self.build_dir / f"{name}.so"
        self.aot_path = jit_env.FLASHINFER_AOT_DIR / name / f"{name}.so"
        self.lock_path = get_tmpdir() / f"{name}.lock"

    def write_ninja(self) -> None:
        self.build_dir.mkdir(parents=True, exist_ok=True)
        content = ninja_file(self.jit_library_path, self.sources)
        if not self.ninja_path.exists() or self.ninja_path.read_text() != content:
            self.ninja_path.write_text(content)

    def try_load(self) -> Any:
        return self.load(self.aot_path) if self.aot_path.exists() else None

    def build(self, verbose: bool = False, need_lock: bool = False) -> None:
        if os.environ.get("FLASHINFER_DISABLE_JIT"):
            raise MissingJITCacheError("JIT compilation is disabled via FLASHINFER_DISABLE_JIT", spec=self)
        with FileLock(self.lock_path, thread_local=False) if need_lock else nullcontext():
            self.write_ninja()
            run_ninja(self.build_dir, self.ninja_path, verbose)

    def load(self, so_path: Path | None = None) -> Any:
        return ctypes.CDLL(str(so_path or self.jit_library_path))


def gen_jit_spec(name: str, sources: Sequence[Path]) -> JitSpecNvcc:
    return JitSpecNvcc(name, sources)


@functools.cache
def get_module(name: str, source: Path) -> Any:
    """Do as FlashInfer's getters, which are memoised."""
    return gen_jit_spec(name, [source]).build_and_load()


def build_jit_specs(specs: Sequence[JitSpecNvcc], verbose: bool = False) -> None:
    for spec in specs:
        with FileLock(spec.lock_path, thread_local=False):
            spec.write_ninja()
    file = get_tmpdir() / "flashinfer_jit.ninja"
    file.write_text("\n".join([*(f"subninja {spec.ninja_path}" for spec in specs), ""]))
    run_ninja(jit_env.FLASHINFER_JIT_DIR, file, verbose)
