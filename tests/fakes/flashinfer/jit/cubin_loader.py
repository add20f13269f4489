from __future__ import annotations

import os
import urllib.error
import urllib.request
from typing import Any

from .env import FLASHINFER_CUBIN_DIR


def download_file(source: str, destination: str, retries: int = 4, timeout: int = 10, session: Any = None) -> bool:
    try:
        with urllib.request.urlopen(source, timeout=timeout) as answer:
            content = answer.read()
    except urllib.error.URLError:
        return False
    temporary = f"{destination}.tmp"
    with open(temporary, "wb") as file:  # noqa: PTH123
        file.write(content)
    os.replace(temporary, destination)  # noqa: PTH105
    return True


def get_artifact(repository: str, file_name: str) -> bytes:
    local = FLASHINFER_CUBIN_DIR / file_name
    if not local.exists():
        local.parent.mkdir(parents=True, exist_ok=True)
        download_file(f"{repository}/{file_name}", str(local))
    return local.read_bytes() if local.exists() else b""


get_cubin = get_artifact
