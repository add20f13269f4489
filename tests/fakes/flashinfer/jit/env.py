import importlib.util
import os
from pathlib import Path


def has_flashinfer_jit_cache() -> bool:
    return importlib.util.find_spec("flashinfer_jit_cache") is not None


_BASE = Path(os.environ.get("FLASHINFER_WORKSPACE_BASE", "/nowhere")) / ".cache" / "flashinfer"
FLASHINFER_AOT_DIR = _BASE / "aot"
FLASHINFER_CUBIN_DIR = _BASE / "cubins"
FLASHINFER_JIT_DIR = _BASE / "0.7.2" / "90a" / "cached_ops"
