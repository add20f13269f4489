"""Where this machine has a CUDA toolkit."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def cuda_home() -> Path | None:
    """Return where nvcc is; one on the path may be a wrapper whose folder is no toolkit."""
    places = [os.environ.get("CUDA_HOME", ""), *sorted(map(str, Path("/usr/local").glob("cuda*")), reverse=True)]
    found = [Path(place) for place in places if place and (Path(place) / "bin" / "nvcc").exists()]
    nvcc = shutil.which("nvcc")
    return found[0] if found else Path(nvcc).parents[1] if nvcc else None
