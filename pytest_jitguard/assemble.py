"""Puts the parts together for one process by its role: pytest itself, an xdist controller, or an xdist worker."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

import pytest_jitguard
from pytest_jitguard.core import baseline as baselines
from pytest_jitguard.core.baseline import Baseline
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.core.settings import BY_NAME, SETTINGS, Settings
from pytest_jitguard.monitors import BUILTIN, MonitorError, MonitorSet
from pytest_jitguard.monitors._patch import when_imported
from pytest_jitguard.offline import OfflineTarget, gpu_from_mapping, parse_target
from pytest_jitguard.processes import caches
from pytest_jitguard.processes.journal import Journal, make_folder
from pytest_jitguard.session import GuardSession

ROLES = ("pytest", "xdist controller", "xdist worker")


@dataclass
class Process:
    """What one process holds while the guard is on, and how to leave no trace of it."""

    role: str
    settings: Settings
    folder: Path
    journal: Journal
    baseline: Baseline
    offline: OfflineTarget | None = None
    session: GuardSession | None = None
    keep_folder: bool = True
    undo: list[Callable[[], None]] = field(default_factory=list)

    def close(self) -> None:
        """Undo everything in reverse order; a temporary journal folder goes if the run came to an orderly end."""
        while self.undo:
            self.undo.pop()()
        self.journal.close()
        if not self.keep_folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def role_of(config: pytest.Config) -> str:
    """Tell what this process is: only pytest itself and xdist workers run tests."""
    if hasattr(config, "workerinput"):
        return "xdist worker"
    return "xdist controller" if config.getoption("dist", "no") != "no" else "pytest"


def build(config: pytest.Config, settings: Settings) -> Process:
    """Check what can be checked now, then set this process up. Raises UsageError naming setting, value and remedy."""
    role = role_of(config)
    try:
        _check_interpreter(settings)
        _check_monitors(settings)
        baseline = _load_baseline(settings)
        for name in ("json", "markdown"):
            _check_writable(getattr(settings, name), BY_NAME[name].option)
        offline = _offline(settings)
    except (ValueError, OSError) as error:
        raise pytest.UsageError(f"jitguard: {error}") from error
    folder, keep = _journal_folder(config, settings, role)
    process = Process(role, settings, folder, Journal(folder, role), baseline, offline, keep_folder=keep)
    _redirect_caches(process)
    process.journal.write(_environment(config, process))
    if role != "xdist controller":
        _watch(config, process)
    return process


def _watch(config: pytest.Config, process: Process) -> None:
    recorder = Recorder(process.journal.image, process.journal.write, host=platform.node(), role=process.role)
    monitors = MonitorSet(process.settings.monitors, recorder)
    process.undo.append(monitors.disarm)
    offline = process.offline
    if offline is not None:
        # Before the monitors, so that nothing of a library's start-up asks the real driver first.
        when_imported("triton", offline.install_triton)
        when_imported("torch", offline.install_torch)
        process.undo.append(offline.uninstall)
    monitors.arm()
    process.session = GuardSession(
        process.settings,
        recorder,
        monitors,
        baseline=process.baseline,
        launch_counts=offline.launches if offline else None,
        root=str(config.rootpath),
    )


def _check_interpreter(settings: Settings) -> None:
    if os.environ.get("TRITON_INTERPRET", "") not in ("", "0") and "interpret" not in settings.waive:
        raise ValueError(
            f"TRITON_INTERPRET={os.environ['TRITON_INTERPRET']}: interpreted kernels compile nothing, so nothing could "
            "be seen; unset it, or waive this with --jitguard-waive=interpret"
        )


def _check_monitors(settings: Settings) -> None:
    for name in settings.monitors:
        if name in BUILTIN and importlib.util.find_spec(name) is None:
            raise MonitorError(f"{BY_NAME['monitors'].option}: {name} was asked for by name, but is not installed")
    MonitorSet(settings.monitors, Recorder("check", lambda record: None))


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
    except (baselines.BaselineError, UnicodeDecodeError) as error:
        raise ValueError(f"{option}: {path} {error}") from error


def _check_writable(target: str | None, option: str) -> None:
    """Find out at the start, not after an hour of tests, that a report cannot be written."""
    if target is None:
        return
    path = Path(target)
    existed = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise ValueError(
            f"{option}: {target} cannot be written: {error.strerror}; expected a path to a file"
        ) from error
    if not existed:
        path.unlink()


def _offline(settings: Settings) -> OfflineTarget | None:
    if settings.offline is None:
        return None
    option = BY_NAME["offline"].option
    try:
        extra = {name: gpu_from_mapping(name, table) for name, table in settings.structured.gpus.items()}
        gpu = parse_target(settings.offline, extra)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error
    if importlib.util.find_spec("triton") is None:
        raise ValueError(f"{option}: {settings.offline} needs Triton, which is not installed")
    return OfflineTarget(gpu, "meta" if settings.offline_tensors == "meta" else "cpu")


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


def _redirect_caches(process: Process) -> None:
    """Start cold where asked; xdist workers inherit the environment of their controller."""
    if process.settings.cache == "cold" and process.role != "xdist worker":
        folder = Path(tempfile.mkdtemp(prefix="jitguard-cold-"))
        process.undo.append(lambda: shutil.rmtree(folder, ignore_errors=True))
        process.undo.append(caches.redirect(folder))


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
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _installed(name: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(name)
    return None
