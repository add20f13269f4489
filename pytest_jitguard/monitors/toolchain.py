"""The net below the monitors: compilers that run as child processes, and that no monitor has an event for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, ClassVar

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Monitor, Tells
from pytest_jitguard.monitors import _toolchain_audit as audit
from pytest_jitguard.monitors import _toolchain_tree as tree
from pytest_jitguard.monitors._frames import hidden_folders, stack_of
from pytest_jitguard.monitors._toolchain_argv import Build, Command, command_of, script_command, shown
from pytest_jitguard.monitors._toolchain_claims import UNATTRIBUTED, around, claimant, is_probe
from pytest_jitguard.monitors._toolchain_files import LOG, BuildLog, build_log, built_since, resolved, written

_NOTICED_AT_ONCE = 0.25
"""Seconds from a compiler's last write to when its caller takes notice; later, the file tells when it was over."""

_CERTAINLY_STARTED = 0.1
"""Seconds after which a process that was asked for is there, or is gone again."""

_NINJA_HAS_WORKED = 0.05
"""Seconds of processor time that show, where there is no log, that ninja did more than look (3 to 6 ms)."""


@dataclass(eq=False)
class Child:
    """A compiler, or ninja, that was seen starting.

    `event` is ours if no monitor claimed it. `claim` is the monitor's event that it works for. `popen` and `pid` say
    how to ask for its end, as far as they are known; `status` is how it ended, empty while it runs.
    """

    command: Command | Build
    folder: str
    started: float
    thread: str
    ident: int
    how: str
    event: CompileEvent | None = None
    claim: CompileEvent | None = None
    popen: weakref.ref[Any] | None = None
    pid: int = 0
    stack: tuple[str, ...] = ()
    log: BuildLog | None = None
    cpu: float = 0.0
    ended: float | None = None
    status: str = ""
    works: bool = False

    @property
    def output(self) -> Path:
        """The file that a compiler writes, or the folder that ninja builds in."""
        return resolved(self.folder, self.command.output if isinstance(self.command, Command) else self.command.folder)


class ToolchainMonitor(Monitor):
    """Sees compilers start by Python's audit events, and those that a library started by itself in /proc.

    What is under way on the same thread, or works for a library whose event is, is that event's second witness. What
    nobody claims is an event of the system `unattributed`, from its start to the moment when its caller learns of its
    end. A run of ninja counts when its log has grown; that is looked at in `flush`, after the monitors had their say.
    """

    name: ClassVar[str] = "toolchain"
    target: ClassVar[str] = ""
    is_net: ClassVar[bool] = True
    tells: ClassVar[Tells] = Tells(identity="the output of a compiler's command line", reason="who started it")

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._children: dict[int, Child] = {}
        self._pid = 0
        self._hidden: tuple[str, ...] = ()
        self._stop: Callable[[], None] = lambda: None

    # -- liveness ------------------------------------------------------------------------------------------------------

    def install(self, module: ModuleType) -> None:
        """Listen to audit events, and prove that they reach us."""
        self._hidden, self._pid = hidden_folders(module), os.getpid()
        self._stop = audit.listen(self._heard)
        self.reconcile()
        if self.state == "unproven":
            self.state = "armed"

    def uninstall(self) -> None:
        """Listen no more. The audit hooks themselves stay, and do nothing."""
        self._stop()
        self._children.clear()

    def prove(self) -> None:
        """Look whether audit events reach us."""
        self.reconcile()

    def reconcile(self) -> None:
        """Look whether audit events reach us."""
        if not audit.is_heard():
            self.blind("audit events do not reach us: an audit hook of somebody else refuses others")

    # -- the beginning -------------------------------------------------------------------------------------------------

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        """Take an audit event, on the thread that starts a process and before it is there."""
        if event not in audit.STARTS:
            return
        try:
            self._starting(event, args, _caller())
        except Exception as error:  # noqa: BLE001 - raising here would keep the process from being started
            self.blind(f"the start of a process could not be recorded: {type(error).__name__}: {error}")

    def _starting(self, event: str, args: tuple[Any, ...], frame: FrameType) -> None:
        self._renew_after_fork()
        command = _command(event, args)
        if command is None or (event == "os.posix_spawn" and _is_in_popen(frame)):
            return
        folder, env = (args[2], args[3]) if event == "subprocess.Popen" else (None, None)
        # `execvp` tries every folder of the path.
        program = os.fsdecode(args[0]) if event == "os.exec" else command.words[0]
        if is_probe(frame) or not _exists(program, folder, env):
            return
        self._begin(self._child(event, command, os.fsdecode(folder or Path.cwd()), frame))

    def _child(self, event: str, command: Command | Build, folder: str, frame: FrameType) -> Child:
        thread = threading.current_thread()
        child = Child(command, folder, monotonic(), thread.name, threading.get_ident(), event)
        child.claim = claimant(self.recorder, frame)
        child.stack = stack_of(frame, self._hidden)
        child.cpu = tree.cpu_of_children()
        if isinstance(command, Build):
            child.log = build_log(child.output)
        if event == "subprocess.Popen":
            self._await_end(child, frame.f_locals.get("self"))
        return child

    def _begin(self, child: Child) -> None:
        """Take a child for a witness of the event that claims it, or for an event where nobody does.

        Where nothing was ever built, ninja has something to do; elsewhere that shows later.
        """
        self._children[id(child)] = child
        certain = isinstance(child.command, Command) or not (child.log and child.log.known)
        if child.claim is not None and isinstance(child.command, Command):
            self.recorder.corroborate(child.claim, self.name)
        elif child.claim is None and certain:
            self._announce(child)

    def _announce(self, child: Child, kernel: str = "") -> None:
        name = kernel or (child.command.stem if isinstance(child.command, Command) else child.output.name)
        child.event = self.recorder.begin(UNATTRIBUTED, name, "", started=child.started, stack=child.stack)
        child.event.thread = child.thread

    def _renew_after_fork(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._children = {}  # the parent's, who hears of their ends

    # -- the end -------------------------------------------------------------------------------------------------------

    def _await_end(self, child: Child, popen: Any) -> None:
        """Hear of the end of a `subprocess.Popen` when its owner does: this one object tells us, and no other."""
        kind = type(popen)
        if not hasattr(kind, "_handle_exitstatus") or not hasattr(popen, "__dict__"):
            return
        child.popen = reference = weakref.ref(popen)

        def ended(*args: Any, **kwargs: Any) -> None:
            process = reference()
            if process is None:
                return
            vars(process).pop("_handle_exitstatus", None)
            process._handle_exitstatus(*args, **kwargs)
            self._reaped(child, process.returncode)

        vars(popen)["_handle_exitstatus"] = ended

    def _reaped(self, child: Child, code: int | None) -> None:
        if id(child) not in self._children:
            return
        try:
            self._over(child, "ok" if code == 0 else "failed")
        except Exception as error:  # noqa: BLE001 - raising here would fail whoever waits for the compiler
            self.blind(f"the end of a compiler could not be recorded: {type(error).__name__}: {error}")
        if child.event is not None and child.event.status != "running":
            self.recorder.finished(child.event)

    def _over(self, child: Child, status: str) -> None:
        child.status, child.ended = status, _end_of(child, monotonic())
        if isinstance(child.command, Build):
            return  # `flush` decides
        is_first = self._children.pop(id(child), None) is not None  # another thread may notice at the same time
        if is_first and child.event is not None:
            self._end(child, child.command.words, str(child.output))

    def _end(self, child: Child, words: tuple[str, ...], output: str, kernel: str = "") -> None:
        assert child.event is not None
        used = tree.cpu_of_children() - child.cpu
        cpu = f"; child processes used {used:.2f} s of processor time meanwhile" if used >= 0.01 else ""
        self.recorder.end(
            child.event,
            status=child.status,
            ended=child.ended,
            kernel=kernel,
            detail=f"{shown(words)}{cpu}",
            reason=f"{Path(words[0]).name} ran for {output}, and no monitor accounts for it",
        )

    # -- at a phase's end ----------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Close what is over, decide which runs of ninja built something, and look for compilers nobody told of."""
        self._renew_after_fork()
        for child in tuple(self._children.values()):
            if not child.status and (status := _status(child)):
                self._over(child, status)
            if isinstance(child.command, Build):
                self._decide(child, child.command)
        if tree.has_children():
            self._look_for_strangers()

    def _decide(self, child: Child, build: Build) -> None:
        """Say of a run of ninja whether it built something: now if it is over, or if compilers run below it."""
        if not child.status:
            child.works = child.works or (child.pid != 0 and tree.below(child.pid))
            if child.works and child.event is None and self._claim(child) is None:
                self._announce(child)
            return
        self._children.pop(id(child), None)
        outputs = built_since(child.log or build_log(child.output), build_log(child.output))
        if child.event is None and not (outputs or self._has_worked(child)):
            return
        claim = self._claim(child)
        if claim is not None and child.event is None:
            self.recorder.corroborate(claim, self.name)
            return
        if child.event is None:
            self._announce(child)
        kernel = Path(outputs[-1]).name.partition(".")[0] if outputs else ""
        self._end(child, build.words, outputs[-1] if outputs else str(child.output), kernel)

    def _claim(self, child: Child) -> CompileEvent | None:
        ended = monotonic() if child.ended is None else child.ended
        return child.claim or around(self.recorder, child.started, ended, child.thread)

    def _has_worked(self, child: Child) -> bool:
        """Tell whether ninja did something that is not in its log: where there is none, or where it failed."""
        if child.log is not None and child.log.known and child.status == "ok":
            return child.works
        return child.works or tree.cpu_of_children() - child.cpu > _NINJA_HAS_WORKED

    def _look_for_strangers(self) -> None:
        """Find compilers that a library started past Python, and grandchildren of programs that are no compilers."""
        known = {child.pid for child in self._children.values() if child.pid}
        for living in tree.compilers(known):
            if any(child.command == living.command for child in self._children.values()):
                continue
            child = Child(living.command, _folder_of(living.pid), living.started, "", 0, "/proc", pid=living.pid)
            child.cpu = tree.cpu_of_children()
            child.claim = around(self.recorder, living.started, monotonic())
            self._begin(child)


def _caller() -> FrameType:
    """Return the frame that started a process: the first that is not ours."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    return frame


_OURS = f"{Path(audit.__file__).parent}/"


def _command(event: str, args: tuple[Any, ...]) -> Command | Build | None:
    if event == "subprocess.Popen":
        return command_of(args[1], args[0])
    if event == "os.system":
        return script_command(args[0])
    return command_of(args[1], args[0])


def _is_in_popen(frame: FrameType) -> bool:
    """Tell whether `os.posix_spawn` is called by `subprocess`, which has an audit event of its own for it."""
    step: FrameType | None = frame
    for _ in range(8):
        if step is None:
            return False
        if step.f_code.co_name == "_posix_spawn" and step.f_globals is vars(subprocess):
            return True
        step = step.f_back
    return False


def _exists(program: str, folder: Any, env: Any) -> bool:
    """Tell whether a program is there: one that is missing compiles nothing, and its caller is told so."""
    if "/" in program:
        return resolved(os.fsdecode(folder or ""), program).exists()
    path = (env or os.environ).get("PATH") if hasattr(env or os.environ, "get") else None
    return shutil.which(program, path=path) is not None or shutil.which(program) is not None


def _status(child: Child) -> str:
    """Ask how a child ended whose end nobody told us; empty if it still runs."""
    popen = child.popen() if child.popen else None
    if popen is not None:
        child.pid = getattr(popen, "pid", None) or child.pid
        code = getattr(popen, "returncode", None)
        if code is not None:
            return "ok" if code == 0 else "failed"
    if child.pid:
        return "" if tree.runs(child.pid) else _by_output(child)
    is_here = child.ident == threading.get_ident()  # so the call that started it has returned
    if child.how == "os.system" and is_here:
        return _by_output(child)
    child.pid = tree.runs_below(child.command.words)
    is_young = monotonic() - child.started < _CERTAINLY_STARTED and not is_here
    return "" if child.pid or is_young else _by_output(child)


def _by_output(child: Child) -> str:
    if isinstance(child.command, Build):
        return "ok"
    if child.how == "os.system" and not Path(child.command.output).is_absolute():
        return "ok"  # the shell may have changed its folder
    moment = written(child.output)
    return "ok" if moment is not None and moment >= child.started - 0.05 else "failed"


def _end_of(child: Child, noticed: float) -> float:
    """Return when a child was over: when that was noticed, unless its output says that it was much earlier."""
    moment = written(child.output / LOG if isinstance(child.command, Build) else child.output)
    if moment is None or not child.started <= moment < noticed - _NOTICED_AT_ONCE:
        return noticed
    return moment


def _folder_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115 - a link of the kernel's
    except OSError:
        return str(Path.cwd())
