"""The systems that are measured: the classes that describe monitors to their contract, each in a process of its own.

What a library patches or caches stays for the life of a process, so no two systems share one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pytest_jitguard._contract_bench import monitor_class
from pytest_jitguard._contract_process import Origin
from pytest_jitguard.contract import MonitorContract

ROOT = Path(__file__).resolve().parents[1]
PATHS = [str(ROOT), *(str(ROOT / "tests" / name) for name in ("monitors", "fakejit", "heavy"))]
STAND_INS = tuple(f"{ROOT / 'tests' / name}/" for name in ("fakes", "fakejit"))
LEFT_OUT = 77
"""The exit status of a process that had nothing to measure."""
STARTED = "BENCHMARK_HAS_THE_CONTRACTS_VARIABLES"


@dataclass(frozen=True)
class Subject:
    """One system, whose library is imported and which has done nothing yet."""

    contract: MonitorContract
    origin: Origin
    system: str

    @property
    def monitor(self) -> str:
        """The path of the monitor's class."""
        kind = monitor_class(self.contract)
        return f"{kind.__module__}:{kind.__qualname__}"

    @property
    def is_stand_in(self) -> bool:
        """Whether the library is one of ours that keeps to the real one's protocol."""
        return str(getattr(sys.modules.get(self.contract.target), "__file__", "")).startswith(STAND_INS)

    @property
    def label(self) -> str:
        """The system's name, for a table."""
        return f"{self.system} (stand-in)" if self.is_stand_in else self.system


def each(module: str, wanted: list[str]) -> int:
    """Run `python -m MODULE --one ...` for every system; return 1 if one of them failed."""
    failed = 0
    path = os.pathsep.join([*PATHS, os.environ.get("PYTHONPATH", "")])
    for file, name in _classes():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            command = [sys.executable, "-m", module, "--one", str(file), name, folder, *wanted]
            code = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT, check=False).returncode
        failed += code not in (0, LEFT_OUT)
    return 1 if failed else 0


def _classes() -> Iterator[tuple[Path, str]]:
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for name, base in re.findall(r"^class (Test\w*)\((\w+)\):", file.read_text(encoding="utf-8"), re.MULTILINE):
            if "Contract" in name + base:
                yield file, name


def one(arguments: list[str], measure: Callable[[Subject], int]) -> int:
    """Measure the system of `--one`'s arguments in this process, if it is wanted and its library is there."""
    file, name, folder, *wanted = arguments
    try:
        subject = opened(Origin(f"subject_{Path(file).stem}", file, name, folder))
        if wanted and subject.system not in wanted:
            return LEFT_OUT
        if STARTED not in os.environ:
            _start_again(subject)
        with _named(f"{Path(file).stem}::{name}"):
            set_up(subject)
    except _LeftOut as reason:
        print(f"  {reason}", flush=True)
        return LEFT_OUT
    return measure(subject)


def _start_again(subject: Subject) -> NoReturn:
    """Be this process once more, with the contract's variables from the start: some are read only then."""
    variables = dict(subject.contract.environment(Path(subject.origin.folder)))
    path = os.pathsep.join(filter(None, (variables.pop("PYTHONPATH", ""), os.environ.get("PYTHONPATH", ""))))
    os.execve(sys.executable, sys.orig_argv, {**os.environ, **variables, "PYTHONPATH": path, STARTED: "1"})


def opened(origin: Origin) -> Subject:
    """Return the subject of an origin, without its library."""
    with _named(f"{Path(origin.file).stem}::{origin.name}"):
        contract: MonitorContract = origin.load()
    return Subject(contract, origin, monitor_class(contract).name)


class _LeftOut(Exception):
    """A system that cannot be measured here; the text says why."""


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # a test module skips where its library is missing: no Exception
        if isinstance(error, ImportError) or type(error).__name__ == "Skipped":
            raise _LeftOut(f"{name} left out: {str(error).splitlines()[0][:120]}") from error
        raise


def set_up(subject: Subject) -> None:
    """Import the library."""
    for name in subject.contract.requires:
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"{name} is not installed")
    subject.contract.library()
