"""The layer, and `serve`, through which a request of any size goes."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch.nn.functional import silu

from examples.wna16_moe.kernels import default_block_config, moe_gemm
from examples.wna16_moe.packing import PackedWeight, dequantize, random_weight, to_device
from examples.wna16_moe.routing import align_to_blocks, route

DEVICE = "cuda"
SMALL_BATCH_SLOTS_PER_EXPERT = 6
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class LayerConfig:
    """The sizes of a layer."""

    experts: int = 8
    top_k: int = 2
    hidden: int = 512
    intermediate: int = 256
    group_size: int = 128
    has_zeros: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k={self.top_k} must be between 1 and experts={self.experts}")
        if self.group_size not in GROUP_SIZES:
            raise ValueError(f"group_size={self.group_size} must be one of {GROUP_SIZES}")
        if self.hidden % self.group_size or self.intermediate % self.group_size:
            raise ValueError(f"group_size={self.group_size} must divide {self.hidden=} and {self.intermediate=}")

    def takes_small_batch_path(self, tokens: int) -> bool:
        """Whether a batch is small enough for the path without Triton.

        Both GEMMs have `tokens * top_k` slots, so one decision holds for the two of them.
        """
        return tokens * self.top_k / self.experts <= SMALL_BATCH_SLOTS_PER_EXPERT


class WNA16MoE:
    """Mixture of experts with int4 weights and 16-bit activations: gate and up projection, SiLU, down projection.

    Weights are random, from `seed`. `token_scalars_specialized=False` selects the kernel that is compiled once per
    block size instead of once per divisibility of the batch's scalars.
    """

    def __init__(
        self,
        config: LayerConfig | None = None,
        *,
        device: torch.device | str = DEVICE,
        dtype: torch.dtype = torch.float16,
        seed: int = 0,
        token_scalars_specialized: bool = True,
    ) -> None:
        self.config = config = config or LayerConfig()
        self.dtype = dtype
        self.token_scalars_specialized = token_scalars_specialized
        generator = torch.Generator().manual_seed(seed)

        def weight(outputs: int, inputs: int) -> PackedWeight:
            drawn = random_weight(
                config.experts,
                outputs,
                inputs,
                group_size=config.group_size,
                has_zeros=config.has_zeros,
                dtype=dtype,
                generator=generator,
            )
            return to_device(drawn, device)

        self.router = torch.randn((config.experts, config.hidden), generator=generator).to(device)
        self.w13 = weight(2 * config.intermediate, config.hidden)  # gate rows first, then up rows
        self.w2 = weight(config.hidden, config.intermediate)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run the layer on [tokens, hidden]."""
        weights, experts = route(hidden, self.router, self.config.top_k)
        if self.config.takes_small_batch_path(hidden.shape[0]):
            return self._small_batch(hidden, weights, experts)
        return self._grouped_gemms(hidden, weights, experts)

    def _small_batch(self, hidden: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """Run every expert on every token, and keep what was routed. Stands for a precompiled operator: no JIT."""
        activated = silu_and_mul(torch.einsum("mk,enk->emn", hidden, dequantize(self.w13)))
        per_expert = torch.einsum("emn,ekn->emk", activated, dequantize(self.w2))
        shares = torch.zeros((hidden.shape[0], self.config.experts), dtype=weights.dtype, device=hidden.device)
        shares.scatter_(1, experts, weights)
        return torch.einsum("me,emk->mk", shares, per_expert.float()).to(self.dtype)

    def _grouped_gemms(self, hidden: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """Run each expert on its own tokens, through the Triton kernel."""
        tokens, top_k = experts.shape
        block_config = default_block_config(tokens)
        blocks = align_to_blocks(experts, self.config.experts, block_config.m)
        gemm = functools.partial(
            moe_gemm,
            blocks=blocks,
            routed_weights=weights,
            config=block_config,
            specialize_token_scalars=self.token_scalars_specialized,
        )
        activated = silu_and_mul(gemm(hidden, self.w13, top_k=top_k, multiply_by_weight=False))
        # The rows are slots by now, one expert each.
        down = gemm(activated, self.w2, top_k=1, multiply_by_weight=True)
        return down.view(tokens, top_k, self.config.hidden).sum(dim=1)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Activate the first half of the last dimension and multiply it by the second half."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


@functools.cache
def default_layer() -> WNA16MoE:
    """Build the layer that `serve` uses, at the first request."""
    return WNA16MoE()


def request(tokens: int) -> torch.Tensor:
    """Make the activations of a request: the same ones for the same size, whatever the device."""
    generator = torch.Generator().manual_seed(tokens)
    layer = default_layer()
    return torch.randn((tokens, layer.config.hidden), generator=generator).to(DEVICE, layer.dtype)


def serve(tokens: int) -> torch.Tensor:
    """Serve a request of any size."""
    return default_layer()(request(tokens))
