from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

BUILD_DIR = str(Path(os.environ.get("AITER_ROOT_DIR", "/nowhere"), "build"))


def mp_lock(
    lock_path: str,
    main_func: Callable[[], Any],
    final_func: Callable[[], Any] | None = None,
    wait_func: Callable[[], Any] | None = None,
) -> Any:
    from aiter.jit.utils.file_baton import FileBaton

    baton = FileBaton(lock_path)
    if baton.try_acquire():
        try:
            return main_func()
        finally:
            baton.release()
    baton.wait()
    return None


def compile_lib(src_file: str, folder: str, includes: Any = None, sources: Any = None, cxxflags: Any = None) -> None:
    build_dir = Path(BUILD_DIR, folder)
    build_dir.mkdir(parents=True, exist_ok=True)

    def main_func() -> None:
        (build_dir / f"{folder}.c").write_text(src_file)
        command = ["cc", "-shared", "-fPIC", f"{folder}.c", "-o", "lib.so"]
        subprocess.run(command, cwd=build_dir, check=True, capture_output=True)

    mp_lock(lock_path=f"{build_dir}/lock", main_func=main_func, final_func=lambda: None)


def compile_hsaco(kernel_name: str, hsaco: bytes, constexprs: Any = None) -> None:
    build_dir = Path(BUILD_DIR, "gfx942")
    build_dir.mkdir(parents=True, exist_ok=True)
    main_func = functools.partial((build_dir / f"{kernel_name}.hsaco").write_bytes, hsaco)
    mp_lock(lock_path=f"{build_dir}/{kernel_name}.lock", main_func=main_func)


@functools.cache
def run_lib(func_name: str, folder: str) -> Any:
    return getattr(ctypes.CDLL(f"{BUILD_DIR}/{folder}/lib.so"), func_name)


def compile_template_op(source: str, func_name: str) -> Any:
    if not Path(BUILD_DIR, func_name, "lib.so").exists():
        compile_lib(source, func_name)
    return run_lib(func_name, func_name)
