"""What the layer should compute: dense float32 weights, plain torch, nothing shared with the layer but its tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
from torch.nn.functional import silu

if TYPE_CHECKING:
    from examples.wna16_moe.layer import WNA16MoE
    from examples.wna16_moe.packing import PackedWeight

# The layer rounds weights and activations to 16 bits between its steps; outputs are mostly below 1, and below 5.
TOLERANCE = {"rtol": 1e-2, "atol": 5e-3}


def kernels_execute() -> bool:
    """Tell whether launched kernels run, so that outputs mean something (jitguard's offline target only compiles)."""
    return type(triton.runtime.driver.active).__name__ != "OfflineDriver"


def dense_weight(weight: PackedWeight) -> torch.Tensor:
    """Spell a packed weight out as float32 [E,N,K]."""
    experts, outputs, inputs = weight.shape
    values = torch.empty((experts, outputs, inputs), device=weight.packed.device)
    values[:, :, 0::2] = (weight.packed % 16).float()
    values[:, :, 1::2] = (weight.packed // 16).float()
    zeros = torch.full(weight.scales.shape, 8.0, device=weight.packed.device)
    if weight.zeros is not None:
        zeros[:, 0::2] = (weight.zeros % 16).float()
        zeros[:, 1::2] = (weight.zeros // 16).float()
    scales = weight.scales.float()
    spread = [tensor.repeat_interleave(weight.group_size, dim=2) for tensor in (zeros, scales)]
    return (values - spread[0]) * spread[1]


def reference_output(layer: WNA16MoE, hidden: torch.Tensor) -> torch.Tensor:
    """Compute the layer's output in float32, expert by expert."""
    hidden = hidden.float()
    w13, w2 = dense_weight(layer.w13), dense_weight(layer.w2)
    logits, chosen = torch.topk(hidden @ layer.router.T, layer.config.top_k, dim=1)
    weights = torch.softmax(logits, dim=1)
    output = torch.zeros_like(hidden)
    for expert in range(layer.config.experts):
        share = (weights * (chosen == expert)).sum(dim=1, keepdim=True)
        gate, up = (hidden @ w13[expert].T).chunk(2, dim=1)
        output += share * ((silu(gate) * up) @ w2[expert].T)
    return output
