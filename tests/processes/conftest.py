"""An environment whose Pythons report, and a run's folder for them to report to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pytest_jitguard.core.census import Census, conclude
from pytest_jitguard.processes import census
from pytest_jitguard.processes.inherit import Inherited
from pytest_jitguard.processes.journal import JournalText, make_folder, read_folder
from tests.conftest import FAKEJIT, ROOT

PROGRAMS = Path(__file__).parent
START_UP = ("_jitguard_start.py", "pytest_jitguard.pth")
GUARD = "00000000"


@pytest.fixture(scope="session")
def reporting_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python that behaves as if this project was installed in it, for .pth files work from there only.

    It is a bare virtual environment with our two start-up files, and two .pth files of paths: to this source tree and
    the fake JIT, and to the packages of the environment that runs the tests. No pip, no network, no build.
    """
    folder = tmp_path_factory.mktemp("reporting")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    site = next(folder.glob("lib/python*/site-packages"))
    others = [path for path in map(Path, sys.path) if path.name in ("site-packages", "dist-packages", "site")]
    (site / "_others.pth").write_text("".join(f"{path}\n" for path in others))
    (site / "_source.pth").write_text(f"{ROOT}\n{FAKEJIT}\n")
    for name in START_UP:
        shutil.copy(ROOT / name, site)
    return folder / "bin" / "python"


@dataclass
class Run:
    """A guarded run without its guard: what children inherit, what they wrote, and what follows from that."""

    python: Path
    folder: Path
    inherited: Inherited
    variables: dict[str, str] = field(default_factory=dict)

    def environment(self, **more: str) -> dict[str, str]:
        """Return what a child of the guard is started with."""
        names = ("PATH", "TMPDIR", "HOME", "TRITON_CACHE_DIR", "LD_LIBRARY_PATH")
        kept = {name: os.environ[name] for name in names if name in os.environ}
        return {**kept, "FAKEJIT_CACHE": "", **self.inherited.variables(), **self.variables, **more}

    def __call__(self, *args: str, code: int | None = 0, **more: str) -> subprocess.CompletedProcess[str]:
        """Run Python, wait until every process of its tree is gone, and check its exit code unless that is None."""
        done = subprocess.run(
            [str(self.python), *args], env=self.environment(**more), capture_output=True, text=True, timeout=120
        )
        self.wait()
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def wait(self) -> None:
        """Wait for processes that outlive whoever started them."""
        until = time.monotonic() + 60
        while left := [living for living in census.scan(self.folder) if living.ppid != os.getpid()]:
            assert time.monotonic() < until, f"still there: {left}"
            time.sleep(0.02)

    @property
    def journals(self) -> list[JournalText]:
        """Every journal, in the order of time; nothing in them may be torn, and nothing may have gone wrong."""
        texts = sorted(read_folder(self.folder), key=lambda text: float(text.hello["monotonic"]))
        assert [text.rejected for text in texts if text.rejected] == []
        return texts

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Every record of a kind, with the host of its journal."""
        texts = self.journals
        return [{"host": t.hello["host"], **record} for t in texts for record in t.records if record["record"] == kind]

    def of(self, kernel: str) -> list[JournalText]:
        """The journals of processes that compiled a kernel."""
        return [text for text in self.journals if any(r.get("kernel") == kernel for r in text.records)]

    @property
    def census(self) -> Census:
        """Children started against children heard."""
        return conclude(self.records("child"), self.records("hello"))


def kinds(text: JournalText) -> list[str]:
    """Return what a journal tells, in order."""
    return [str(record["record"]) for record in text.records]


def events(text: JournalText) -> dict[str, str]:
    """Return the kernels of a journal with the status of their compiles."""
    found: dict[str, str] = {}
    names: dict[str, str] = {}
    for record in text.records:
        if record["record"] == "begin":
            names[record["event"]] = record["kernel"]
            found[record["kernel"]] = "running"
        elif record["record"] == "end":
            found[names[record["event"]]] = str(record["status"])
    return found


def role(text: JournalText) -> str:
    """Return what a process called itself last."""
    said: list[Mapping[str, Any]] = [record for record in text.records if record["record"] in ("hello", "identity")]
    return str(said[-1]["role"])


@pytest.fixture
def run(reporting_python: Path, tmp_path: Path) -> Iterator[Run]:
    """A run whose children report compiles of the fake JIT."""
    folder = make_folder(tmp_path / "run")
    inherited = Inherited(folder, GUARD, monitors=("fakejit_monitor:FakeMonitor",))
    yield Run(reporting_python, folder, inherited)
    for living in census.scan(folder):
        os.kill(living.pid, 9)
