"""What child processes pay at their start: where no guard is on, and where one is. No bounds.

Needs throwaway virtual environments of its own, because `.pth` files work from site-packages only; see
`bench_journals` for what children pay afterwards.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.interleaved import Ratio, interleave, ratio, show
from pytest_jitguard.processes.inherit import Inherited

ROUNDS, STARTS, TRACES = 100, 5, 15
SHOWN_FROM = 0.001
ROOT = Path(__file__).parent.parent
START_UP = ("_jitguard_start.py", "pytest_jitguard.pth")
SILENT = {"PATH": os.defpath, "LANG": "C.UTF-8"}
"""No guard, and nothing that keeps Python from writing bytecode: an installed package has it."""


def main() -> None:
    with folder() as here:
        inert(here)
    with folder() as here:
        monitored(here)


@contextmanager
def folder() -> Iterator[Path]:
    """Give a folder that is gone afterwards."""
    path = Path(tempfile.mkdtemp())
    try:
        yield path
    finally:
        shutil.rmtree(path)


def inert(here: Path) -> None:
    """Compare Pythons with and without the start-up line while no guard is on."""
    without, again, with_line = (bare_python(here / name) for name in ("without", "again", "with"))
    install(with_line)
    variants = {"with": Starting(with_line), "without": Starting(without), "again": Starting(again)}
    seconds = measure(variants)
    show(
        f"Start of Python, no guard on; {STARTS} starts a round",
        [
            ratio("with the line / without", seconds["with"], seconds["without"]),
            ratio("A/A: without, once more / without", seconds["again"], seconds["without"]),
            figure("without: milliseconds", seconds["without"]),
            difference("added by the line: milliseconds", seconds["with"], seconds["without"]),
            difference("added by the line: milliseconds of CPU", variants["with"].cpu, variants["without"].cpu),
            difference("A/A: milliseconds of CPU", variants["again"].cpu, variants["without"].cpu),
        ],
    )


def monitored(here: Path) -> None:
    """Compare a Python that reports to a guard with the same one that does not, and show what it imports."""
    python = bare_python(here / "reporting")
    install(python)
    (site_of(python) / "_paths.pth").write_text("".join(f"{path}\n" for path in [ROOT, *packages()]))
    run = here / "run"
    run.mkdir(mode=0o700)
    reporting = {**SILENT, **Inherited(run, "00000000").variables()}
    variants = {"set": Starting(python, reporting), "unset": Starting(python), "again": Starting(python)}
    seconds = measure(variants)
    assert len(list(run.glob("*.jsonl"))) == STARTS * (ROUNDS + 1), "not every child reported"
    show(
        f"Start of a monitored child, `python -c pass`; {STARTS} starts a round",
        [
            ratio("JITGUARD_PARENT set / unset", seconds["set"], seconds["unset"]),
            ratio("A/A: unset again / unset", seconds["again"], seconds["unset"]),
            figure("unset: milliseconds", seconds["unset"]),
            difference("added by the guard: milliseconds", seconds["set"], seconds["unset"]),
            difference("added by the guard: milliseconds of CPU", variants["set"].cpu, variants["unset"].cpu),
            difference("A/A: milliseconds of CPU", variants["again"].cpu, variants["unset"].cpu),
        ],
    )
    show_imports(python, reporting)


def figure(name: str, seconds: list[float]) -> Ratio:
    """Return an absolute figure in milliseconds, with its interval."""
    return ratio(name, seconds, [1e-3] * len(seconds))


def difference(name: str, seconds: list[float], base: list[float]) -> Ratio:
    """Return what was added, in milliseconds, with its interval."""
    return figure(name, [more - less for more, less in zip(seconds, base, strict=True)])


# -- Pythons -----------------------------------------------------------------------------------------------------------


def bare_python(where: Path) -> Path:
    """Create a virtual environment of nothing; return its Python."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(where)
    return where / "bin" / "python"


def site_of(python: Path) -> Path:
    """Return the site-packages of an environment."""
    return next(python.parent.parent.glob("lib/python*/site-packages"))


def install(python: Path) -> None:
    """Put the start-up files where an installer would."""
    for name in START_UP:
        shutil.copy(ROOT / name, site_of(python))


def packages() -> list[Path]:
    """Return where the environment that runs this keeps its packages."""
    return [path for path in map(Path, sys.path) if path.name in ("site-packages", "dist-packages")]


class Starting:
    """A variant: the seconds from the start of a Python that does nothing to its end; `cpu` keeps those it computed."""

    def __init__(self, python: Path, environment: dict[str, str] = SILENT) -> None:
        self.cpu: list[float] = []
        self._command = [str(python), "-c", "pass"]
        self._environment = environment

    def __call__(self) -> float:
        began, computed = time.perf_counter(), cpu_of_children()
        for _ in range(STARTS):
            subprocess.run(self._command, env=self._environment, check=True)
        self.cpu.append((cpu_of_children() - computed) / STARTS)
        return (time.perf_counter() - began) / STARTS


def cpu_of_children() -> float:
    """Return the CPU seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(variants: dict[str, Starting]) -> dict[str, list[float]]:
    """Interleave variants, after a round that writes the bytecode."""
    interleave(dict(variants), 1)
    for variant in variants.values():
        variant.cpu.clear()
    return interleave(dict(variants), ROUNDS)


# -- imports -----------------------------------------------------------------------------------------------------------


class Imported(NamedTuple):
    """One import as `-X importtime` tells it: how deep, seconds with and without what it imported itself."""

    name: str
    depth: int
    own: float
    total: float


_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|(\s+)(\S+)")


def imports(python: Path, environment: dict[str, str]) -> list[Imported]:
    """Return what one start imports, importers after what they import."""
    command = [str(python), "-X", "importtime", "-c", "pass"]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stderr
    return [
        Imported(name, len(indent) // 2, int(own) * 1e-6, int(total) * 1e-6)
        for own, total, indent, name in _LINE.findall(told)
    ]


def show_imports(python: Path, reporting: dict[str, str]) -> None:
    """Print the imports that a monitored child has beyond those of any other, medians over several starts."""
    known = {one.name for one in imports(python, SILENT)}
    traces = [imports(python, reporting) for _ in range(TRACES)]
    totals = {one.name: statistics.median(_total(trace, one.name) for trace in traces) for one in traces[0]}
    added = statistics.median(sum(one.own for one in trace if one.name not in known) for trace in traces)
    print(f"\nImports of a monitored child beyond any other's, slowed down by -X importtime: {added * 1e3:.1f} ms")
    for one in reversed(traces[0]):
        if one.name not in known and totals[one.name] >= SHOWN_FROM:
            print(f"  {totals[one.name] * 1e3:6.1f} ms  {'  ' * one.depth}{one.name}")


def _total(trace: list[Imported], name: str) -> float:
    return max((one.total for one in trace if one.name == name), default=0.0)


if __name__ == "__main__":
    main()
