"""The versions that this project promises to work with, in one command: `./check matrix [oldest]`.

The Triton tests run on every supported Triton with the Python that runs this; the tests of the glue run on the oldest
pytest with the oldest Python, without torch and Triton. Environments lie below $JITGUARD_VENVS, by default .venvs.

PYTEST and PYTHON310 name another oldest pytest version and another Python 3.10.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENVS = Path(os.environ.get("JITGUARD_VENVS") or ROOT / ".venvs")

TRITONS = ("3.6.0", "3.7.0", "3.8.0", "3.9.0")
TORCH = "torch==2.13.0"
TRITON_TESTS = (
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/monitors/test_triton_*.py")),
    "tests/offline",
)
GLUE_TESTS = (
    *("tests/plugin", "tests/settings", "tests/session", "tests/core"),
    *("tests/processes", "tests/serving"),
)
PLUGINS = (
    "pytest-xdist>=3.5",
    "pytest-timeout>=2.3",
    "pytest-rerunfailures>=14",
    "jsonschema>=4.20",
    "hypothesis>=6.100",
    "httpx>=0.27",
    "uvicorn>=0.30",
)


@dataclass
class Lane:
    """One environment and the tests that run in it. `overriding` is installed over what another package asks for."""

    name: str
    python: str
    packages: tuple[str, ...]
    tests: tuple[str, ...]
    overriding: tuple[str, ...] = ()

    @property
    def stamp(self) -> str:
        """What the environment was made from."""
        made_from = (self.python, *self.packages, *self.overriding, (ROOT / "pyproject.toml").read_text())
        return "\n".join(made_from)


def lanes(only_oldest: bool) -> list[Lane]:
    """Return the lanes, oldest Triton first."""
    chosen = TRITONS[:1] if only_oldest else TRITONS
    # torch names the one Triton that it was built with; kernels run on others as well.
    tritons = [
        Lane(f"triton-{v}", sys.executable, (TORCH, "numpy", *PLUGINS), TRITON_TESTS, (f"triton=={v}",)) for v in chosen
    ]
    version = os.environ.get("PYTEST") or "8.0.0"
    return [*tritons, Lane(f"pytest-{version}", python310(), (f"pytest=={version}", *PLUGINS), GLUE_TESTS)]


def python310() -> str:
    """Return a Python 3.10; SystemExit that says where it was looked for."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    # A python3.10 on the PATH may be a shim of pyenv that runs nothing, so that each is tried.
    candidates = [os.environ.get("PYTHON310"), shutil.which("python3.10"), *pyenv.glob("versions/3.10.*/bin/python")]
    for candidate in candidates:
        if candidate and _version(str(candidate)) == "3.10":
            return str(candidate)
    raise SystemExit(f"matrix: no Python 3.10 in $PYTHON310, on the PATH, or below {pyenv}/versions; install one")


def _version(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def set_up(lane: Lane) -> Path:
    """Make or reuse the lane's environment; return its Python."""
    folder = VENVS / f"matrix-{lane.name}"
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if not stamp.exists() or stamp.read_text() != lane.stamp:
        print(f"Setting up {folder} ...", flush=True)
        subprocess.run([lane.python, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-e", str(ROOT), *lane.packages], check=True)
        if lane.overriding:
            subprocess.run([*pip, "--no-deps", *lane.overriding], check=True)
        stamp.write_text(lane.stamp)
    return python


def run(lane: Lane) -> tuple[bool, str]:
    """Run a lane; return whether it passed, and pytest's last line."""
    try:
        python = set_up(lane)
    except (subprocess.CalledProcessError, OSError) as error:
        return False, f"no environment: {error}"
    tests = [test for test in lane.tests if (ROOT / test).is_file() or list((ROOT / test).glob("**/test_*.py"))]
    cache = VENVS / f"matrix-{lane.name}" / "triton-cache"
    reruns = ["--reruns", os.environ["RERUNS"], "-raR"] if os.environ.get("RERUNS") else []
    command = [str(python), "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *reruns, *tests]
    # A cache of its own: a cache hit of another version's run would be a miss of what is tested here.
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip(" =\n") or last
    return process.wait() == 0, last


def main(arguments: list[str]) -> int:
    """Run all lanes, whatever becomes of each; print the table; return 1 if one failed."""
    if arguments not in ([], ["oldest"]):
        raise SystemExit(f"matrix: unknown argument {' '.join(arguments)!r}; expected nothing, or oldest")
    rows = []
    for lane in lanes(only_oldest=bool(arguments)):
        print(f"\n== {lane.name}, Python {_version(lane.python)}: {' '.join(lane.tests)}", flush=True)
        started = time.monotonic()
        passed, last = run(lane)
        rows.append(
            (lane.name, _version(lane.python), "passed" if passed else "FAILED", time.monotonic() - started, last)
        )
    print(f"\n{'lane':<16}{'Python':<8}{'result':<8}{'seconds':>8}  last line")
    for name, python, result, seconds, last in rows:
        print(f"{name:<16}{python:<8}{result:<8}{seconds:>8.0f}  {last}")
    return int(any(result == "FAILED" for _, _, result, *_ in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
