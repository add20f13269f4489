"""Names for what Inductor does when a compiled graph runs for the first time: kernels tuned, CUDA graphs recorded."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any


def cache_folder() -> str:
    """Return the folder where Inductor puts the code that it writes, as it is now."""
    default = getattr(sys.modules.get("torch._inductor.runtime.cache_dir_utils"), "default_cache_dir", None)
    return os.environ.get("TORCHINDUCTOR_CACHE_DIR") or (str(default()) if default else "<inductor>")


def tuned_name(tuner: Any) -> str:
    """Return the kernel that a `CachingAutotuner` or a `CoordescTuner` tunes."""
    meta = getattr(tuner, "inductor_meta", None)
    named = meta.get("kernel_name") if isinstance(meta, Mapping) else None
    function = getattr(getattr(tuner, "fn", None), "__name__", "")
    return str(named or function or getattr(tuner, "name", "") or type(tuner).__name__)


def best_of(timings: Any) -> str:
    """Say which of the benchmarked launchers won."""
    if not isinstance(timings, Mapping) or not timings:
        return ""
    best = min(timings, key=lambda launcher: timings[launcher])
    return f"chose {getattr(best, 'config', best)} of {len(timings)}"


def captured(manager: Any, function: Any, names: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Return kernel and module of the function that a CUDA graph is recorded of; `names` is by compile id."""
    ids, modes = getattr(manager, "id_to_compile_id", {}), getattr(manager, "id_to_mode", {})
    mode = str(getattr(modes.get(function), "name", "")).lower()
    kernel, module = names.get(str(ids.get(function)), ("", ""))
    if not kernel:
        kernel = str(manager.get_func_name(function)) if hasattr(manager, "get_func_name") else "cudagraph"
    return (f"{kernel} (backward)" if mode == "backward" else kernel), module
