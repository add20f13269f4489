"""The main job: a warmup with a gap is found out and explained (red, twice), the cured one passes (green).

Exits 0 only if the red runs had exactly the expected violations and the green run none.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pytest_jitguard.core.verdicts import detail, wholes

HERE = "examples/wna16_moe"
SMALL = {25: 2, 28: 2, 500: 2, 501: 2, 1024: 2}
"""Tokens of a request to kernels compiled while serving it, after a warmup with 16 tokens: both GEMMs each time."""

LARGE = {25: 2, 28: 2, 501: 2, 1024: 2}
"""The same after a warmup with 500 tokens: only requests of that class are covered."""

WARMED_VARIANTS = 12
"""Variants that the six token counts of the cured warmup compile."""

ENVIRONMENT = {"TRITON_DEFAULT_FP_FUSION": "1"}


def run(title: str, warmup: str, folder: Path) -> tuple[int, dict[str, Any]]:
    """Run the serving tests as a user would, with one warmup; return pytest's exit code and the JSON report."""
    report = folder / f"{warmup}.json"
    command = [sys.executable, "-m", "pytest", f"{HERE}/test_serving.py", "-q", "--no-header", "--tb=no", "-rN"]
    command += ["--jitguard", "--jitguard-offline=cuda:90", "--jitguard-cache=cold"]
    command += [f"--jitguard-warmup=examples.wna16_moe.warmup:{warmup}", f"--jitguard-json={report}"]
    shown = [*(f"{name}={value}" for name, value in ENVIRONMENT.items()), shlex.join(command)]
    print(f"\n{'=' * 100}\n{title}\n\n$ {' '.join(shown)}\n", flush=True)
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, check=False)
    return done.returncode, json.loads(report.read_text(encoding="utf-8"))


def explain_one(report: dict[str, Any], *, with_cure: bool) -> None:
    """Print one violation in full, as pytest does without --tb=no; the cure of the next one looks the same."""
    told = [(test, violation) for test in report["tests"] for violation in wholes(test["violations"])]
    for test, violation in told[:1]:
        print(f"\nOne of them in full, of {test['nodeid'].rpartition('::')[2]} (without --tb=no pytest shows all):\n")
        print(violation["message"], *(f"  {line}" for line in detail(violation)), sep="\n")
        if with_cure:
            entry = (f"    {line}".rstrip() for line in violation["cure"].splitlines())
            print("", "  add this to the warmup:", *entry, sep="\n")


def _compiled(done: tuple[int, dict[str, Any]]) -> tuple[int, dict[int, int]]:
    """Return pytest's exit code, and how many kernels each request compiled while it was served."""
    code, report = done
    counts = {int(t["nodeid"].rpartition("[")[2].rstrip("]")): len(t["violations"]) for t in report["tests"]}
    return code, {tokens: count for tokens, count in counts.items() if count}


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="jitguard-demo-"))
    small = run(
        "1. The warmup as it was, one dummy batch of 16 tokens: so few tokens take a path without Triton, so that the\n"
        "   warmup compiles nothing, and each larger request (J) compiles while somebody waits.",
        "warmup_as_it_was",
        folder,
    )
    explain_one(small[1], with_cure=True)
    print("\nExpected: red. Whoever sends the first large request pays for both GEMMs.")
    large = run(
        "2. Half a cure, one batch of 500 tokens as well: 2 of the kernel's 12 variants are warm now. Each J says\n"
        "   what has changed: the block size, or whether a number that follows the tokens is divisible by 16.",
        "warmup_with_a_large_batch",
        folder,
    )
    explain_one(large[1], with_cure=False)
    print("\nExpected: red. A large batch warms its own class of sizes only.")
    cured = run(
        "3. The warmup that covers, six token counts, one for each pair of variants: no J is to be seen.",
        "warmup_that_covers",
        folder,
    )
    print("\nExpected: green. 12 variants were warmed, kernels were launched, none was compiled while serving.")
    checks = {
        "Run 1 failed: requests of 25, 28, 500, 501 and 1024 tokens compiled two kernels each.": (
            _compiled(small) == (1, SMALL)
        ),
        "Run 2 failed: 500 tokens compiled nothing any more, the other four still two kernels each.": (
            _compiled(large) == (1, LARGE)
        ),
        "Run 3 passed: six token counts had warmed all 12 variants, and no request compiled anything.": (
            cured[1]["warmup"]["compiled"] == WARMED_VARIANTS and _compiled(cured) == (0, {})
        ),
    }
    print(f"\n{'=' * 100}")
    for what, holds in checks.items():
        print(f"{'yes' if holds else 'NO '}  {what}")
    print(f"\nThe JSON reports are in {folder}. To guard a suite of your own, see 'A tour' in README.md.")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
