"""vLLM as a library: `LLM(...)`, with its engine in a process of its own. One guarded test for each request."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from examples.real_vllm.conftest import EXTENSION, REQUESTS, advised_entries, prompt

numbers = itertools.count()


@pytest.fixture(scope="session")
def llm(model: str) -> Iterator[Any]:
    """Start the engine; what it compiles until it is ready is warmup."""
    from vllm import LLM

    llm = LLM(
        model=model,
        **{"skip_tokenizer_init": True, "load_format": "dummy", "quantization": "moe_wna16", "dtype": "float16"},
        **{"enforce_eager": True, "attention_backend": "TRITON_ATTN", "gpu_memory_utilization": 0.3},
        **{"max_model_len": 8192, "max_num_batched_tokens": 8192, "max_num_seqs": 64},
        worker_extension_cls=EXTENSION,
    )
    if entries := advised_entries():
        llm.collective_rpc("run_warmup_entries", args=(entries,))
    yield llm
    llm.llm_engine.engine_core.shutdown()


@pytest.mark.jitguard
@pytest.mark.parametrize("length", REQUESTS)
def test_request(llm: Any, length: int) -> None:
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=4, temperature=0.0, detokenize=False, ignore_eos=True)
    (answer,) = llm.generate([{"prompt_token_ids": prompt(length, next(numbers))}], params, use_tqdm=False)
    assert len(answer.outputs[0].token_ids) == 4
