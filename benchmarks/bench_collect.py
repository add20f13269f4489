"""`pytest --collect-only` over 1,000 tests: plugin blocked, installed but off, on. Bound: 1.02 for off."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.interleaved import interleave, ratio, show

TESTS, ROUNDS, BOUND = 1_000, 40, 1.02
ROOT = Path(__file__).parent.parent
PLUGIN = ("-p", "pytest_jitguard.plugin")


def collecting(folder: Path, *args: str) -> Callable[[], float]:
    """Return a variant: the CPU and wall time of one collection, as wall seconds."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *args, str(folder)]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    # An installed plugin has its bytecode; without it every start would compile the source.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def run() -> float:
        began = time.perf_counter()
        subprocess.run(command, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    return run


def main() -> int:
    folder = Path(tempfile.mkdtemp())
    (folder / "test_many.py").write_text("\n".join(f"def test_{n}(): pass" for n in range(TESTS)))
    variants = {
        "off": collecting(folder, *PLUGIN),
        "blocked": collecting(folder),
        "blocked again": collecting(folder),
        "on": collecting(folder, *PLUGIN, "--jitguard"),
    }
    interleave(variants, 1)  # writes the bytecode
    seconds = interleave(variants, ROUNDS)
    ratios = [
        ratio("off / blocked", seconds["off"], seconds["blocked"]),
        ratio("A/A: blocked again / blocked", seconds["blocked again"], seconds["blocked"]),
        ratio("on / blocked", seconds["on"], seconds["blocked"]),
    ]
    return 0 if show(f"Collection of {TESTS} tests, {min(seconds['blocked']):.2f} s blocked", ratios, BOUND) else 1


if __name__ == "__main__":
    sys.exit(main())
