"""DeepGEMM's cache folders as the net sees them: what is new, what was loaded, and what a look costs."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_jitguard.monitors import _deep_gemm_roots as folders_module
from pytest_jitguard.monitors._deep_gemm_net import Net
from pytest_jitguard.monitors._deep_gemm_roots import Folders
from pytest_jitguard.monitors._deep_gemm_spool import Spool

DIGEST = "0123456789ab"
SETTLED = 0.1


def build(root: Path, digest: str = DIGEST, committed: bool = False) -> Path:
    folder = root / "cache" / f"kernel.sm90_gemm.{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("kernel.cu", "kernel.cubin", *([".committed"] if committed else [])):
        (folder / name).write_text(digest)
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in folders_module._VARIABLES[1:]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DG_JIT_CACHE_DIR", str(tmp_path / "root"))
    return tmp_path / "root"


def new(folders: Folders) -> list[str]:
    return [entry.digest for entry in folders.look(os.environ)[0]]


def settled(root: Path) -> Folders:
    """Return folders in which nothing has happened for long enough."""
    folders = Folders(time.time())
    folders.look(os.environ)
    time.sleep(SETTLED)
    assert new(folders) == []
    return folders


def test_what_comes_in_the_same_tick_as_a_look_is_found_by_the_next(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = settled(root)
    build(root)
    stamp = folders_module._stamp(f"{root}/cache")
    monkeypatch.setattr(folders_module, "_stamp", lambda folder: stamp if folder == f"{root}/cache" else None)
    assert new(folders) == [DIGEST]
    build(root, "ab" * 6)
    assert new(folders) == ["ab" * 6]


def test_an_entry_that_was_removed_and_compiled_again_is_new(root: Path) -> None:
    build(root)
    folders = settled(root)
    for _ in range(3):
        shutil.rmtree(root / "cache")
        build(root)
        assert new(folders) == [DIGEST]
        time.sleep(SETTLED)
        assert new(folders) == []


def test_an_entry_that_gains_a_file_is_the_same(root: Path) -> None:
    folders = settled(root)
    entry = build(root)
    assert new(folders) == [DIGEST]
    (entry / ".committed").touch()
    build(root, "ab" * 6)
    assert new(folders) == ["ab" * 6]


def test_unchanged_folders_are_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(root)
    folders = settled(root)
    monkeypatch.setattr(os, "scandir", lambda folder: pytest.fail(f"{folder} was read"))
    assert new(folders) == []


def loads(net: Net, spool: Spool | None = None, **who: Any) -> list[str]:
    net.look()
    return [entry.digest for entry, _, _ in net.loads(spool, **{"is_guard": True, "is_in_use": False, **who})]


def test_loads_are_looked_for_only_where_somebody_may_load(root: Path, tmp_path: Path) -> None:
    """Of what strangers loaded before the library was imported here, nothing is taken for ours later."""
    entry = build(root, committed=True)
    (tmp_path / "spool" / "watching").mkdir(parents=True)
    (tmp_path / "spool" / "claimed").mkdir()
    spool = Spool(tmp_path / "spool")
    net = Net()
    time.sleep(SETTLED)
    (entry / ".committed").touch()
    assert loads(net, spool) == []
    time.sleep(SETTLED)
    net.used_from_now()
    assert loads(net, spool, is_in_use=True) == []
    (entry / ".committed").touch()
    assert loads(net, spool, is_in_use=True) == [DIGEST]


def test_a_guard_looks_for_the_loads_of_others_from_when_they_watch(root: Path, tmp_path: Path) -> None:
    entry = build(root, committed=True)
    (tmp_path / "spool" / "watching").mkdir(parents=True)
    (tmp_path / "spool" / "claimed").mkdir()
    spool = Spool(tmp_path / "spool")
    net = Net()
    time.sleep(SETTLED)
    (entry / ".committed").touch()
    time.sleep(SETTLED)
    spool.watch(4711, 1)
    assert loads(net, spool) == []
    (entry / ".committed").touch()
    assert loads(net, spool) == [DIGEST]
