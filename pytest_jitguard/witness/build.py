"""Compiles the witness's C file, once for each version of it, into a private folder."""

from __future__ import annotations

import hashlib
import os
import platform
import pwd
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("_cupti.c")
COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O2", "-shared", "-fPIC", "-std=gnu11", "-pthread")
_LIBRARIES = ("-ldl",)
_PATIENCE = 120.0


class BuildError(RuntimeError):
    """The witness's library cannot be had; the message says why."""


def library(folder: Path | None = None) -> Path:
    """Return the compiled library, and compile it if nobody has; BuildError says why there is none."""
    folder = folder or private_folder()
    path = folder / f"witness-{_version()}.so"
    if not path.exists():
        _compile(compiler(), path)
    return path


def private_folder() -> Path:
    """Return the folder of compiled witnesses, which nobody else can write into; BuildError if there is none."""
    home = os.environ.get("XDG_CACHE_HOME") or Path(pwd.getpwuid(os.getuid()).pw_dir, ".cache")
    shared = Path(tempfile.gettempdir(), f"pytest-jitguard-{os.getuid()}")
    for folder in (Path(home, "pytest-jitguard"), shared):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if _is_private(folder):
            return folder
    raise BuildError(f"the CUPTI witness needs a folder of its own for what it compiles, and {folder} cannot be that")


def _is_private(folder: Path) -> bool:
    """Tell whether a folder is ours and nobody else may write into it: what lies there is loaded."""
    status = folder.lstat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o022 and os.access(folder, os.W_OK | os.X_OK)


def compiler() -> list[str]:
    """Return the command of the user's C compiler; BuildError if there is none."""
    for command in (shlex.split(os.environ.get("CC", "")), *([name] for name in COMPILERS)):
        if command and shutil.which(command[0]):
            return command
    *first, last = COMPILERS
    raise BuildError(
        f"the CUPTI witness needs a C compiler, and neither $CC nor {', '.join(first)} or {last} is on the PATH"
    )


def _version() -> str:
    """Return what differs where a library compiled elsewhere, or from another source, would not do."""
    return hashlib.sha256(SOURCE.read_bytes() + " ".join([*_FLAGS, *platform.uname()[::4]]).encode()).hexdigest()[:16]


def _compile(command: list[str], path: Path) -> None:
    """Compile under another name first: several processes may do this at once."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, path.name)
        line = [*command, *_FLAGS, str(SOURCE), "-o", str(made), *_LIBRARIES]
        try:
            done = subprocess.run(
                line, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{command[0]} could not build the CUPTI witness: {error}") from error
        if done.returncode or not made.exists():
            raise BuildError(f"{command[0]} could not build the CUPTI witness: {_complaint(done.stderr)}")
        made.replace(path)


def _complaint(text: str) -> str:
    """Return the line that says what a compiler did not like."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "it says nothing")
