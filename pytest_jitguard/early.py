"""What must stand before the first conftest is imported: cold caches and the offline target."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

from pytest_jitguard.core.settings import BY_NAME, Settings
from pytest_jitguard.offline import OfflineTarget, gpu_from_mapping, parse_target
from pytest_jitguard.patching import when_imported
from pytest_jitguard.processes import caches

_OFFLINE_KEY = pytest.StashKey["OfflineTarget | None"]()
_COLD_KEY = pytest.StashKey[Path]()


def prepare(config: pytest.Config, settings: Settings, *, worker: bool) -> None:
    """Set up what this process still lacks; UsageError names setting, value and remedy. Undone by pytest's cleanup.

    An xdist `worker` inherits the cache folders of its controller. Runs again at configure time, for what came too late
    or could not be told before. A process that reported to a guard reports no more: it is a guard itself.
    """
    if bootstrap := sys.modules.get("pytest_jitguard.processes.bootstrap"):
        bootstrap.stand_down()
    if settings.cache == "cold" and not worker and _COLD_KEY not in config.stash:
        config.stash[_COLD_KEY] = _start_cold(config)
    if _OFFLINE_KEY not in config.stash:
        config.stash[_OFFLINE_KEY] = _start_offline(config, settings)


def offline_target(config: pytest.Config) -> OfflineTarget | None:
    """Return the offline target of this process."""
    return config.stash.get(_OFFLINE_KEY, None)


def _start_cold(config: pytest.Config) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="jitguard-cold-"))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    config.add_cleanup(caches.redirect(folder))
    return folder


def _start_offline(config: pytest.Config, settings: Settings) -> OfflineTarget | None:
    if settings.offline is None:
        return None
    option = BY_NAME["offline"].option
    try:
        extra = {name: gpu_from_mapping(name, table) for name, table in settings.structured.gpus.items()}
        gpu = parse_target(settings.offline, extra)
    except ValueError as error:
        raise pytest.UsageError(f"jitguard: {option}: {error}") from error
    if not is_installed("triton"):
        raise pytest.UsageError(f"jitguard: {option}: {settings.offline} needs Triton, which is not installed")
    target = OfflineTarget(gpu, "meta" if settings.offline_tensors == "meta" else "cpu")
    installers = {"triton": target.install_triton, "torch": target.install_torch}
    config.add_cleanup(target.uninstall)
    config.add_cleanup(installers.clear)

    def install(module: ModuleType) -> None:
        # A hook on an import cannot be taken back: after this session it must find nothing to do.
        if module.__name__ in installers:
            installers[module.__name__](module)

    for name in list(installers):
        when_imported(name, install)
    return target


def is_installed(name: str) -> bool:
    """Tell whether a library can be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # blocked by somebody on purpose
        return False
