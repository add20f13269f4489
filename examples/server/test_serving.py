"""Guarded requests to a real server: some compile in a rank, unless its warmup covers them.

    pytest --jitguard --jitguard-offline=h100 examples/server                         red
    EXAMPLE_WARMUP=full pytest --jitguard --jitguard-offline=h100 examples/server     green

The environment variable EXAMPLE_WARMUP says how the server warms up: `basic` (the default), a profile run and a few
decode sizes as servers usually do it, or `full`, the same and what it leaves out. Leave `--jitguard-offline` out where
there is a GPU. To be run in the repository's root: the server is started with `python -m examples.server`.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any

import pytest

from examples.server.prompts import REQUESTS, find_prompt
from examples.server.protocol import MODEL
from examples.server.vocabulary import decode

COMPLETION = 4


@pytest.fixture(scope="session")
def server(jitguard_server: Any) -> Any:
    """The server, started once and warm."""
    command = [sys.executable, "-m", "examples.server", "--port", "{port}", "--log-steps"]
    return jitguard_server([*command, "--warmup", os.environ.get("EXAMPLE_WARMUP", "basic")], name="example")


def complete(url: str, prompt: str) -> Any:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": COMPLETION}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@pytest.mark.jitguard
@pytest.mark.parametrize("name", REQUESTS)
def test_request_is_served_without_compiling(server: Any, name: str) -> None:
    length, classes = REQUESTS[name]

    answer = complete(server.url, decode(find_prompt(length, classes)))

    assert answer["usage"]["prompt_tokens"] == length
    assert len(answer["choices"][0]["text"]) == COMPLETION
