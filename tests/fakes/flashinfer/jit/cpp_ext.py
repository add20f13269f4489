from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

RULES = "rule compile\n  command = cc -fPIC -c $in -o $out\nrule link\n  command = cc -shared $in -o $out\n"


def ninja_file(library: Path, sources: Sequence[Path]) -> str:
    objects = [library.parent / f"{source.stem}.o" for source in sources]
    lines = [f"build {o}: compile {s}" for o, s in zip(objects, sources, strict=True)]
    return "\n".join([RULES, *lines, f"build {library}: link {' '.join(map(str, objects))}", f"default {library}", ""])


def run_ninja(workdir: Path, ninja_file: Path, verbose: bool, max_jobs: int | None = None) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    command = ["ninja", "-v", "-C", str(workdir), "-f", str(ninja_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Ninja build failed. Ninja output:\n{done.stdout}")
