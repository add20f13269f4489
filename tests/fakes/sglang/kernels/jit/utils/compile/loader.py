from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import ninja


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_jit(*args: str, source: str, flags: tuple[str, ...] = ()) -> Any:
    spec = ninja.BuildSpec(args, source, flags)
    build_file = ninja.generate(spec)
    scope = Path(os.environ["SGLANG_JIT_CACHE_DIR"], "sm90a", spec.module_name, f"build-{_hash(build_file)}")
    leaf = scope / f"deps-{_hash(Path(source).read_text())}"
    library = leaf / f"{spec.module_name}.so"
    if library.exists():
        return _load(library)
    if os.environ.get("SGLANG_CRASH_ON_JIT_COMPILE") == "1":
        raise RuntimeError(
            f"JIT module '{spec.module_name}' has no usable cached build under {scope}, "
            "and SGLANG_CRASH_ON_JIT_COMPILE forbids compiling"
        )
    with _build_lock(scope):
        if library.exists():
            return _load(library)
        staging = scope / f".staging-{uuid.uuid4().hex}"
        try:
            module = _load(ninja.build(spec=spec, build_dir=staging, build_file=build_file))
            staging.rename(leaf)
            return module
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _build_lock(scope: Path) -> Iterator[None]:
    scope.mkdir(parents=True, exist_ok=True)
    handle = os.open(scope / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _load(library: Path) -> Any:
    return ctypes.CDLL(str(library))
