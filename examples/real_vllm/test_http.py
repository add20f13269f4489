"""vLLM's OpenAI server, driven over HTTP with prompts of token ids. One guarded test for each request."""

from __future__ import annotations

import itertools
import json
import sys
import urllib.request
from typing import Any

import pytest

from examples.real_vllm.conftest import EXTENSION, REQUESTS, advised_entries, prompt

numbers = itertools.count()

ARGUMENTS = [
    *("--served-model-name", "m", "--skip-tokenizer-init", "--load-format", "dummy", "--quantization", "moe_wna16"),
    *("--enforce-eager", "--max-model-len", "8192", "--max-num-batched-tokens", "8192", "--max-num-seqs", "64"),
    *("--gpu-memory-utilization", "0.3", "--dtype", "float16", "--attention-backend", "TRITON_ATTN"),
    *("--worker-extension-cls", EXTENSION, "--host", "127.0.0.1", "--port", "{port}"),
]


def post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.loads(response.read() or b"null")


def warm_up(server: Any) -> None:
    """Run the advised entries in the workers, through an endpoint that vLLM has for development."""
    if entries := advised_entries():
        post(f"{server.url}/collective_rpc", {"method": "run_warmup_entries", "args": [entries]})


@pytest.fixture(scope="session")
def server(jitguard_server: Any, model: str) -> Any:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *ARGUMENTS]
    environment = {"VLLM_SERVER_DEV_MODE": "1"}
    return jitguard_server(command, name="vllm", kind="vllm", environment=environment, warmup=warm_up, timeout=240)


@pytest.mark.jitguard
@pytest.mark.parametrize("length", REQUESTS)
def test_request(server: Any, length: int) -> None:
    body = {"model": "m", "prompt": prompt(length, next(numbers)), "max_tokens": 4, "temperature": 0}
    answer = post(
        f"{server.url}/v1/completions", {**body, "ignore_eos": True, "detokenize": False, "return_token_ids": True}
    )
    assert answer["usage"]["completion_tokens"] == 4
