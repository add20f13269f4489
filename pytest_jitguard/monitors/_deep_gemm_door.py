"""Puts our compiler into the place where DeepGEMM looks for its own, for this process and all that it starts."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from pytest_jitguard.core.census import TOOL
from pytest_jitguard.monitors import _deep_gemm_nvcc

COMPILER_VARIABLES = ("DG_JIT_NVCC_COMPILER", "DJ_JIT_NVCC_COMPILER")
"""DeepGEMM's own variable, and the one that DeepJIT (sgl-deep-gemm 0.2.3, vLLM's 2.8.1) falls back to."""

FOLDER_VARIABLE = "JITGUARD_DEEP_GEMM"
"""Where the spool is; inherited by every process of the tree."""

PREFIX = "jitguard-deepgemm-"

# The shell runs the second line, to Python both are a text: no limit on the length of a `#!` line, blanks allowed.
_HEAD = "#!/bin/sh\n'''exec' \"{python}\" {tool} -IS \"$0\" \"$@\"\n' '''\n"


class Door:
    """Our compiler in a private folder, and the environment that leads to it. OSError if it cannot be put up."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.program = self.folder / "nvcc"
        (self.folder / "watching").mkdir()
        (self.folder / "claimed").mkdir()
        (self.folder / "spool.jsonl").touch()
        chained = {"compiler": chained_compiler(), "guard": os.getpid()}
        (self.folder / "compiler.json").write_text(json.dumps(chained), encoding="utf-8")
        self.program.write_text(program_text(), encoding="utf-8")
        self.program.chmod(0o700)
        if not os.access(self.program, os.X_OK) or " " in str(self.program):  # noexec; DeepGEMM does not quote
            shutil.rmtree(self.folder, ignore_errors=True)
            raise OSError(f"no program can be started from {self.folder.parent}; set TMPDIR to another folder")
        self._before = {name: os.environ.get(name) for name in (*COMPILER_VARIABLES, FOLDER_VARIABLE)}
        os.environ.update(dict.fromkeys(COMPILER_VARIABLES, str(self.program)))
        os.environ[FOLDER_VARIABLE] = str(self.folder)

    def close(self) -> None:
        """Put back what was in the environment, unless somebody else has changed it since.

        A guard around this one is told what was compiled here: it finds the entries in folders that it watches, too.
        DeepGEMM asks for its compiler once: where it was in use the program stays, as long as that process lives, and
        only hands on.
        """
        outer = self._before[FOLDER_VARIABLE]
        hand_over(self.folder, outer)
        ours = {**dict.fromkeys(COMPILER_VARIABLES, str(self.program)), FOLDER_VARIABLE: str(self.folder)}
        for name, value in self._before.items():
            if os.environ.get(name) != ours[name]:
                continue
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if outer and Path(outer, "nvcc").exists():
            (self.folder / "compiler.json").write_text(json.dumps({"compiler": f"{outer}/nvcc"}), encoding="utf-8")
        for name in ("spool.jsonl", "refuse"):
            (self.folder / name).unlink(missing_ok=True)
        if self._users():
            atexit.register(self._clear, os.getpid())
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _users(self) -> set[int]:
        """Return the processes that were led to our compiler, and live."""
        named = [name.partition("-")[::2] for name in os.listdir(self.folder / "watching")]  # noqa: PTH208
        return {int(pid) for pid, start in named if str(_deep_gemm_nvcc.start_of(int(pid))) == start}

    def _clear(self, pid: int) -> None:
        """At the end of the process: remove the program, if nobody else is left to start it."""
        if os.getpid() == pid and not self._users() - {pid}:
            shutil.rmtree(self.folder, ignore_errors=True)


def chained_compiler() -> str:
    """Return the compiler that the user named, empty if none: then it is looked for where DeepGEMM looks.

    A guard inside a guarded run takes its parent's place, and does not report to it any more.
    """
    outer = os.environ.get(FOLDER_VARIABLE)
    for name in COMPILER_VARIABLES:
        named = os.environ.get(name, "")
        if outer and named == f"{outer}/nvcc":
            try:
                told = json.loads(Path(outer, "compiler.json").read_text(encoding="utf-8"))
                return str(told["compiler"])
            except (OSError, ValueError, KeyError):
                return ""
        if named:
            return named
    return ""


def hand_over(folder: Path, outer: str | None) -> None:
    """Append to the spool of an outer guard what a spool holds; the processes that it names are not the outer's."""
    spool = Path(outer, "spool.jsonl") if outer else None
    if spool is None or not spool.exists():
        return
    try:
        lines = (folder / "spool.jsonl").read_bytes().replace(b'"record": "begin"', b'"record": "known"')
        with spool.open("ab") as file:
            file.write(lines)
    except OSError:
        pass


def program_text() -> str:
    """Return the program with a head that starts it by this interpreter, apart from everything installed."""
    source = Path(_deep_gemm_nvcc.__file__).read_text(encoding="utf-8")
    return _HEAD.format(python=sys.executable or "/usr/bin/python3", tool=" ".join(TOOL)) + source


def is_bypassed() -> str:
    """Say which variable no longer leads to our compiler, empty if DeepGEMM still finds it."""
    folder = os.environ.get(FOLDER_VARIABLE)
    leading = next((name for name in COMPILER_VARIABLES if os.environ.get(name)), None)
    if os.environ.get("DG_JIT_USE_NVRTC", "0") not in ("", "0"):
        return "DG_JIT_USE_NVRTC is set: builds up to 2.6 then compile without nvcc"
    if folder and leading and os.environ[leading] == f"{folder}/nvcc":
        return ""
    return f"{leading} leads to {os.environ[leading]}" if leading else f"{COMPILER_VARIABLES[0]} was taken away"
