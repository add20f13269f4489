from __future__ import annotations

import ctypes
import functools
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# As in AITER: this file has two names, so that its class is there twice.
sys.path.insert(0, str(Path(__file__).parent / "utils"))
FileBaton = importlib.import_module("file_baton").FileBaton

RULES = "rule compile\n  command = cc -fPIC -c $in -o $out\nrule link\n  command = cc -shared $in -o $out\n"


def mp_lock(
    lockPath: str,
    MainFunc: Callable[[], Any],
    FinalFunc: Callable[[], Any] | None = None,
    WaitFunc: Callable[[], Any] | None = None,
) -> Any:
    baton = FileBaton(lockPath)
    if baton.try_acquire():
        try:
            ret = MainFunc()
        finally:
            if FinalFunc is not None:
                FinalFunc()
            baton.release()
    else:
        baton.wait()
        if WaitFunc is not None:
            ret = WaitFunc()
        ret = None
    return ret


@functools.lru_cache(maxsize=1)
def get_user_jit_dir() -> str:
    return os.environ["AITER_JIT_DIR"]


bd_dir = f"{get_user_jit_dir()}/build"
Path(bd_dir).mkdir(parents=True, exist_ok=True)

__mds: dict[str, Any] = {}


def get_module_custom_op(md_name: str) -> None:
    library = Path(get_user_jit_dir(), f"{md_name}.so")
    if not library.exists():
        raise ModuleNotFoundError(md_name)
    __mds[md_name] = ctypes.CDLL(str(library))


@functools.lru_cache(maxsize=1024)
def get_module(md_name: str) -> Any:
    get_module_custom_op(md_name)
    return __mds[md_name]


def build_module(md_name: str, srcs: Sequence[str], *args: Any, **kwargs: Any) -> None:
    library = Path(get_user_jit_dir(), f"{md_name}.so")
    folder = Path(bd_dir, md_name, "build")

    def clone() -> None:
        return None

    def MainFunc() -> None:
        library.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        text = f"{RULES}build main.o: compile {srcs[0]}\nbuild {md_name}.so: link main.o\n"
        (folder / "build.ninja").write_text(text)
        done = subprocess.run(["ninja"], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"[aiter] build [{md_name}] under {folder} failed !!!!!!")
        shutil.copy(folder / f"{md_name}.so", library)

    mp_lock(lockPath=f"{bd_dir}/lock_3rdparty_clone_HipKittens", MainFunc=clone)
    mp_lock(lockPath=f"{bd_dir}/lock_{md_name}", MainFunc=MainFunc, FinalFunc=lambda: None)


def call(md_name: str, source: str) -> Any:
    """Do as an operator made by `compile_ops`: import the module, or build it and import it then."""
    try:
        return get_module(md_name)
    except ModuleNotFoundError:
        build_module(md_name, [source])
        return get_module(md_name)
