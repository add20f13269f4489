"""The main job, shown twice: the warmup as it was leaves a gap (red, explained), the cured one does not (green).

Exits 0 only if the red run had exactly the expected violations and the green run none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = "examples/wna16_moe"
RED = {25: 2, 28: 2, 500: 2, 501: 2, 1024: 2}
"""Tokens of a request to kernels compiled while serving it, after a warmup with 16 tokens: both GEMMs each time."""

WARMED_VARIANTS = 12
"""Variants that the six token counts of the cured warmup compile."""


def run(title: str, warmup: str, folder: Path) -> tuple[int, dict[str, Any]]:
    """Run the serving tests as a user would, with one warmup; return pytest's exit code and the JSON report."""
    report = folder / f"{warmup}.json"
    command = [
        "-m",
        "pytest",
        f"{HERE}/test_serving.py",
        "--jitguard",
        "--jitguard-offline=cuda:90",
        "--jitguard-cache=cold",
    ]
    command += [f"--jitguard-warmup=examples.wna16_moe.warmup:{warmup}", f"--jitguard-json={report}"]
    print(f"\n{'=' * 100}\n{title}\n$ python {' '.join(command[:-1])}\n", flush=True)
    done = subprocess.run([sys.executable, *command], env={**os.environ, "TRITON_DEFAULT_FP_FUSION": "1"}, check=False)
    return done.returncode, json.loads(report.read_text(encoding="utf-8"))


def compiles_by_tokens(report: dict[str, Any]) -> dict[int, int]:
    """Return how many kernels each request compiled while it was served."""
    counts = {int(t["nodeid"].rpartition("[")[2].rstrip("]")): len(t["violations"]) for t in report["tests"]}
    return {tokens: count for tokens, count in counts.items() if count}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        code_red, red = run("1. The warmup as it was: one dummy batch of 16 tokens.", "warmup_as_it_was", Path(folder))
        code_green, green = run("2. The warmup that covers: six token counts.", "warmup_that_covers", Path(folder))
    checks = {
        f"the first run failed for {RED}": code_red == 1 and compiles_by_tokens(red) == RED,
        f"the second warmed {WARMED_VARIANTS} variants": green["warmup"]["compiled"] == WARMED_VARIANTS,
        "the second passed without a violation": code_green == 0 and not compiles_by_tokens(green),
    }
    print(f"\n{'=' * 100}")
    for what, holds in checks.items():
        print(f"{'yes' if holds else 'NO '}  {what}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
