"""Every test in here needs a GPU."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def real_gpu() -> None:
    """Import torch before `pytester` takes a picture of the modules: it cannot be imported twice."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU, and torch sees none")
