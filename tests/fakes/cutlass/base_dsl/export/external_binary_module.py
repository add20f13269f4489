"""Object files that another process exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class ExternalBinaryModule:
    def __init__(self, file_path: str, enable_tvm_ffi: bool = False) -> None:
        self.content = Path(file_path).read_bytes()
        if not self.content.startswith(b"object"):
            raise RuntimeError("The file was not recognized as a valid object file")

    def __getitem__(self, name: str) -> Any:
        return lambda *args: None
