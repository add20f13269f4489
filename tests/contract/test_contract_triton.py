"""The Triton monitor keeps the contract, on an offline GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from pytest_jitguard.contract import ABSENT, HookPoint, MonitorContract
from tests.conftest import ROOT


@pytest.mark.tells(
    "triton", "compile", "hit", "cache_load", "name", "seconds", "failed", "threads", "uninstall", "blind"
)
@pytest.mark.tells("triton", "no_frames")
class TestTriton(MonitorContract):
    monitor = "pytest_jitguard.monitors.triton:TritonMonitor"
    requires = ("torch", "triton")
    not_there: ClassVar[Mapping[str, str]] = {
        "sneak_in": "shown in tests/monitors, with each of its caches",
    }

    def environment(self, folder: Path) -> Mapping[str, str]:
        path = ":".join([str(ROOT), str(ROOT / "tests" / "monitors")])
        return {"TRITON_CACHE_DIR": f"{folder}/cache", "TRITON_DEFAULT_FP_FUSION": "1", "PYTHONPATH": path}

    def library(self) -> ModuleType:
        import triton

        from pytest_jitguard.offline import OfflineTarget, parse_target

        target = OfflineTarget(parse_target("h100"))
        target.install_triton()
        target.install_torch()
        return sys.modules[triton.__name__]

    def prepare(self) -> None:
        import triton_kernels  # noqa: F401
        from triton.runtime.cache import triton_key

        triton_key()

    def compile_new(self) -> str:
        last = self.number()
        self._put(last)
        self.last = last
        return "put"

    def repeat(self) -> None:
        self._put(self.last)

    def _put(self, value: int) -> None:
        import torch
        from triton_kernels import put

        put[(1,)](torch.zeros(16, device="cuda"), 1.0, C=value)

    def fail(self) -> None:
        import torch
        from triton_kernels import wrong

        wrong[(1,)](torch.zeros(16, device="cuda"), C=1)

    def load_from_disk(self) -> None:
        self._put(-1)

    def alias(self) -> Any:
        from triton.compiler import ASTSource, compile
        from triton_kernels import loose

        from pytest_jitguard.monitors._triton_canary import _any_target

        return lambda: compile(ASTSource(loose, {"x": "*i32", "n": "i32"}, {}, {}), target=_any_target())

    def reset(self) -> None:
        import triton

        triton.knobs.compilation.reset()

    def reload(self) -> None:
        import importlib

        importlib.reload(sys.modules["triton.runtime.autotuner"])

    def hide(self) -> None:
        import triton

        triton.knobs.compilation.listener = None

    def hook_points(self) -> Iterable[HookPoint]:
        import triton

        return [HookPoint(triton.knobs.compilation, "listener", ABSENT)]
