"""What runs on the nodes of a Ray cluster: a reader of journals, and the door for workers without a start-up file.

Both travel by value, since nodes may lack this package: each function here imports what it needs, from the standard
library only.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Chunk(NamedTuple):
    """Bytes of one journal on a node, from `start` on."""

    name: str
    start: int
    data: bytes


class Reader:
    """An actor that reads the journals of one node; one call at a time."""

    def look(self, folder: str, marker: str) -> dict[str, Any]:
        """Tell whether `folder` is here the folder that holds `marker`; make it, private, where it is missing.

        `package` tells whether pytest-jitguard can be imported here, `trouble` why the folder cannot be had.
        """
        import importlib.util
        import os

        found: dict[str, Any] = {"host": os.uname().nodename, "trouble": ""}
        try:
            found["package"] = importlib.util.find_spec("pytest_jitguard") is not None
        except ValueError:  # somebody keeps it from being imported
            found["package"] = False
        found["same"] = os.path.exists(os.path.join(folder, marker))  # noqa: PTH110, PTH118 - strings as they came
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103
        except OSError as error:
            found["trouble"] = f"{folder} cannot be made: {error.strerror}"
        return found

    def now(self) -> float:
        """Return this host's monotonic clock."""
        import time

        return time.monotonic()

    def read(
        self, folder: str, guard: str, taken: dict[str, int], most: int, *, torn: bool = False
    ) -> tuple[list[Any], bool]:
        """Return `(name, start, data)` of what is new in the journals of a guard, and whether there is more.

        `taken` maps a journal's name to the bytes that were read before. Whole lines only, unless `torn` asks for the
        last half line of a process that died as well. About `most` bytes at a time.
        """
        import os

        chunks: list[Any] = []
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            return chunks, False
        for entry in entries:
            if most <= 0:
                return chunks, True
            start = taken.get(entry.name, 0)
            try:
                data, more = self._part(entry, start, guard, most, torn=torn)
            except OSError:
                continue  # it is gone, or cannot be read
            if data:
                chunks.append((entry.name, start, data))
                most -= len(data)
            if more:
                return chunks, True
        return chunks, False

    def _part(self, entry: Any, start: int, guard: str, most: int, *, torn: bool) -> tuple[bytes, bool]:
        """Return the next part of one journal, and whether there is more of it; nothing of what is none of ours."""
        import os
        import stat

        status = entry.stat(follow_symlinks=False)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if not ours or not entry.name.endswith(".jsonl") or status.st_size <= start:
            return b"", False
        with open(entry.path, "rb") as file:  # noqa: PTH123
            if not start and not self._is_of(guard, file.readline(100_000)):
                return b"", False
            file.seek(start)
            data = file.read(most)
            if b"\n" not in data:
                data += file.read()
        more = start + len(data) < status.st_size
        return data if torn and not more else data[: data.rfind(b"\n") + 1], more

    def _is_of(self, guard: str, hello: bytes) -> bool:
        import json

        try:
            return bool(json.loads(hello)["guard"] == guard)
        except (ValueError, KeyError, TypeError):
            return False

    def remove(self, folder: str) -> None:
        """Delete the folder and the journals in it."""
        import shutil

        shutil.rmtree(folder, ignore_errors=True)


def begin_in_worker() -> None:
    """Make a worker report, where no start-up file of ours did before. Never raises."""
    import json
    import os

    try:
        folder = json.loads(os.environ["JITGUARD_PARENT"])["folder"]
        os.makedirs(folder, mode=0o700, exist_ok=True)  # noqa: PTH103
        from pytest_jitguard.processes.bootstrap import start

        start()
    except Exception:  # noqa: BLE001 - a guard that cannot be served must not keep a worker from starting
        pass
