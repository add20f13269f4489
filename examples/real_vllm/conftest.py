"""A real vLLM under the guard: a tiny random int4 mixture of experts, and requests that its own warmup does not cover.

Needs an NVIDIA GPU and vLLM (run with 0.21.0). No weights are downloaded: the model is a config file, `load_format` is
`dummy`. The engine runs in a process of its own, behind `LLM(...)` in test_llm.py and behind vLLM's OpenAI server in
test_http.py:

    pytest --jitguard --jitguard-cache=cold examples/real_vllm

Both fail as they are: vLLM's startup does not compile what some of these requests need. Save the entries that the
report advises in a file, name it in WARMUP_ENTRIES, and the same tests pass: the entries run in the engine's process,
through vLLM's own door for that (`worker_extension_cls`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM and an NVIDIA GPU")

CONFIG: dict[str, Any] = {
    **{"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "torch_dtype": "float16"},
    **{"hidden_size": 512, "intermediate_size": 512, "moe_intermediate_size": 256, "num_hidden_layers": 2},
    **{"shared_expert_intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2, "num_experts": 8},
    **{"num_experts_per_tok": 2, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
    **{"vocab_size": 32000, "max_position_embeddings": 16384, "rms_norm_eps": 1e-6, "rope_theta": 10000.0},
    **{"hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2},
    "quantization_config": {
        **{"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True, "lm_head": False},
    },
}

LENGTHS = (8, 16, 500, 501, 44, 28, 25, 4096, 4097)
"""Prompt lengths in tokens, in the order in which they are sent; each is sent twice."""

REQUESTS = [pytest.param(length, id=f"{length}-{time}") for length in LENGTHS for time in ("first", "again")]

EXTENSION = "examples.real_vllm.extension.WarmupExtension"


def prompt(length: int, number: int) -> list[int]:
    """Return token ids that differ from the first on: a prefix-cache hit would shrink the prefill and hide compiles."""
    return [number + 3] + [(7 * position) % 31000 + 3 for position in range(length - 1)]


def advised_entries() -> str:
    """Return the warmup entries that an earlier report advised, empty if there are none."""
    path = os.environ.get("WARMUP_ENTRIES", "")
    return Path(path).read_text(encoding="utf-8") if path else ""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a model that has no weights; return its folder."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)
