"""Puts the parts together for one process by its role: pytest itself, an xdist controller, or an xdist worker."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

import pytest_jitguard
from pytest_jitguard import discovery, early
from pytest_jitguard.core import baseline as baselines
from pytest_jitguard.core.baseline import Baseline
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.core.settings import BY_NAME, SETTINGS, Settings
from pytest_jitguard.monitors import AUTO, BUILTIN, Monitor, MonitorError, MonitorSet, load
from pytest_jitguard.offline import OfflineTarget
from pytest_jitguard.processes import bootstrap, census, environment, roles
from pytest_jitguard.processes.caches import CACHE_ROOTS
from pytest_jitguard.processes.inherit import Inherited
from pytest_jitguard.processes.journal import Journal, discard_folder, make_folder
from pytest_jitguard.processes.ray_door import RayDoor
from pytest_jitguard.processes.ray_nodes import RayNodes
from pytest_jitguard.processes.relatives import Relatives
from pytest_jitguard.servers.leash import is_keeper
from pytest_jitguard.session import GuardSession


@dataclass
class Process:
    """What one process holds while the guard is on, and how to leave no trace of it.

    `role` is that of `role_of`. `local` are the monitors that no child arms.
    `inherited` is what its children inherit, None if they are let be.
    `stderr` is the real one, duplicated while pytest does not capture: where a hanging warmup's stacks go.
    """

    role: str
    settings: Settings
    folder: Path
    journal: Journal
    baseline: Baseline
    offline: OfflineTarget | None = None
    local: frozenset[str] = frozenset()
    session: GuardSession | None = None
    inherited: Inherited | None = None
    keep_folder: bool = True
    stderr: int = 2
    undo: list[Callable[[], None]] = field(default_factory=list)

    def close(self) -> None:
        """Undo everything in reverse order; a temporary journal folder goes if the run came to an orderly end."""
        while self.undo:
            self.undo.pop()()
        self.journal.close()
        if not self.keep_folder:
            discard_folder(self.folder)


def role_of(config: pytest.Config) -> str:
    """Tell what this process is: only pytest itself and xdist workers run tests."""
    if hasattr(config, "workerinput"):
        return "xdist worker"
    return "xdist controller" if config.getoption("dist", "no") != "no" else "pytest"


def build(config: pytest.Config, settings: Settings) -> Process:
    """Check what can be checked now, then set this process up. Raises UsageError naming setting, value and remedy."""
    role = role_of(config)
    early.prepare(config, settings, worker=role == "xdist worker")
    try:
        _check_interpreter(settings)
        found = _find_monitors(config, settings)
        settings = dataclasses.replace(settings, monitors=found.monitors)
        _check_monitors(settings)
        _check_denied(settings)
        _check_witness(settings, role)
        baseline = _load_baseline(settings)
        if role != "xdist worker":
            _check_outputs(settings)
    except ValueError as error:
        raise pytest.UsageError(f"jitguard: {error}") from error
    folder, keep = _journal_folder(config, settings, role)
    offline = early.offline_target(config)
    process = Process(role, settings, folder, Journal(folder, role), baseline, offline, found.local, keep_folder=keep)
    config.add_cleanup(process.close)
    process.stderr = os.dup(2)
    process.undo.append(lambda: os.close(process.stderr))
    process.journal.write(_environment(config, process))
    if role != "xdist controller":
        _watch(config, process)
    return process


def _watch(config: pytest.Config, process: Process) -> None:
    journal, settings = process.journal, process.settings
    recorder = Recorder(journal.image, journal.write, host=platform.node(), role=process.role, rank=journal.rank)
    monitors = MonitorSet(settings.watched(), recorder, frozenset(settings.waive))
    process.undo.append(monitors.disarm)
    monitors.prepare()
    monitors.arm()
    watches_children = settings.children != "off"
    process.session = GuardSession(
        settings,
        recorder,
        monitors,
        baseline=process.baseline,
        launch_counts=process.offline.launches if process.offline else None,
        relatives=Relatives(process.folder, journal.image) if watches_children else None,
        root=str(config.rootpath),
    )
    if watches_children:
        process.inherited = _raise_children(process, recorder, monitors)


def _raise_children(process: Process, recorder: Recorder, monitors: MonitorSet) -> Inherited:
    """Make every Python process that is started from here report, and count them all."""
    settings, journal = process.settings, process.journal
    travelling = tuple(name for name in settings.watched() if name not in process.local)
    inherited = Inherited(
        folder=process.folder,
        guard=process.journal.image,
        monitors=travelling,
        targets={name: load(name).target for name in travelling if name not in (*BUILTIN, "auto")},
        waive=settings.waive,
        offline=settings.offline,
        placement=settings.offline_tensors,
        gpus=settings.structured.gpus,
    )
    _note_elders(journal)
    process.undo.append(environment.put(inherited.variables()))
    process.undo.append(bootstrap.follow_forks(process.journal, recorder, monitors, inherited))
    process.undo.append(
        census.watch(lambda record: None if is_keeper(record.get("argv", ())) else journal.write(record))
    )
    _open_ray(process, inherited)
    return inherited


def _note_elders(journal: Journal) -> None:
    """Note the children that a conftest or a plug-in started before there was a guard: they will not report."""
    for living in census.scan(journal.folder):
        mine = living.ppid == os.getpid() and roles.commanded_role(living.argv) not in roles.HELPERS
        if mine and not is_keeper(living.argv):
            journal.write(living.record())


def _open_ray(process: Process, inherited: Inherited) -> None:
    """Let jobs on a Ray cluster report as well; nothing of this imports ray."""
    session = process.session
    assert session is not None

    def say(message: str) -> None:
        process.journal.write({"record": "trouble", "message": message})

    cold = {name: os.environ[name] for name in CACHE_ROOTS if name in os.environ}
    nodes = RayNodes(process.folder, process.journal.image, say)
    door = RayDoor(inherited, say, variables=cold if process.settings.cache == "cold" else {}, leaving=nodes.leave)
    process.undo.append(lambda: nodes.close(remove=not process.keep_folder))
    process.undo.append(door.close)
    door.open()

    def fetch() -> None:
        door.settle()
        nodes.fetch()

    session.fetch = fetch


_TRITON_YES = ("1", "true", "on", "yes", "y")
"""What Triton takes for a switched on variable."""


def _check_interpreter(settings: Settings) -> None:
    if os.environ.get("TRITON_INTERPRET", "").lower() in _TRITON_YES and "interpret" not in settings.waive:
        raise ValueError(
            f"TRITON_INTERPRET={os.environ['TRITON_INTERPRET']}: interpreted kernels compile nothing, so nothing could "
            "be seen; unset it, or waive this with --jitguard-waive=interpret"
        )


def _find_monitors(config: pytest.Config, settings: Settings) -> discovery.Found:
    """Take in the monitors of others, from entry points and conftests."""
    try:
        found = discovery.find(settings.monitors, config.hook.pytest_jitguard_monitors(config=config))
    except MonitorError as error:
        raise MonitorError(f"{BY_NAME['monitors'].option}: {error}") from error
    for warning in found.warnings:
        config.issue_config_time_warning(pytest.PytestConfigWarning(f"jitguard: {warning}"), stacklevel=2)
    return found


def _check_monitors(settings: Settings) -> None:
    option = BY_NAME["monitors"].option
    for name in settings.monitors:
        if name == "auto":
            continue
        try:
            monitor = load(name)
        except MonitorError as error:
            raise MonitorError(f"{option}: {error}") from error
        package = monitor.target.partition(".")[0]
        if name in BUILTIN and package and not early.is_installed(package):
            raise MonitorError(f"{option}: {name} was asked for by name, but {package} is not installed")


def _check_denied(settings: Settings) -> None:
    option = BY_NAME["deny"].option
    kinds = {kind.name: kind for name in settings.monitors if name != "auto" for kind in [load(name)]}
    watched = {*kinds, *(AUTO if "auto" in settings.monitors else ())}
    for name in settings.deny:
        if name not in BUILTIN and name not in kinds:
            raise MonitorError(f"{option}: unknown monitor {name!r}; expected {', '.join(_deniable(kinds))}")
        if (kinds.get(name) or load(name)).refuse is Monitor.refuse:
            able = ", ".join(_deniable(kinds))
            raise MonitorError(f"{option}: {name} has no switch that makes it refuse to compile; expected {able}")
        if name not in watched:
            raise MonitorError(f"{option}: {name} is not among the monitors of {BY_NAME['monitors'].option}: add it")


def _deniable(kinds: Mapping[str, type[Monitor]]) -> list[str]:
    """Return the names of the monitors whose libraries can be told to refuse."""
    every = {**{name: load(name) for name in BUILTIN}, **kinds}
    return [name for name, kind in every.items() if kind.refuse is not Monitor.refuse]


def _check_witness(settings: Settings, role: str) -> None:
    if "cupti" in settings.watched() and role != "xdist controller":
        from pytest_jitguard.witness.cupti import refusal  # looks for libraries and a compiler

        if why := refusal():
            asked = "monitors" if settings.witness == "off" else "witness"
            raise ValueError(f"{BY_NAME[asked].option}: {why}")


def _load_baseline(settings: Settings) -> Baseline:
    if settings.baseline is None:
        return Baseline()
    path, option = Path(settings.baseline), BY_NAME["baseline"].option
    if not path.exists():
        if settings.update_baseline:
            return Baseline()
        raise ValueError(f"{option}: {path} does not exist; create it with --jitguard-update-baseline")
    try:
        return baselines.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{option}: {path} cannot be read: {error.strerror}; expected a path to a file") from error
    except (baselines.BaselineError, UnicodeDecodeError) as error:
        raise ValueError(f"{option}: {path} {error}") from error


def _check_outputs(settings: Settings) -> None:
    """Find out at the start, not after an hour of tests, that a report cannot be written."""
    for name in ("json", "markdown", *(["baseline"] if settings.update_baseline else [])):
        target = getattr(settings, name)
        if target is not None:
            _check_writable(Path(target), BY_NAME[name].option)


def _check_writable(path: Path, option: str) -> None:
    existed = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        why = error.strerror
        raise ValueError(f"{option}: {path} cannot be written: {why}; expected a path to a file") from error
    if not existed:
        path.unlink(missing_ok=True)


def _journal_folder(config: pytest.Config, settings: Settings, role: str) -> tuple[Path, bool]:
    """Return this run's folder, and whether it stays after an orderly end. Workers share their controller's."""
    if role == "xdist worker":
        return Path(getattr(config, "workerinput")["jitguard"]["folder"]), True  # noqa: B009 - xdist adds it untyped
    if settings.journal is None:
        return Path(tempfile.mkdtemp(prefix="jitguard-")), False
    run = f"run-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        return make_folder(Path(settings.journal).absolute() / run), True
    except OSError as error:
        option = BY_NAME["journal"].option
        raise pytest.UsageError(
            f"jitguard: {option}: {settings.journal} cannot be created: {error.strerror}"
        ) from error


def _environment(config: pytest.Config, process: Process) -> dict[str, Any]:
    settings = process.settings
    return {
        "record": "environment",
        "jitguard": pytest_jitguard.__version__,
        "pytest": pytest.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _installed(name) for name in ("torch", "triton")},
        "offline": settings.offline,
        "cache": settings.cache,
        "cache_folder": os.environ.get("TRITON_CACHE_DIR") if settings.cache == "cold" else None,
        "root": str(config.rootpath),
        "settings": {s.name: _plain(getattr(settings, s.name)) for s in SETTINGS},
        "waive": list(settings.waive),
        "allow": [list(pair) for pair in settings.structured.allow],
        "budgets": dict(settings.structured.budgets),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _installed(name: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(name)
    return None
