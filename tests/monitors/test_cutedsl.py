"""The CuTe DSL's monitor against a stand-in of the library (tests/fakes/cutlass); tests/heavy has the real one."""

from __future__ import annotations

import pytest
from cutedsl_scenes import CuteDslContract, CuteDslScenes


@pytest.mark.tells("cutedsl", "uninstall", "no_frames", "blind", "failed")
class TestContract(CuteDslContract):
    pass


class TestScenes(CuteDslScenes):
    pass
