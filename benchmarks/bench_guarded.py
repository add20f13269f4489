"""What a guarded test costs that does nothing: CPU time of 1,000 empty tests, less that of one, on against off."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.interleaved import interleave

TESTS, ROUNDS = 1_000, 10
ROOT = Path(__file__).parent.parent
PLUGIN = ("-p", "pytest_jitguard.plugin")
SUITE = """
import pytest

@pytest.mark.jitguard
@pytest.mark.parametrize("number", range({tests}))
def test_nothing(number):
    pass
"""


def running(folder: Path, tests: int, *args: str) -> Callable[[], float]:
    """Return a variant: the CPU seconds of a run, user and system. Wall time would say what else the machine does."""
    file = folder / f"test_{tests}.py"
    file.write_text(SUITE.format(tests=tests))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PLUGIN, *args, str(file)]
    # Caches of its own: what others compile meanwhile would be looked at.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    environment["TMPDIR"] = str(folder)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def run() -> float:
        before = _cpu()
        subprocess.run(command, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return _cpu() - before

    return run


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    on = ("--jitguard", "--jitguard-waive=nothing-watched")
    kinds: dict[str, tuple[str, ...]] = {
        "off": (),
        "without the nets": (*on, "--jitguard-monitors=triton"),
        "on": on,
    }
    variants = {
        f"{kind} {tests}": running(folder, tests, *args) for kind, args in kinds.items() for tests in (1, TESTS)
    }
    interleave(variants, 1)  # writes the bytecode
    seconds = interleave(variants, ROUNDS)
    print(f"CPU time of one empty test of {TESTS}, median of {ROUNDS} interleaved rounds")
    for kind in kinds:
        pairs = zip(seconds[f"{kind} {TESTS}"], seconds[f"{kind} 1"], strict=True)
        each = [(many - one) / (TESTS - 1) for many, one in pairs]
        print(f"  {kind:20s} {statistics.median(each) * 1e3:.2f} ms  [{min(each) * 1e3:.2f}, {max(each) * 1e3:.2f}]")


if __name__ == "__main__":
    main()
