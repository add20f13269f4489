"""The functions of `cupy.cuda.compiler` 14.2 by which a kernel is looked up in the cache folder and compiled.

The compilers are a hash and a pause. Everything else goes as there: options are added on the way, the compiler is asked
for its version by an empty source once in a process, and what it made is kept on disk unless that is switched off.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

_empty_file_preprocess_cache: dict[Any, str] = {}


class CompileException(Exception):
    pass


class _DiskKernelCache:
    def load(self, name: str) -> bytes | None:
        path = Path(os.environ["CUPY_CACHE_DIR"]) / name
        return path.read_bytes() if path.exists() else None

    def save(self, name: str, payload: bytes, source: str) -> None:
        folder = Path(os.environ["CUPY_CACHE_DIR"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(payload)


_kernel_cache_backend = _DiskKernelCache()


def _run(source: str, options: tuple[str, ...]) -> bytes:
    time.sleep(0.002)
    if "garbage" in source:
        raise CompileException('kern.cu(1): error: identifier "garbage" is undefined')
    return hashlib.sha1(f"{source}{options}".encode()).digest()


def _compile_using_nvrtc_no_warning(
    source: str,
    options: tuple[str, ...] = (),
    arch: str | None = None,
    filename: str = "kern.cu",
    name_expressions: Any = None,
    log_stream: Any = None,
    cache_in_memory: bool = False,
    jitify: Any = None,
    method: str | None = None,
) -> tuple[bytes, dict[str, str]]:
    return _run(source, (*options, f"-arch=sm_{arch}")), {}


def compile_using_nvrtc(source: str, options: tuple[str, ...] = (), arch: str | None = None, **more: Any) -> Any:
    return _compile_using_nvrtc_no_warning(source, options, arch, **more)


def compile_using_nvcc(
    source: str,
    options: tuple[str, ...] = (),
    arch: str | None = None,
    filename: str = "kern.cu",
    code_type: str = "cubin",
    separate_compilation: bool = False,
    log_stream: Any = None,
) -> bytes:
    return _run(source, (*options, f"-gencode=arch=compute_{arch},code=sm_{arch}"))


def _preprocess(source: str, options: tuple[str, ...], arch: str, backend: str) -> str:
    if backend == "nvcc":
        result = compile_using_nvcc(source, (*options, "-o", "preprocess.ptx"), arch, "preprocess.cu", code_type="ptx")
    else:
        result = _run(source, (*options, f"-arch=compute_{arch}"))
    return result.hex()


def _compile_module_with_cache(
    source: str,
    options: tuple[str, ...] = (),
    *,
    arch: str | None = None,
    extra_source: str | None = None,
    backend: str = "nvrtc",
    enable_cooperative_groups: bool = False,
    name_expressions: Any = None,
    log_stream: Any = None,
    jitify: bool = False,
    to_ltoir: bool = False,
) -> bytes:
    arch = arch or "90"
    options = (*options, "-ftz=true")
    environment = (arch, options, backend)
    base = _empty_file_preprocess_cache.get(environment)
    if base is None:
        base = _empty_file_preprocess_cache[environment] = _preprocess("", options, arch, backend)
    name = hashlib.sha1(f"{environment} {base} {source} {name_expressions}".encode()).hexdigest() + ".cubin"
    cache_in_memory = os.environ.get("CUPY_CACHE_IN_MEMORY") == "1" and backend == "nvrtc"
    payload = None if cache_in_memory else _kernel_cache_backend.load(name)
    if payload is not None:
        return payload
    if backend == "nvrtc":
        payload, _ = _compile_using_nvrtc_no_warning(
            source, options, arch, f"{name}.cu", name_expressions, log_stream, cache_in_memory, jitify, None
        )
    else:
        payload = compile_using_nvcc(source, options, arch, f"{name}.cu")
    if not cache_in_memory:
        _kernel_cache_backend.save(name, payload, source)
    return payload
