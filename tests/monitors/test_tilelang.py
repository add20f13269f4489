"""TileLang's monitor against a stand-in of the library (tests/fakes/tilelang); tests/heavy has the real one."""

from __future__ import annotations

import pytest
from tilelang_scenes import TileLangContract, TileLangScenes


@pytest.mark.tells("tilelang", "uninstall", "no_frames", "blind", "failed", "threads")
class TestContract(TileLangContract):
    pass


class TestScenes(TileLangScenes):
    pass
