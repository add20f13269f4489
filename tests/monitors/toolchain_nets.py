"""An armed net for compilers, and libraries beside it whose monitors have something to say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet
from pytest_jitguard.monitors._wrapping import WrappingMonitor

NET = "pytest_jitguard.monitors.toolchain:ToolchainMonitor"
SOURCE = "int answer(void) { return 42; }\n"

needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
needs_ninja = pytest.mark.skipif(not (shutil.which("ninja") and shutil.which("gcc")), reason="needs ninja and gcc")


class Net:
    """An armed net, with whatever other monitors, in a folder with a source in it."""

    def __init__(self, folder: Path, *monitors: str) -> None:
        self.records: list[Any] = []
        self.recorder = Recorder("feed0001", self.records.append)
        self.monitors = MonitorSet([*monitors, NET], self.recorder)
        self.folder = folder
        (folder / "k.c").write_text(SOURCE)

    def gcc(self, output: str, *more: str) -> list[str]:
        return ["gcc", *more, "-c", str(self.folder / "k.c"), "-o", str(self.folder / output)]

    def seen(self) -> list[CompileEvent]:
        """Do what the end of a phase does, and return the events so far."""
        self.monitors.settle()
        self.monitors.account()
        assert self.net.state == "armed", self.net.detail
        return self.recorder.events

    @property
    def net(self) -> Any:
        found = self.monitors.named("toolchain")
        assert found is not None
        return found


class Neighbour(WrappingMonitor):
    """A monitor of a library that runs a compiler for what it is asked to build."""

    name: ClassVar[str] = "neighbourjit"
    target: ClassVar[str] = "neighbourjit"

    def hook_in(self, module: ModuleType) -> None:
        self.wrap(module, "build", self._build)

    def _build(self, build: Any, *args: Any) -> Any:
        with self.compiling("kernel"):
            return build(*args)


class Afterwards(Neighbour):
    """One that knows only afterwards whether anything was built."""

    def _build(self, build: Any, *args: Any) -> Any:
        started = monotonic()
        result = build(*args)
        self.record("kernel", kind="compile", started=started)
        return result


LIBRARY = """
import subprocess
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(1)
def build(argv, cwd=None):
    subprocess.run(argv, check=True, cwd=cwd, capture_output=True)
def build_in_pool(argv):
    subprocess.run(argv, check=True)
def in_pool(argv):
    return pool.submit(build_in_pool, argv).result()
"""


def with_neighbour(
    tmp_path: Path, kind: type[WrappingMonitor], build: Callable[..., object] | str = "build"
) -> tuple[Net, Any]:
    library = ModuleType("neighbourjit")
    library.__file__ = str(tmp_path / "neighbourjit" / "__init__.py")
    exec(LIBRARY, vars(library))
    vars(library)["build"] = getattr(library, build) if isinstance(build, str) else build
    net = Net(tmp_path)
    monitor = kind(net.recorder)
    net.monitors.monitors.insert(0, monitor)
    monitor.state = "unproven"
    monitor.install(library)
    net.monitors.arm()
    return net, library
