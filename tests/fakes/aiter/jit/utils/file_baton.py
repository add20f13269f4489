from __future__ import annotations

import os
import time
from pathlib import Path


class FileBaton:
    def __init__(self, lock_file_path: str, wait_seconds: float = 0.02) -> None:
        self.lock_file_path = lock_file_path
        self.wait_seconds = wait_seconds
        self.fd: int | None = None

    def try_acquire(self) -> bool:
        try:
            self.fd = os.open(self.lock_file_path, os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return False
        return True

    def wait(self) -> None:
        while Path(self.lock_file_path).exists():
            time.sleep(self.wait_seconds)

    def release(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
        Path(self.lock_file_path).unlink()
