"""The fork server that the tests of the Triton monitor run in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from forks import ForkServer


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """One server for the folder; each test is a fork of it."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    server = ForkServer(tmp_path_factory.mktemp("forks"))
    try:
        yield server
    finally:
        server.stop()
