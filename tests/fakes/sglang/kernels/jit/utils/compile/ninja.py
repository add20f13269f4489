from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

RULES = "rule compile\n  command = cc -fPIC -c $in -o $out\nrule link\n  command = cc -shared $in -o $out\n"


class BuildSpec(NamedTuple):
    module_args: tuple[str, ...]
    source: str
    flags: tuple[str, ...]

    @property
    def module_name(self) -> str:
        return "sgl_kernel_jit_" + "_".join(self.module_args)


def generate(spec: BuildSpec) -> str:
    library = f"{spec.module_name}.so"
    return f"{RULES}build main.o: compile main.c\nbuild {library}: link main.o\ndefault {library}\n# {spec.flags}\n"


def build(*, spec: BuildSpec, build_dir: Path, build_file: str) -> Path:
    build_dir.mkdir(parents=True, exist_ok=True)
    (build_dir / "main.c").write_text(Path(spec.source).read_text())
    (build_dir / "build.ninja").write_text(build_file)
    done = subprocess.run(["ninja"], cwd=build_dir, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Failed to build JIT module {spec.module_name} in {build_dir}\nstdout:\n{done.stdout}")
    return build_dir / f"{spec.module_name}.so"
