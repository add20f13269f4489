"""What a child process of a guarded run does at its start: it reports, from its first line to its last.

`_jitguard_start.py` calls `start` in every Python process that inherited a guard. Imports neither pytest nor a JIT
library. What fails here is told in a `trouble` record and never to the program.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.kinship import COMPILE_WORKER
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import AUTO, BUILTIN, Monitor, MonitorError, MonitorSet, load
from pytest_jitguard.patching import PatchSet, when_imported
from pytest_jitguard.processes import census, proc, roles, stamps
from pytest_jitguard.processes.inherit import Inherited
from pytest_jitguard.processes.journal import Journal

if TYPE_CHECKING:
    from pytest_jitguard.offline import OfflineTarget

_reporter: _Reporter | None = None
"""Who reports for this process: a child itself, or a guard, whose forked children will."""

_was_started = False
_follows_forks = False


def start() -> None:
    """Make this process report to the guard that it inherited; nothing without one, or if it reports already.

    May be called by several doors: the start-up file (twice on some Pythons), a plug-in of an engine.
    """
    global _reporter, _was_started
    if _was_started or _reporter is not None or _waits_for_site():
        return
    _was_started = True
    inherited = Inherited.read(os.environ)
    if inherited is None:
        return
    _reporter = _Reporter.of_child(inherited)
    _reporter.attempt("the start of a monitored process", _reporter.begin)
    _register()


def _waits_for_site() -> bool:
    """Tell whether this start comes too early: what we import may be in a folder that `site` has yet to add.

    So it is in a virtual environment that sees the packages of the system. When every folder is there, `site` looks for
    `sitecustomize`; that is when we start again.
    """
    if any(isinstance(finder, _SiteIsDone) for finder in sys.meta_path):
        return True
    if _SiteIsDone.noticed or importlib.util.find_spec("wrapt") is not None:
        return False
    sys.meta_path.insert(0, _SiteIsDone())
    return True


class _SiteIsDone(MetaPathFinder):
    """Finds nothing, but notices when `sitecustomize` is looked for."""

    noticed = False

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "sitecustomize":
            sys.meta_path.remove(self)
            _SiteIsDone.noticed = True
            try:
                start()
            except Exception:  # noqa: BLE001 - as in _jitguard_start: the program must not notice
                pass


def stand_down() -> None:
    """Stop reporting, and leave no trace but a goodbye: this process turns out to be a guard of its own."""
    global _reporter
    reporter = _reporter
    if reporter is not None and reporter.is_child:
        _reporter = None
        reporter.leave()


def follow_forks(
    journal: Journal, recorder: Recorder, monitors: MonitorSet, inherited: Inherited
) -> Callable[[], None]:
    """Make the forked children of a guard report; return what ends that.

    A forked child renews `recorder` for a journal of its own, keeps `monitors` armed, and counts the children that it
    starts itself. The guard's own children are for the guard to count, by `census.watch`.
    """
    global _reporter
    before = _reporter
    _reporter = mine = _Reporter(inherited, journal, recorder, monitors, is_child=False)
    mine.attempt("the goodbye of forked processes", mine.await_multiprocessing)
    _register()

    def undo() -> None:
        global _reporter
        if _reporter is mine:
            _reporter = before  # the guard around a run of pytest inside a test

    return undo


class _Reporter:
    """What reports for one process; a fork of the process makes it the reporter of the child."""

    def __init__(
        self, inherited: Inherited, journal: Journal, recorder: Recorder, monitors: MonitorSet, *, is_child: bool
    ) -> None:
        self.inherited = inherited
        self.journal = journal
        self.recorder = recorder
        self.monitors = monitors
        self.is_child = is_child
        self._undo: list[Callable[[], None]] = []
        self._title_before: str | None = None
        self._anchor = _Anchor()

    @classmethod
    def of_child(cls, inherited: Inherited) -> _Reporter:
        identity = _identity()
        journal = Journal(inherited.folder, identity.role, guard=inherited.guard, scope=inherited.scope)
        journal.identify(identity)
        recorder = Recorder(journal.image, journal.write, host=journal.host, role=identity.role, rank=identity.rank)
        monitors = MonitorSet((), recorder)
        return cls(inherited, journal, recorder, monitors, is_child=True)

    def begin(self) -> None:
        """Take hold of this process: the offline target before the monitors, as in a guard."""
        steps: tuple[tuple[str, Callable[[], None]], ...] = (
            ("the offline target", self._bring_offline),
            ("the monitors", self._arm),
            ("the census", self._count),
            ("the stamps of engines", self._stamp),
            ("the door into Ray clusters", self._await_ray),
            ("the goodbye of forked processes", self.await_multiprocessing),
        )
        for what, step in steps:
            self.attempt(what, step)
        self._listen()

    def attempt(self, what: str, action: Callable[..., object], *args: object) -> None:
        """Do something of ours; what goes wrong is told to the guard, and the program goes on."""
        try:
            action(*args)
        except Exception as error:  # noqa: BLE001 - the program that we watch must not notice
            message = f"{what} failed in {self.journal.role} (pid {os.getpid()}): {type(error).__name__}: {error}"
            self.journal.write({"record": "trouble", "message": message[:1000]})

    def note(self, record: Mapping[str, Any]) -> None:
        """Write a record into the journal of whichever process this is by now."""
        self.journal.write(record)

    # -- hooking in ----------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        inherited = self.inherited
        every = (*AUTO, *inherited.monitors) if "auto" in inherited.monitors else inherited.monitors
        wanted = [name for name in dict.fromkeys(every) if name not in BUILTIN or BUILTIN[name].in_children]
        # A monitor comes with its library: it may lie in a folder that `site` has yet to add to the path.
        ours = {name: (builtin.target, *builtin.also) for name, builtin in BUILTIN.items() if builtin.target}
        targets = {**ours, **{name: (target,) for name, target in inherited.targets.items() if target}}
        at_once = [name for name in wanted if name != "auto" and name not in targets]
        names = [name for name in at_once if name in BUILTIN or self._can_be_had(name)]
        waived = frozenset(inherited.waive)
        self.monitors = MonitorSet(names, self.recorder, waived, on_change=self._changed)
        self._undo.append(self.monitors.disarm)
        self.monitors.arm()
        late = [monitor.target for monitor in self.monitors.unattended]
        for name in wanted:
            for target in targets.get(name, ()):
                if not when_imported(target, functools.partial(self._add, name)):
                    late.append(target)
        if late:
            raise RuntimeError(f"{', '.join(late)} was half imported; what it compiles from now on is not seen")

    def _add(self, name: str, module: ModuleType) -> None:
        # A hook on an import cannot be taken back: after we left, the set is disarmed and takes hold of nothing.
        self.attempt(f"the monitor {name}", self.monitors.add, name, module)

    def _can_be_had(self, name: str) -> bool:
        """Tell whether a monitor can be imported here; one that cannot must not cost us the others."""
        try:
            load(name)
        except MonitorError as error:
            self.note({"record": "trouble", "message": f"{self.journal.role} (pid {os.getpid()}): {error}"})
            return False
        return True

    def _bring_offline(self) -> None:
        if self.inherited.offline is None:
            return
        part = _OfflinePart(self)
        self._undo.append(part.leave)
        part.wait()

    def _count(self) -> None:
        self._undo.append(census.watch(self.note))
        patches = PatchSet()
        self._undo.append(patches.undo)
        for name in ("execv", "execve"):
            patches.wrap(os, name, self._executing)

    def _stamp(self) -> None:
        self._undo.append(stamps.watch(self.note))

    def _await_ray(self) -> None:
        when_imported("ray", lambda ray: self.attempt("the door into Ray clusters", self._open_ray, ray))

    def _open_ray(self, ray: ModuleType) -> None:
        """Let a Ray job that this process starts report as well: the engine of vLLM may be such a driver."""
        if _reporter is not self:
            return
        from pytest_jitguard.processes.ray_door import RayDoor
        from pytest_jitguard.processes.ray_nodes import RayNodes

        nodes = RayNodes(self.inherited.folder, self.inherited.guard, self._say)
        door = RayDoor(self.inherited, self._say, leaving=nodes.leave)
        self._undo.append(door.close)
        door.open(ray)

    def _say(self, message: str) -> None:
        self.note({"record": "trouble", "message": f"{self.journal.role} (pid {os.getpid()}): {message}"})

    def _listen(self) -> None:
        """Hear of each event as it begins: it proves its monitor, and is worth a look at who we are by now."""
        self.recorder.on_begin = self._begun

    def _begun(self, event: CompileEvent) -> None:
        self.attempt("the look at rank and role", self._look_again)
        self.attempt("the proof of a monitor", self.monitors.seen, event.system)

    def _look_again(self) -> None:
        now = _identity() if self._title_before is None else _identity_of_fork(self._title_before)
        role = self.journal.role if now.role == roles.CHILD else now.role
        rank, world = (self.journal.rank, self.journal.world) if now.rank is None else now[1:]
        self.journal.identify(roles.Identity(role, rank, world))
        self.recorder.role, self.recorder.rank = self.journal.role, self.journal.rank

    def _changed(self, monitor: Monitor) -> None:
        self.note({"record": "monitor", **monitor.to_wire()})

    # -- the end -------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """At an orderly end: compare what is resident with what was seen, and say goodbye."""
        if self.is_child and self.journal.is_mine:
            self.attempt("the last look at the monitors", self.monitors.settle)
            self.attempt("the last look of the nets", self.monitors.account)
            self.journal.say_goodbye()

    def leave(self) -> None:
        """Take every hook out, and say goodbye."""
        while self._undo:
            self.attempt("leaving", self._undo.pop())
        self.recorder.on_begin = None
        self.journal.close()

    def _executing(self, execute: Any, path: Any, *args: Any) -> Any:
        """Say goodbye before the process becomes another program, of which nobody hears if it is not Python."""
        leaves = self.is_child and self.journal.is_mine and os.access(path, os.X_OK)
        if leaves:
            next_image = census.of_exec(path, args)
            self.note(next_image)
            self.finish()
        try:
            return execute(path, *args)
        finally:
            if leaves:
                self.journal.take_back_goodbye()
                self.note({**next_image, "python": False})  # it did not become that

    # -- forks ---------------------------------------------------------------------------------------------------------

    def renew(self) -> None:
        """Become the reporter of the child that was just forked off."""
        parent, was_child, self.is_child = self.journal, self.is_child, True
        self._title_before = _title()
        role = parent.role if was_child and parent.role == COMPILE_WORKER else roles.CHILD
        self.journal = journal = parent.forked(role)
        self.recorder.renew(journal.image, journal.write, role=role, rank=journal.rank)
        self._listen()
        self.monitors.tell_anew(self._changed)
        if not was_child:
            self._undo.append(self.monitors.disarm)
            self.attempt("the census", self._count)
            self.attempt("the stamps of engines", self._stamp)

    def await_multiprocessing(self) -> None:
        """Get a hold on `multiprocessing`, whose forked children end in a way of their own."""
        when_imported("multiprocessing.util", self._multiprocessing_imported)

    def _multiprocessing_imported(self, util: ModuleType) -> None:
        # Held weakly there: dies with this reporter.
        util.register_after_fork(self._anchor, self._in_multiprocessing_child)

    def _in_multiprocessing_child(self, _: object) -> None:
        """Say goodbye at the end of a forked `multiprocessing` child: it ends by `os._exit`, past every atexit."""
        if _reporter is self:
            self.attempt("a look at the process's name", self._look_again)
            from multiprocessing.util import Finalize

            Finalize(None, self.finish, exitpriority=-100)


class _Anchor:
    """Something that can be held weakly."""


class _OfflinePart:
    """The offline target of a child, made when Triton or torch has been imported."""

    def __init__(self, reporter: _Reporter) -> None:
        self._reporter: _Reporter | None = reporter
        self._inherited = reporter.inherited
        self._target: OfflineTarget | None = None

    def wait(self) -> None:
        for name in ("triton", "torch"):
            if not when_imported(name, self._imported):
                raise RuntimeError(f"{name} was half imported; the target is not installed")

    def _imported(self, module: ModuleType) -> None:
        # A hook on an import cannot be taken back: after we left it must find nothing to do.
        if self._reporter is not None:
            self._reporter.attempt(f"the offline target for {module.__name__}", self._install, module)

    def _install(self, module: ModuleType) -> None:
        if self._target is None:
            self._target = self._made()
        install = {"triton": self._target.install_triton, "torch": self._target.install_torch}[module.__name__]
        install(module)

    def _made(self) -> OfflineTarget:
        from pytest_jitguard.offline import OfflineTarget, gpu_from_mapping, parse_target

        extra = {name: gpu_from_mapping(name, table) for name, table in self._inherited.gpus.items()}
        gpu = parse_target(self._inherited.offline or "", extra)
        return OfflineTarget(gpu, "meta" if self._inherited.placement == "meta" else "cpu")

    def leave(self) -> None:
        self._reporter = None
        if self._target is not None:
            self._target.uninstall()


# -- who this process is -----------------------------------------------------------------------------------------------


def _identity() -> roles.Identity:
    """Return what is known of this process by now."""
    return _told(sys.orig_argv, _title())


def _identity_of_fork(title_before: str) -> roles.Identity:
    """Return what is known of a forked process: its command line is its parent's, and its title may be still."""
    title = _title()
    return _told([], "" if title == title_before else title)


def _told(argv: list[str], title: str) -> roles.Identity:
    process = sys.modules.get("multiprocessing.process")
    name = str(process.current_process().name) if process else ""
    told = roles.identify(argv, os.environ, title, name)
    rank, world = _distributed() or told[1:]
    return roles.Identity(told.role, rank, world)


def _title() -> str:
    """Return how this process is shown in a list of processes."""
    return " ".join(proc.argv_of(os.getpid()))


def _distributed() -> tuple[int, int] | None:
    """Return rank and number of ranks as torch knows them, if it has been told."""
    distributed = sys.modules.get("torch.distributed")
    try:
        if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
            return None
        return int(distributed.get_rank()), int(distributed.get_world_size())
    except (AttributeError, RuntimeError, ValueError):
        return None


# -- hooks that cannot be taken back -----------------------------------------------------------------------------------


def _register() -> None:
    global _follows_forks
    if not _follows_forks:
        _follows_forks = True
        os.register_at_fork(after_in_child=_forked)
        atexit.register(_ending)


def _ending() -> None:
    if _reporter is not None:
        _reporter.finish()


def _forked() -> None:
    if _reporter is None:
        return
    try:
        if not _is_about_to_execute():
            _reporter.renew()
    except Exception as error:  # noqa: BLE001 - the fork must go on
        message = f"a forked process could not report: {type(error).__name__}: {error}"
        _reporter.note({"record": "trouble", "message": message})


def _is_about_to_execute() -> bool:
    """Tell whether this fork is a moment in `subprocess.Popen(preexec_fn=...)`, before another program takes over."""
    frame = sys._getframe(2)
    return frame.f_code.co_name == "_execute_child" and frame.f_globals.get("__name__") == "subprocess"
