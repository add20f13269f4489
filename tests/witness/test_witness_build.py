"""The witness's C file: compiled once, into a folder of our own, with what the user has."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import pytest

from pytest_jitguard.witness import build
from pytest_jitguard.witness._library import Library


def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.library(tmp_path)
    made = path.stat().st_mtime_ns
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", "")
    assert build.library(tmp_path) == path
    assert path.stat().st_mtime_ns == made
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_it_compiles_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", " ".join([*build.compiler(), "-Wall", "-Wextra", "-Werror"]))
    assert Library(build.library(tmp_path)).lost() == 0


def test_another_source_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "changed.c"
    changed.write_text(build.SOURCE.read_text() + "int changed(void) { return 7; }\n")
    before = build.library(tmp_path)
    monkeypatch.setattr(build, "SOURCE", changed)
    assert build.library(tmp_path) != before
    assert ctypes.CDLL(str(build.library(tmp_path))).changed() == 7


def test_several_at_once(tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(build.library(tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert [entry.name for entry in tmp_path.iterdir()] == [found[0].name]
    Library(found[0])


def test_no_compiler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(build.BuildError, match=r"needs a C compiler, and neither \$CC nor cc, gcc or clang is on"):
        build.library(tmp_path)


def test_what_the_compiler_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.c"
    broken.write_text("int f(void) { return nonsense; }\n")
    monkeypatch.setattr(build, "SOURCE", broken)
    with pytest.raises(build.BuildError, match=r"could not build the CUPTI witness: .*nonsense"):
        build.library(tmp_path)
    assert list(tmp_path.glob("*.so")) == []


def test_a_folder_that_others_can_write_into_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert build.private_folder() == tmp_path / "cache" / "pytest-jitguard"
    build.private_folder().chmod(0o777)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert build.private_folder().parent == tmp_path
    build.private_folder().chmod(0o777)
    with pytest.raises(build.BuildError, match="needs a folder of its own"):
        build.private_folder()
