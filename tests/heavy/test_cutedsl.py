"""The CuTe DSL's monitor against the real library, which compiles for a GPU without having one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "monitors"))

from cutedsl_scenes import CuteDslContract, CuteDslScenes

pytestmark = pytest.mark.heavy
pytest.importorskip("nvidia_cutlass_dsl")


@pytest.mark.tells("cutedsl", "uninstall", "no_frames", "blind", "failed")
class TestContract(CuteDslContract):
    fakes = False
    requires = ("cutlass.cute",)


class TestScenes(CuteDslScenes):
    fakes = False
