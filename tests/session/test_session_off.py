"""Off means off: without `--jitguard` nothing of ours is loaded, patched, printed or written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_jitguard
from tests.conftest import ROOT, GuardedRun

LOADED = """
    import sys

    def pytest_unconfigure(config):
        names = sorted(n for n in sys.modules if n.startswith("pytest_jitguard") or n in ("wrapt", "filelock"))
        with open("loaded.txt", "w") as file:
            print(*names, file=file)
"""
ALLOWED = [
    "pytest_jitguard",
    "pytest_jitguard.core",
    "pytest_jitguard.core.kinds",
    "pytest_jitguard.core.settings",
    "pytest_jitguard.hookspecs",
    "pytest_jitguard.options",
    "pytest_jitguard.plugin",
]


@pytest.mark.parametrize("args", [(), ("-p", "xdist", "-n", "1"), ("--collect-only",)], ids=["plain", "xdist", "dry"])
def test_a_whole_run_loads_only_the_entry_point_and_the_table_of_settings(
    args: tuple[str, ...], guarded: GuardedRun
) -> None:
    guarded.pytester.makeconftest(LOADED)
    guarded.suite("""
        @pytest.mark.jitguard
        @pytest.mark.allow_jit("*", reason="a test")
        def test_marked(): fakejit.launch("cold")
    """)
    before = {path.name for path in guarded.path.iterdir()}
    result = guarded.run(*args, "-p", "no:cacheprovider", on=False)
    assert result.ret == 0
    assert (guarded.path / "loaded.txt").read_text().split() == ALLOWED
    assert "jitguard" not in result.stdout.str().split("\n", 1)[1].replace("--jitguard", "")
    written = {path.name for path in guarded.path.iterdir()} - before
    assert written - {"loaded.txt", "__pycache__", "stdout", "stderr"} == set()


def test_the_fixture_works_without_the_guard_and_loads_hardly_more(guarded: GuardedRun) -> None:
    guarded.pytester.makeconftest(LOADED)
    guarded.suite("""
        def test_blocks(jitguard):
            with jitguard.warmup(): fakejit.launch("a")
            with jitguard.serving("x"), jitguard.allow(reason="why"): fakejit.launch("b")
            assert list(jitguard.events) == []
    """)
    guarded.run(on=False).assert_outcomes(passed=1)
    assert (guarded.path / "loaded.txt").read_text().split() == sorted([*ALLOWED, "pytest_jitguard.fixtures"])


@pytest.mark.parametrize(
    "args",
    [("--collect-only",), ("--setup-plan",), ("--setup-only",), ("--fixtures",), ("--markers",), ("--cache-show",)],
)
def test_dry_runs_warm_up_nothing_and_arm_nothing(args: tuple[str, ...], guarded: GuardedRun) -> None:
    guarded.pytester.makepyfile(
        warm="open('warmed', 'w')\ndef up(): pass",
        conftest="""
            def pytest_unconfigure(config):
                import fakejit
                assert fakejit._build.__module__ == "fakejit" and not hasattr(fakejit._build, "__wrapped__")
                assert not config.pluginmanager.has_plugin("jitguard-guard")
        """,
    )
    guarded.suite("@pytest.mark.jitguard\ndef test_a(): pass")
    assert guarded.run("--jitguard-warmup=warm:up", *args).ret == 0
    assert not (guarded.path / "warmed").exists()
    assert not (guarded.path / "report.json").exists()


def test_setup_show_is_guarded_as_usual(guarded: GuardedRun) -> None:
    guarded.suite("@pytest.mark.jitguard\ndef test_a(): fakejit.launch('cold')")
    guarded.run("--setup-show").assert_outcomes(failed=1)


def test_after_a_run_nothing_stays_patched(guarded: GuardedRun) -> None:
    guarded.suite("@pytest.mark.jitguard\ndef test_a(): fakejit.launch('cold')")
    guarded.pytester.makepyfile(
        twice="""
            import os, pytest, fakejit

            def environment():
                return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}

            build, before = fakejit._build, environment()
            args = ["-p", "pytest_jitguard.plugin", "--jitguard-monitors=fakejit_monitor:FakeMonitor"]
            for _ in range(2):
                assert pytest.main([*args, "--jitguard", "--jitguard-cache=cold"]) == 1
                assert fakejit._build is build
                fakejit.CACHE.clear()
                assert environment() == before
            assert pytest.main(args) == 0
        """
    )
    done = subprocess.run([sys.executable, "twice.py"], cwd=guarded.path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


SUBPACKAGES = ("core", "monitors", "offline", "processes", "reporters", "warmup")
HEAVY = ("torch", "triton", "wrapt", "numpy", "xdist", "filelock")


def _loaded_by(modules: list[str]) -> set[str]:
    code = "import sys, importlib\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code, *modules]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def _modules(*folders: str) -> list[str]:
    root = Path(pytest_jitguard.__file__).parent
    paths = [path for folder in folders for path in (root / folder).glob("*.py") if path.name != "__main__.py"]
    names = [".".join(("pytest_jitguard", *path.relative_to(root).with_suffix("").parts)) for path in sorted(paths)]
    return [name.removesuffix(".__init__") for name in names]


def test_the_subpackages_import_neither_pytest_nor_any_library() -> None:
    loaded = _loaded_by(_modules(*SUBPACKAGES))
    assert not loaded & {"pytest", "_pytest", *(set(HEAVY) - {"filelock"})}


def test_core_monitors_and_processes_import_the_standard_library_only() -> None:
    loaded = _loaded_by(_modules("core", "monitors", "processes"))
    foreign = {name for name in loaded if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert foreign - {"pytest_jitguard"} <= _loaded_by([]), "as many as an empty process loads"


def test_the_top_level_modules_import_pytest_but_no_library() -> None:
    loaded = _loaded_by(_modules(""))
    assert "pytest" in loaded
    assert not loaded & (set(HEAVY) - {"filelock"})
