"""A real HTTP server for each test of the driver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.traffic.completions_app import CompletionsApp, serving


@pytest.fixture
def app() -> CompletionsApp:
    return CompletionsApp()


@pytest.fixture
def url(app: CompletionsApp) -> Iterator[str]:
    pytest.importorskip("httpx")
    with serving(app) as address:
        yield address
