"""What is nobody's launch site: the files of a library, and not what lies beside them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pytest_jitguard.monitors._frames import hidden_folders


def library(folder: Path, monkeypatch: pytest.MonkeyPatch, file: str, name: str) -> ModuleType:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    monkeypatch.syspath_prepend(folder)
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)
    return module


def is_hidden(module: ModuleType, path: Path) -> bool:
    return str(path).startswith(hidden_folders(module))


@pytest.mark.parametrize(
    ("file", "name", "hidden"),
    [
        ("frames_alone.py", "frames_alone", "frames_alone.py"),
        ("frames_package/__init__.py", "frames_package", "frames_package/compiler.py"),
        ("frames_namespace/part.py", "frames_namespace", "frames_namespace/part.py"),
    ],
    ids=["module", "package", "namespace"],
)
def test_a_library_hides_its_own_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, name: str, hidden: str
) -> None:
    module = library(tmp_path, monkeypatch, file, name)
    assert is_hidden(module, tmp_path / hidden)
    assert not is_hidden(module, tmp_path / "test_serving.py")
    assert not is_hidden(module, tmp_path / f"{name}_of_another.py")
