from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import env as jit_env
from .core import JitSpec, get_tmpdir


class JitSpecCuteDsl(JitSpec):
    def __init__(self, module_name: str, kernel_name: str, compile_fn: Callable[[], bytes], source_sha256: str) -> None:
        self.module_name, self.kernel_name, self.compile_fn = module_name, kernel_name, compile_fn
        self.module_dir_name = f"{module_name}_sm90a_cute_dsl"
        self.name = f"{self.module_dir_name}/{kernel_name}"
        self.module_dir = jit_env.FLASHINFER_JIT_DIR / self.module_dir_name
        self.object_path = self.module_dir / f"{kernel_name}.o"
        self.meta_path = self.module_dir / "meta.json"
        self.source_sha256 = source_sha256
        self.lock_path = get_tmpdir() / f"{self.module_dir_name}.lock"

    def try_load(self) -> Any:
        if not self.object_path.exists() or self.meta_path.read_text() != self.source_sha256:
            return None
        return self._load_from_disk()

    def build(self) -> None:
        self._export(self.compile_fn())

    def compile_and_persist(self) -> None:
        self._export(self.compile_fn())

    def load(self) -> Any:
        return self._load_from_disk()

    def _load_from_disk(self) -> Any:
        return self.object_path.read_bytes()

    def _export(self, compiled: bytes) -> None:
        self.module_dir.mkdir(parents=True, exist_ok=True)
        self.object_path.with_suffix(".tmp").write_bytes(compiled)
        self.object_path.with_suffix(".tmp").replace(self.object_path)
        self.meta_path.write_text(self.source_sha256)
