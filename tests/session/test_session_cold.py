"""A cold start: every known cache root in a fresh folder before the first import, for all processes, then gone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from pytest_jitguard.processes.caches import CACHE_ROOTS
from tests.conftest import GuardedRun

SEEN = """
    import json, os, sys
    from pytest_jitguard.processes.caches import CACHE_ROOTS

    # While conftests are imported, which is when a library may be imported first.
    SEEN = {name: os.environ.get(name) for name in CACHE_ROOTS}
    EMPTY = all(value and os.path.isdir(value) and not os.listdir(value) for value in SEEN.values())

    def pytest_sessionstart(session):
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        with open(f"seen-{worker}.json", "w") as file:
            json.dump({"roots": SEEN, "empty": EMPTY}, file)
"""
SUITE = """
    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", [1, 2])
    def test_clean(n): pass
"""


@pytest.fixture
def cold(guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch) -> GuardedRun:
    for variable in CACHE_ROOTS:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(guarded.path / "mine"))
    guarded.pytester.makeconftest(SEEN)
    guarded.suite(SUITE)
    return guarded


def seen(run: GuardedRun) -> dict[str, dict[str, str | None]]:
    files = sorted(run.path.glob("seen-*.json"))
    return {file.stem.partition("-")[2]: json.loads(file.read_text())["roots"] for file in files}


def test_every_root_is_fresh_before_the_first_import_and_gone_afterwards(cold: GuardedRun) -> None:
    result = cold.run("--jitguard-cache=cold")
    assert result.ret == 0
    roots = seen(cold)["main"]
    folder = Path(str(roots["TRITON_CACHE_DIR"])).parent
    assert folder.name.startswith("jitguard-cold-")
    for variable, name in CACHE_ROOTS.items():
        assert roots[variable] == str(folder / name)
    assert not folder.exists()
    assert cold.report["cache"] == "cold"
    assert cold.report["environment"]["cache_folder"] == str(folder / "triton")
    result.stdout.fnmatch_lines(["jitguard *cache cold;*", "compile caches cold*"])


def test_kept_caches_are_left_alone_and_the_report_says_so(cold: GuardedRun) -> None:
    result = cold.run()
    roots = seen(cold)["main"]
    assert roots.pop("TRITON_CACHE_DIR") == str(cold.path / "mine")
    assert set(roots.values()) == {None}
    assert cold.report["cache"] == "keep"
    assert cold.report["environment"]["cache_folder"] is None
    result.stdout.fnmatch_lines(["jitguard *cache keep;*", "compile caches kept from earlier runs*"])


def test_workers_share_the_folder_of_their_controller(cold: GuardedRun) -> None:
    pytest.importorskip("xdist")
    assert cold.run("--jitguard-cache=cold", "-p", "xdist", "-n", "2").ret == 0
    roots = seen(cold)
    assert set(roots) == {"main", "gw0", "gw1"}
    assert roots["main"] == roots["gw0"] == roots["gw1"]
    assert not Path(str(roots["gw0"]["TRITON_CACHE_DIR"])).exists()


def test_a_pytest_that_a_workers_test_starts_has_a_folder_of_its_own(cold: GuardedRun) -> None:
    pytest.importorskip("xdist")
    cold.suite("""
        import os, subprocess, sys

        @pytest.mark.jitguard
        def test_nested(tmp_path):
            tests = "import os\\ndef test_inner(): open('inner', 'w').write(os.environ['TRITON_CACHE_DIR'])"
            (tmp_path / "test_inner.py").write_text(tests)
            command = [sys.executable, "-m", "pytest", "-p", "pytest_jitguard.plugin", "--jitguard"]
            options = ["--jitguard-cache=cold", "--jitguard-waive=nothing-guarded", "test_inner.py"]
            assert subprocess.run([*command, *options], cwd=tmp_path).returncode == 0
            assert (tmp_path / "inner").read_text() != os.environ["TRITON_CACHE_DIR"]
            assert not os.path.exists((tmp_path / "inner").read_text())
    """)
    result = cold.run("--jitguard-cache=cold", "-p", "xdist", "-n", "1")
    result.assert_outcomes(passed=1)


def test_a_conftest_sees_the_offline_gpu_while_it_is_imported(guarded: GuardedRun) -> None:
    if not all(importlib.util.find_spec(name) for name in ("torch", "triton")):
        pytest.skip("needs torch and Triton")
    guarded.pytester.makeconftest("import torch\nHAS_GPU = torch.cuda.is_available()\nassert HAS_GPU")
    guarded.suite("@pytest.mark.jitguard\ndef test_a(): pass")
    guarded.run("--jitguard-offline=h100").assert_outcomes(passed=1)
