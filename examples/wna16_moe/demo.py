"""The main job: a warmup with a gap is found out and explained (red, twice), the cured one passes (green).

Exits 0 only if the red runs had exactly the expected violations and the green run none.
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
SMALL = {25: 2, 28: 2, 500: 2, 501: 2, 1024: 2}
"""Tokens of a request to kernels compiled while serving it, after a warmup with 16 tokens: both GEMMs each time."""

LARGE = {25: 2, 28: 2, 501: 2, 1024: 2}
"""The same after a warmup with 500 tokens: only requests of that class are covered."""

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


def _compiled(done: tuple[int, dict[str, Any]]) -> tuple[int, dict[int, int]]:
    """Return pytest's exit code, and how many kernels each request compiled while it was served."""
    code, report = done
    counts = {int(t["nodeid"].rpartition("[")[2].rstrip("]")): len(t["violations"]) for t in report["tests"]}
    return code, {tokens: count for tokens, count in counts.items() if count}


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = run("1. The warmup as it was: one dummy batch of 16 tokens.", "warmup_as_it_was", folder)
        large = run("2. Half a cure: one large batch as well.", "warmup_with_a_large_batch", folder)
        cured = run("3. The warmup that covers: six token counts.", "warmup_that_covers", folder)
    checks = {
        f"run 1 failed, with exactly {SMALL} kernels compiled by tokens": _compiled(small) == (1, SMALL),
        f"run 2 failed, with exactly {LARGE}": _compiled(large) == (1, LARGE),
        f"run 3 warmed {WARMED_VARIANTS} variants": cured[1]["warmup"]["compiled"] == WARMED_VARIANTS,
        "run 3 passed without a violation": _compiled(cured) == (0, {}),
    }
    print(f"\n{'=' * 100}")
    for what, holds in checks.items():
        print(f"{'yes' if holds else 'NO '}  {what}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
