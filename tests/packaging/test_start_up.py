"""The start-up files as installed: which processes report, and that nothing is left behind or printed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from pytest_jitguard.processes.inherit import VARIABLE, Inherited
from pytest_jitguard.processes.journal import read_folder

ROOT = Path(__file__).parents[2]
START_UP = ("_jitguard_start.py", "pytest_jitguard.pth", "pytest_jitguard.start")
LEFT_OUT = shutil.ignore_patterns(".git", ".venvs", ".*_cache", "__pycache__", "dist", "build", ".benchmarks")

# Not asked of `importlib.util`: setuptools takes that for pip's start and leaves distutils alone from then on, so that
# importing setuptools fails later in this process (Python before 3.12).
HAS_PIP = any(importlib.metadata.distributions(name="pip"))

pytestmark = pytest.mark.skipif(
    not (importlib.util.find_spec("hatchling") and HAS_PIP), reason="needs hatchling and pip"
)


class Installed:
    """An environment of its own with this project in it, from a wheel or editable."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        source = folder / "source"
        shutil.copytree(ROOT, source, ignore=LEFT_OUT)
        venv.EnvBuilder(with_pip=False, symlinks=True).create(folder / "venv")
        self.python = folder / "venv" / "bin" / "python"
        self.site = next((folder / "venv").glob("lib/python*/site-packages"))
        # What else is installed here, without .pth files and without us: another installation must not show through.
        others = folder / "others"
        others.mkdir()
        for path in (
            entry for site in sys.path if Path(site).name == "site-packages" for entry in Path(site).iterdir()
        ):
            if "jitguard" not in path.name and not (others / path.name).exists():
                (others / path.name).symlink_to(path)
        (self.site / "others.pth").write_text(f"{others}\n")
        what = ["--editable", str(source)] if kind == "editable" else [str(source)]
        self.pip("install", "--no-deps", "--no-index", "--no-build-isolation", *what)

    def pip(self, command: str, *args: str) -> None:
        ours = [sys.executable, "-m", "pip", f"--python={self.python}", command, "--quiet"]
        done = subprocess.run([*ours, *args], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.python), *args, "-c", "print('ran')"]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")
        return done


def _run_folder(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder, Inherited(folder, "00000000").variables()


def _reports(folder: Path) -> int:
    texts = list(read_folder(folder))
    assert all(text.ended and not text.rejected for text in texts)
    for path in folder.glob("*.jsonl"):
        path.unlink()
    return len(texts)


EDITABLE = pytest.mark.skipif(not importlib.util.find_spec("editables"), reason="hatchling needs editables for this")


@pytest.mark.parametrize("kind", ["wheel", pytest.param("editable", marks=EDITABLE)])
def test_what_reports_from_an_installation_and_what_its_uninstall_leaves(kind: str, tmp_path: Path) -> None:
    installed = Installed(tmp_path / "installed", kind)
    folder, guard = _run_folder(tmp_path)
    assert all((installed.site / name).is_file() for name in START_UP)
    installed.run()
    assert _reports(folder) == 0, "inert without a guard"
    installed.run(**guard)
    assert _reports(folder) == 1, "once, though a .pth line may run twice"
    installed.run("-I", **guard)
    assert _reports(folder) == 1
    installed.run(PYTHONPATH=str(tmp_path), **guard)
    assert _reports(folder) == 1
    installed.run("-S", **guard)
    assert _reports(folder) == 0
    installed.run("-S", "-I", **guard)
    assert _reports(folder) == 0

    damaged = {VARIABLE: "{"}
    installed.run(**damaged)
    gone = {VARIABLE: guard[VARIABLE].replace(str(folder), str(tmp_path / "gone"))}
    installed.run(**gone)
    assert not (tmp_path / "gone").exists()

    installed.pip("uninstall", "--yes", "pytest-jitguard")
    assert [path for path in installed.site.rglob("*") if "jitguard" in str(path.relative_to(installed.site))] == []
    installed.run(**guard)
    assert _reports(folder) == 0


def test_an_interpreter_starts_in_silence_when_only_a_part_of_us_is_left(tmp_path: Path) -> None:
    installed = Installed(tmp_path / "installed", "wheel")
    _, guard = _run_folder(tmp_path)
    shutil.rmtree(installed.site / "pytest_jitguard")
    installed.run(**guard)
    (installed.site / "_jitguard_start.py").unlink()
    shutil.rmtree(installed.site / "__pycache__", ignore_errors=True)
    installed.run(**guard)


def test_the_start_up_line_loads_nothing_when_no_guard_is_on(tmp_path: Path) -> None:
    """Every process of the environment runs the line: it looks at one variable, whatever Python does besides."""
    line = (ROOT / "pytest_jitguard.pth").read_text()
    assert line.startswith("import os;")
    assert line.count("\n") == 1
    show = f"import sys; before = set(sys.modules); exec({line!r}); print(sorted(set(sys.modules) - before))"
    plain = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run([sys.executable, "-c", show], env=plain, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_line_for_newer_pythons_names_the_same_function() -> None:
    spec = importlib.util.spec_from_file_location("_jitguard_start", ROOT / "_jitguard_start.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    name, _, function = (ROOT / "pytest_jitguard.start").read_text().strip().partition(":")
    assert (name, callable(getattr(module, function))) == ("_jitguard_start", True)
