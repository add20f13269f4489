"""What Python's audit events tell of a process that is about to be started, and who starts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors._frames import stack_of
from pytest_jitguard.monitors._toolchain_argv import Build, Command, command_of, is_compiler, script_command
from pytest_jitguard.monitors._toolchain_claims import claimant, is_probe
from pytest_jitguard.monitors._toolchain_files import here, resolved

FORK = "os.fork"
_OURS = f"{Path(__file__).parent}/"


class Starting:
    """A process that is about to be started, in the words of the audit event."""

    def __init__(self, event: str, args: tuple[Any, ...]) -> None:
        self.event = event
        self.argv: Any = args[0] if event == "os.system" else args[1]
        self.executable: Any = None if event == "os.system" else args[0]
        is_popen = event == "subprocess.Popen"
        self.env: Any = args[3] if is_popen else None if event == "os.system" else args[2]
        self.folder = os.fsdecode((is_popen and args[2]) or here())

    def command(self) -> Command | Build | None:
        """Tell what it builds, as far as its command line says so."""
        if self.event == "os.system":
            return script_command(self.argv, self.folder)
        return command_of(self.argv, self.executable, self.folder)

    def may_start_others(self) -> bool:
        """Tell whether it may start compilers of which nobody hears: a Python program until it reports, too."""
        words = self.argv if isinstance(self.argv, (list, tuple)) else [self.argv]
        return not is_compiler([os.fsdecode(word) for word in words])

    def is_there(self, command: Command | Build) -> bool:
        """Tell whether the program is there: one that is missing compiles nothing, and its caller is told so."""
        # `execvp` tries every folder of the path.
        program = os.fsdecode(self.executable) if self.event == "os.exec" else command.words[0]
        if self.event == "subprocess.Popen" and not (Path(here()) / self.folder).is_dir():
            return False
        if "/" in program:
            return resolved(self.folder, program).exists()
        env = os.environ if self.event == "os.posix_spawn" else self.env
        path = (env or os.environ).get("PATH") if hasattr(env or os.environ, "get") else None
        return shutil.which(program, path=path) is not None or shutil.which(program) is not None


@dataclass(eq=False)
class Starter:
    """Who starts a process: where in the program, on which thread, and for which event if a monitor has one.

    `is_probe` where that is done only to find something out. `popen` is the object that holds the process, if any.
    `tells` where the command line itself told what is compiled, so that nobody has to look below the process.
    """

    how: str
    thread: str
    ident: int
    stack: tuple[str, ...]
    claim: CompileEvent | None
    is_probe: bool
    popen: weakref.ref[Any] | None = None
    tells: bool = False
    started: float = field(default_factory=monotonic)

    @classmethod
    def at(cls, frame: FrameType, how: str, recorder: Recorder, hidden: tuple[str, ...]) -> Starter:
        """Describe the call that is under way on this thread."""
        thread = threading.current_thread()
        claim, probes = claimant(recorder, frame), is_probe(frame)
        return cls(how, thread.name, threading.get_ident(), stack_of(frame, hidden), claim, probes)

    @property
    def pid(self) -> int:
        """The process that was started, 0 as long as that is not known."""
        popen = self.popen() if self.popen else None
        return getattr(popen, "pid", None) or 0


def caller() -> FrameType:
    """Return the frame that starts a process: the first that is not ours."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    return frame


def is_in_popen(frame: FrameType) -> bool:
    """Tell whether `os.posix_spawn` is called by `subprocess`, which has an audit event of its own for it."""
    step: FrameType | None = frame
    for _ in range(8):
        if step is None:
            return False
        if step.f_code.co_name == "_posix_spawn" and step.f_globals is vars(subprocess):
            return True
        step = step.f_back
    return False
