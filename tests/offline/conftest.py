"""A test that teaches this process the offline GPU takes it out again; the fixture proves that nothing stayed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pytest_jitguard.offline import OfflineTarget, parse_target

Install = Callable[..., OfflineTarget]


@pytest.fixture(scope="session")
def triton_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One disk cache for the folder: a kernel that two tests launch is compiled once."""
    return tmp_path_factory.mktemp("triton-cache")


@pytest.fixture
def offline(triton_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install an offline target by its name; it is gone, without a trace, when the test ends."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(triton_cache))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns while this is not said
    installed: list[OfflineTarget] = []

    def install(target: str = "cuda:90", placement: Any = "cpu") -> OfflineTarget:
        installed.append(OfflineTarget(parse_target(target), placement))
        installed[-1].install_triton()
        installed[-1].install_torch()
        return installed[-1]

    before = snapshot()
    try:
        yield install
    finally:
        for target in reversed(installed):
            target.uninstall()
    assert changed(before, snapshot()) == []


def snapshot() -> dict[str, Any]:
    """Return every attribute that an offline target may replace."""
    import torch
    import triton
    from torch.autograd.function import BackwardCFunction
    from torch.utils._device import DeviceContext
    from triton.backends import backends

    owners: dict[str, Any] = {
        "torch.cuda": torch.cuda,
        "torch.accelerator": torch.accelerator,
        "torch.version": torch.version,
        "autocast": torch.amp.autocast_mode.autocast,
        "DeviceContext": DeviceContext,
        "BackwardCFunction": BackwardCFunction,
        "Library": torch.library.Library,
        **{f"driver of {name}": backend.driver for name, backend in backends.items()},
    }
    for name in ("memory", "random", "streams", "graphs", "nvtx"):
        owners[f"torch.cuda.{name}"] = getattr(torch.cuda, name)
    found = {f"{title}.{name}": value for title, owner in owners.items() for name, value in vars(owner).items()}
    found["torch.load"], found["torch.Generator"] = torch.load, torch.Generator
    found["Thread.start"] = threading.Thread.start
    found["driver._active"] = triton.runtime.driver._active
    found["driver._default"] = triton.runtime.driver._default
    found["modes"] = tuple(id(mode) for mode in torch.overrides._get_current_function_mode_stack())
    return found


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names whose value is another object now, or that came or went."""
    ignored = {"__annotations__"}
    names = [name for name in before.keys() | after.keys() if name.rpartition(".")[2] not in ignored]
    return sorted(name for name in names if not _same(before.get(name, ...), after.get(name, ...)))


def _same(one: Any, other: Any) -> bool:
    came_by_import = one is ... and isinstance(other, ModuleType)
    return one is other or came_by_import or (isinstance(one, tuple) and one == other)
