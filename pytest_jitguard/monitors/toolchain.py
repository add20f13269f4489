"""The net below the monitors: compilers that run as child processes, and that no monitor has an event for."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, ClassVar

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.kinds import UNATTRIBUTED
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Monitor, Tells
from pytest_jitguard.monitors import _proc as proc
from pytest_jitguard.monitors import _toolchain_audit as audit
from pytest_jitguard.monitors import _toolchain_tree as tree
from pytest_jitguard.monitors._frames import hidden_folders
from pytest_jitguard.monitors._toolchain_argv import Build, Command, shown
from pytest_jitguard.monitors._toolchain_child import FOUND, Child
from pytest_jitguard.monitors._toolchain_claims import around
from pytest_jitguard.monitors._toolchain_files import build_log, built_since
from pytest_jitguard.monitors._toolchain_starts import FORK, Starter, Starting, caller, is_in_popen
from pytest_jitguard.monitors._toolchain_watch import AFTER_FORK, Watch, is_watched_by_parent

_CERTAINLY_THERE = 0.25
"""Seconds after the audit event in which a process is there, and not gone again unless it was quick."""

_LATEST = 256
"""How many starts of programs are remembered: those that may still run."""

_NOBODY = Starter(FOUND, "", 0, (), None, is_probe=False)


class ToolchainMonitor(Monitor):
    """Sees compilers start by Python's audit events, and those that a library started by itself in /proc.

    What is under way on the same thread, or works for a library whose event is, is that event's second witness. What
    nobody claims is an event of the system `unattributed`, from its start to the moment when its caller learns of its
    end. While a program runs that may start compilers itself (make, a shell), a thread looks at /proc. A run of ninja
    counts when its log has grown; that is looked at in `flush`, after the monitors had their say.
    """

    name: ClassVar[str] = "toolchain"
    target: ClassVar[str] = ""
    is_net: ClassVar[bool] = True
    tells: ClassVar[Tells] = Tells(identity="the output of a compiler's command line", reason="who started it")

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._children: dict[int, Child] = {}
        self._starters: deque[Starter] = deque(maxlen=_LATEST)
        self._probes: deque[tuple[str, ...]] = deque(maxlen=_LATEST)
        self._tree: tree.Tree | None = None
        self._watch: Watch | None = None
        self._looking = threading.RLock()
        self._pid = 0
        self._hidden: tuple[str, ...] = ()
        self._stop: Callable[[], None] = lambda: None

    # -- liveness ------------------------------------------------------------------------------------------------------

    def install(self, module: ModuleType) -> None:
        """Listen to audit events, and prove that they reach us."""
        self._hidden, self._pid = hidden_folders(module), os.getpid()
        self._watch = Watch(self._look_again, self._forked)
        self._stop = audit.listen(self._heard)
        self.reconcile()
        if self.state == "unproven":
            self.state = "armed"

    def uninstall(self) -> None:
        """Listen no more. The audit hooks themselves stay, and do nothing."""
        self._stop()
        if self._watch is not None:
            self._watch.close()
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
            self._starting(event, args, caller())
        except Exception as error:  # noqa: BLE001 - raising here would keep the process from being started
            self.blind(f"the start of a process could not be recorded: {type(error).__name__}: {error}")

    def _starting(self, event: str, args: tuple[Any, ...], frame: FrameType) -> None:
        self._renew_after_fork()
        if event == "os.posix_spawn" and is_in_popen(frame):
            return
        starting = Starting(event, args)
        command = starting.command()
        if command is None:
            if event != "os.exec" and starting.may_start_others():
                self._expect(self._starter(event, frame), _CERTAINLY_THERE)
        elif event == "os.exec" and is_watched_by_parent():
            return
        elif starting.is_there(command):
            starter = self._starter(event, frame)
            starter.tells = True
            self._starters.append(starter)
            if starter.is_probe:
                self._probes.append(command.words)
            else:
                self._begin(self._child(command, starting.folder, starter))
        elif event != "os.exec":  # a test may have replaced what we ask whether it is there
            self._expect(self._starter(event, frame), _CERTAINLY_THERE)

    def _starter(self, event: str, frame: FrameType) -> Starter:
        starter = Starter.at(frame, event, self.recorder, self._hidden)
        popen = frame.f_locals.get("self") if event == "subprocess.Popen" else None
        if hasattr(type(popen), "_handle_exitstatus") and hasattr(popen, "__dict__"):
            starter.popen = weakref.ref(popen)
        return starter

    def _child(self, command: Command | Build, folder: str, starter: Starter) -> Child:
        child = Child(command, folder, starter, starter.started, claim=starter.claim)
        if isinstance(command, Build):
            child.log = build_log(child.output)
        self._await_end(child)
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
        who = child.starter
        thread = who.thread or "unknown"
        child.event = self.recorder.begin(UNATTRIBUTED, name, "", started=child.started, stack=who.stack, thread=thread)

    def _renew_after_fork(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._children = {}  # the parent's, who hears of their ends
            self._starters.clear()
            self._probes.clear()
            self._looking = threading.RLock()

    # -- the end -------------------------------------------------------------------------------------------------------

    def _await_end(self, child: Child) -> None:
        """Hear of the end of a `subprocess.Popen` when its owner does: this one object tells us, and no other."""
        reference = child.starter.popen
        popen = reference() if reference else None
        if reference is None or popen is None:
            return

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
        child.status, child.ended = status, child.end_of(monotonic())
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
            self._close(child)
            if isinstance(child.command, Build):
                self._decide(child, child.command)
        if tree.has_children() or (self._watch is not None and self._watch.is_on):
            self._look()
            self._close_found()  # also what the watching thread was about to note

    def _close_found(self) -> bool:
        """Note the ends of compilers of which /proc alone tells; tell whether there were any."""
        found = [child for child in tuple(self._children.values()) if child.starter.how == FOUND]
        for child in found:
            self._close(child)
        return bool(found)

    def _close(self, child: Child) -> None:
        if not child.status and (status := child.ask()):
            self._over(child, status)

    def _decide(self, child: Child, build: Build) -> None:
        """Say of a run of ninja whether it built something: now if it is over, or if compilers run below it."""
        if not child.status:
            child.works = child.works or (child.pid != 0 and tree.below(child.pid))
            if child.works and child.event is None and self._claim(child) is None:
                self._announce(child)
            return
        self._children.pop(id(child), None)
        outputs = built_since(child.log or build_log(child.output), build_log(child.output))
        if child.event is None and not (outputs or child.has_worked()):
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
        return child.claim or around(self.recorder, child.started, ended, child.starter.thread)

    # -- what others start ---------------------------------------------------------------------------------------------

    def _expect(self, starter: Starter, seconds: float) -> None:
        """Watch what a program starts that is about to be started."""
        self._starters.append(starter)
        if self._watch is not None and not starter.is_probe:
            proc.prepare()
            self._watch.expect(seconds)

    def _forked(self) -> None:
        """Watch whether a forked child becomes a compiler. Called in the parent."""
        try:
            self._renew_after_fork()
            self._expect(self._starter(FORK, caller()), AFTER_FORK)
        except Exception as error:  # noqa: BLE001 - raising here would be printed into the program's output
            self.blind(f"a fork could not be watched: {type(error).__name__}: {error}")

    def _look_again(self) -> tuple[bool, bool]:
        """Look for compilers from the watching thread; tell whether more may come, and whether there is news."""
        try:
            was_busy = self._close_found()
            sight = self._look()
            return bool(was_busy or sight.compilers or sight.strangers), bool(sight.is_new or sight.compilers)
        except Exception as error:  # noqa: BLE001 - nobody would hear of it
            self.blind(f"processes could not be watched: {type(error).__name__}: {error}")
            return False, False

    def _look(self) -> tree.Sight:
        """Find compilers that a library started past Python, and grandchildren of programs that are no compilers."""
        with self._looking:
            if self._tree is None or not self._tree.is_fresh():
                self._tree = tree.Tree()
            sight = self._tree.look(self._is_known)
            for living in sight.compilers:
                self._found(living)
            return sight

    def _is_known(self, pid: int, words: list[str], command: Command | Build | None) -> bool:
        """Tell whether a process is a compiler that we heard of, or only finds something out."""
        if any(child.is_process(pid, command) for child in tuple(self._children.values())):
            return True
        return command is not None and any(probe[1:] == command.words[1:] for probe in tuple(self._probes))

    def _found(self, living: tree.Living) -> None:
        by = self._starter_of(living)
        if by is not None and (by.tells or by.is_probe):
            return
        # The kernel counts in hundredths and rounds down: what began in a call must not seem to be of its setup.
        started = min(max(living.started + tree.tick(), by.started if by else 0.0), monotonic())
        starter = replace(by, how=FOUND, ident=0, popen=None) if by else _NOBODY
        child = Child(living.command, tree.folder_of(living.pid), starter, started, pid=living.pid)
        child.claim = by.claim if by else around(self.recorder, started, monotonic())
        self._begin(child)

    def _starter_of(self, living: tree.Living) -> Starter | None:
        """Return who started the child of this process below which a compiler runs; None if that cannot be told."""
        starters = tuple(reversed(self._starters))
        held = next((starter for starter in starters if starter.pid == living.root), None)
        since = {starter: abs(starter.started - living.root_started) for starter in starters if not starter.pid}
        return held or min((s for s in since if since[s] < _CERTAINLY_THERE), key=since.__getitem__, default=None)
