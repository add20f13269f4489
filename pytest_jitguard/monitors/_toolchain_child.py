"""One compiler, or one run of ninja, from its start to its end: how it ended, and when."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.monitors import _toolchain_tree as tree
from pytest_jitguard.monitors._toolchain_argv import Build, Command
from pytest_jitguard.monitors._toolchain_files import LOG, BuildLog, resolved, written
from pytest_jitguard.monitors._toolchain_starts import Starter

FOUND = "/proc"
"""How a compiler was started of which /proc alone tells."""

_NOTICED_AT_ONCE = 0.25
"""Seconds from a compiler's last write to when its caller takes notice; later, the file tells when it was over."""

_CERTAINLY_STARTED = 0.1
"""Seconds after which a process that was asked for is there, or is gone again."""

_NINJA_HAS_WORKED = 0.05
"""Seconds of processor time that show, where there is no log, that ninja did more than look (3 to 6 ms)."""


@dataclass(eq=False)
class Child:
    """A compiler, or ninja, that was seen starting.

    `event` is ours if no monitor claimed it. `claim` is the monitor's event that it works for. `status` is how it
    ended, empty while it runs; `pid` stays 0 as long as it is not known.
    """

    command: Command | Build
    folder: str
    starter: Starter
    started: float
    event: CompileEvent | None = None
    claim: CompileEvent | None = None
    pid: int = 0
    log: BuildLog | None = None
    cpu: float = field(default_factory=tree.cpu_of_children)
    ended: float | None = None
    status: str = ""
    works: bool = False

    @property
    def output(self) -> Path:
        """The file that a compiler writes, or the folder that ninja builds in."""
        return resolved(self.folder, self.command.output if isinstance(self.command, Command) else self.command.folder)

    def is_process(self, pid: int, command: Command | Build | None) -> bool:
        """Tell whether a living process is this one, or the shell or launcher that it was started by."""
        mine = self.pid or self.starter.pid
        if mine:
            return pid == mine
        return command is not None and command.words[1:] == self.command.words[1:]

    def has_worked(self) -> bool:
        """Tell whether ninja did something that is not in its log: where there is none, or where it failed."""
        if self.log is not None and self.log.known and self.status == "ok":
            return self.works
        return self.works or tree.cpu_of_children() - self.cpu > _NINJA_HAS_WORKED

    def ask(self) -> str:
        """Ask how it ended, if nobody told; empty if it still runs."""
        popen = self.starter.popen() if self.starter.popen else None
        if popen is not None:
            self.pid = self.starter.pid or self.pid
            code = getattr(popen, "returncode", None)
            if code is not None:
                return "ok" if code == 0 else "failed"
        if self.pid:
            return "" if tree.runs(self.pid) else self._by_output()
        is_here = self.starter.ident == threading.get_ident()  # so the call that started it has returned
        if self.starter.how == "os.system" and is_here:
            return self._by_output()
        self.pid = tree.runs_below(self.command.words)
        is_young = monotonic() - self.started < _CERTAINLY_STARTED and not is_here
        return "" if self.pid or is_young else self._by_output()

    def _by_output(self) -> str:
        if isinstance(self.command, Build):
            return "ok"
        if self.starter.how == "os.system" and not Path(self.command.output).is_absolute():
            return "ok"  # the shell may have changed its folder
        moment = written(self.output)
        return "ok" if moment is not None and moment >= self.started - 0.05 else "failed"

    def end_of(self, noticed: float) -> float:
        """Return when it was over: when that was noticed, unless its output says that it was much earlier."""
        moment = written(self.output / LOG if isinstance(self.command, Build) else self.output)
        if moment is None or not self.started <= moment < noticed - _NOTICED_AT_ONCE:
            return noticed
        return moment
