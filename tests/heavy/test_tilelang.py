"""TileLang's monitor against the real library: C for this machine, and the compile side of CUDA where nvcc is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

sys.path.append(str(Path(__file__).parent.parent / "monitors"))

from scenes import Stage
from tilelang_scenes import TileLangContract, TileLangScenes

from tests.heavy.toolkit import cuda_home

pytestmark = pytest.mark.heavy
pytest.importorskip("torch")


@pytest.mark.tells("tilelang", "uninstall", "no_frames", "blind", "failed", "threads")
class TestContract(TileLangContract):
    fakes = False
    requires = ("tilelang",)
    not_there: ClassVar[Mapping[str, str]] = {
        **TileLangContract.not_there,
        "neighbour": "shown with the stand-in: it takes twenty-four compiles, of a second each here",
    }


class TestScenes(TileLangScenes):
    fakes = False

    @pytest.mark.tells("tilelang", "compile", "uninstall")
    def test_the_numbers_are_right_with_the_monitor_and_without(self, stage: Stage) -> None:
        told = self.play(
            stage,
            """
            import torch
            x = torch.arange(16.0)
            told["watched"] = programs.add(16)(x, x).tolist()
            say("compiled")
            monitors.disarm()
            told["unwatched"] = programs.add(16)(x, x).tolist()
            kernels = importlib.import_module("tilelang.jit.kernel")
            told["left"] = hasattr(kernels.JITKernel._compile_and_create_adapter, "__wrapped__")
            monitors.arm()
            """,
        )
        assert told["watched"] == told["unwatched"] == [2.0 * i for i in range(16)]
        assert told.kinds("compiled") == ["compile add.main"]
        assert told["left"] is False

    @pytest.mark.tells("tilelang", "compile", "cache_load", "key")
    def test_cuda_is_compiled_and_loaded_from_disk_without_a_gpu(self, stage: Stage) -> None:
        home = cuda_home()
        if home is None:
            pytest.skip("there is no nvcc")
        body = """
        target = {"kind": "cuda", "arch": "sm_90"}
        compile_program(programs.add.get_tir(128), out_idx=[-1], target=target)
        say("cuda")
        """
        first, second = (self.play(stage, body, CUDA_HOME=str(home)) for _ in range(2))
        assert first.kinds("cuda") == ["compile main"]
        assert second.kinds("cuda") == ["cache_load main"]
        assert "target=cuda sm_90" in first.one("cuda")["key"]
