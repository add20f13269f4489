"""What is built, what it holds, and that it works where only it and pytest are installed."""

from __future__ import annotations

import email
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import pytest_jitguard

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PACKAGE = "pytest_jitguard"
START_UP = {"_jitguard_start.py", "pytest_jitguard.pth", "pytest_jitguard.start"}

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("hatchling"), reason="needs hatchling")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build wheel and sdist from a copy, as `python -m build --no-isolation` does; return both."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    left_out = shutil.ignore_patterns(".git", ".venvs", ".*_cache", "__pycache__", "dist", "build")
    shutil.copytree(ROOT, source, ignore=left_out)
    dist = folder / "dist"
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(dist)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    return wheel, sdist


def test_the_wheel_holds_the_package_whole_and_nothing_else(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[0]).namelist()
    info = f"{PACKAGE}-{pytest_jitguard.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {PACKAGE, info, *START_UP}
    here = {
        str(path.relative_to(ROOT)) for path in (ROOT / PACKAGE).rglob("*") if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in names if name.startswith(f"{PACKAGE}/")} == here
    assert {f"{PACKAGE}/py.typed", f"{PACKAGE}/reporters/schema.json"} <= here


def test_the_metadata_says_what_users_rely_on(built: tuple[Path, Path]) -> None:
    wheel = zipfile.ZipFile(built[0])
    info = f"{PACKAGE}-{pytest_jitguard.__version__}.dist-info"
    metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert metadata["Name"] == "pytest-jitguard"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "MIT"
    needed = {re.split(r"\W", line)[0] for line in metadata.get_all("Requires-Dist", []) if "extra" not in line}
    assert needed == {"pytest", "wrapt", "filelock", "tomli"}
    assert "Framework :: Pytest" in metadata.get_all("Classifier", [])
    points = wheel.read(f"{info}/entry_points.txt").decode()
    assert points.split() == [
        *("[pytest11]", "jitguard", "=", "pytest_jitguard.plugin"),
        *("[vllm.general_plugins]", "jitguard", "=", "_jitguard_start:start"),
    ]
    assert any(name.endswith("LICENSE") for name in wheel.namelist())


def test_the_sdist_holds_what_is_needed_to_test_it(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "README.md", "LICENSE", "conftest.py", "check", "tools/venv", "tests/conftest.py"}
    assert needed <= names
    assert not [name for name in names if ".venvs" in name or name.endswith(".pyc")]


def test_each_table_of_the_build_says_what_it_is_for_and_nothing_else() -> None:
    """Hatchling ignores keys that it does not know, and then guesses what belongs into the wheel."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    assert tables == {
        "version": {"path": f"{PACKAGE}/__init__.py"},
        "build": {
            "targets": {
                "wheel": {"packages": [PACKAGE], "force-include": {name: name for name in START_UP}},
                "sdist": {"exclude": ["/.github"]},
            }
        },
    }


def _install(wheel: Path, folder: Path, *, isolated: bool) -> Path:
    """Install the wheel into a fresh environment; return its Python.

    Unless isolated, it sees the packages of the environment that runs this test, so that nothing is downloaded.
    """
    venv.EnvBuilder(with_pip=isolated, symlinks=True).create(folder)
    python = folder / "bin" / "python"
    if isolated:
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)]
    else:
        pip = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps", "--no-index"]
        pip += ["--disable-pip-version-check", str(wheel)]
        site = next(folder.glob("lib/python*/site-packages"))
        others = [path for path in map(Path, sys.path) if path.name == "site-packages"]
        # Paths only, without their own .pth files: an editable install of this project must not show through.
        (site / "others.pth").write_text("".join(f"{path}\n" for path in others))
    subprocess.run(pip, check=True, capture_output=True)
    return python


SUITE = """
import pytest, pytest_jitguard

def test_installed(): assert "site-packages" in pytest_jitguard.__file__

@pytest.mark.jitguard
def test_guarded(jitguard): assert jitguard.enabled
"""


def _run(python: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "JITGUARD"))}
    command = [str(python), "-P", "-m", "pytest"] if sys.version_info >= (3, 11) else [str(python), "-m", "pytest"]
    return subprocess.run([*command, *args], cwd=folder, env=env, capture_output=True, text=True, check=False)


def _check_installed(python: Path, folder: Path) -> None:
    (folder / "test_suite.py").write_text(SUITE)
    waive = "--jitguard-waive=nothing-watched"
    done = _run(python, folder, "--jitguard", waive, "--jitguard-json=report.json", "--strict-markers", "-Werror")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"jitguard-{pytest_jitguard.__version__}" in done.stdout, "among the plugins that pytest lists"
    assert json.loads((folder / "report.json").read_text())["verdict"] == "passed"
    off = _run(python, folder, "-p", "no:jitguard", "--markers")
    assert off.returncode == 0
    assert "jitguard" not in off.stdout, "the entry point's name switches it off"
    assert _run(python, folder, "-p", "no:jitguard", "--jitguard").returncode == pytest.ExitCode.USAGE_ERROR


def test_the_installed_wheel_works_and_its_uninstall_leaves_nothing(built: tuple[Path, Path], tmp_path: Path) -> None:
    if not any(importlib.metadata.distributions(name="pip")):  # not find_spec, see test_start_up
        pytest.skip("needs pip")
    python = _install(built[0], tmp_path / "venv", isolated=False)
    _check_installed(python, tmp_path)
    pip = [sys.executable, "-m", "pip", f"--python={python}", "uninstall", "--yes", "--quiet", "pytest-jitguard"]
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    subprocess.run(pip, check=True, capture_output=True)
    assert _left(site) == []


def _left(site: Path) -> list[Path]:
    """Return the files of this project. pytest's own bytecode of a plugin that it has run stays, whosever it is."""
    files = (path for path in site.rglob("*") if path.is_file() and "jitguard" in str(path.relative_to(site)).lower())
    return [path for path in files if not path.match(f"*-pytest-{pytest.__version__}.pyc")]


@pytest.mark.soak
def test_the_wheel_brings_what_it_needs_into_an_empty_environment(built: tuple[Path, Path], tmp_path: Path) -> None:
    python = _install(built[0], tmp_path / "venv", isolated=True)
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    _check_installed(python, tmp_path)
    subprocess.run([str(python), "-m", "pip", "uninstall", "--yes", "--quiet", "pytest-jitguard"], check=True)
    assert _left(site) == []
    assert "jitguard" not in _run(python, tmp_path, "--markers").stdout
