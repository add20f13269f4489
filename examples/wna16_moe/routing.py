"""Which token goes to which expert, laid out so that each block of a GEMM works for one expert only.

Torch operations of fixed shapes only: nothing here waits for the device, launches a Triton kernel, or needs real
values, so it also runs where tensors are CPU stand-ins or meta tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ExpertBlocks:
    """Slots (token * top_k + choice) sorted by expert, each expert's share padded to whole blocks."""

    slots: torch.Tensor  # int32 [capacity]; padding holds the number of slots, which no slot has
    block_experts: torch.Tensor  # int32 [blocks]: the expert that each block works for
    padded_total: torch.Tensor  # int32 [1]: how much of `slots` is in use; known to the device only


def route(hidden: torch.Tensor, router: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose `top_k` experts for each token: float32 weights that sum to 1, and expert ids, both [M, top_k].

    float32 whatever the activations are: the pointer's dtype is part of the kernel's key.
    """
    weights = torch.softmax(hidden.float() @ router.T, dim=-1)
    weights, experts = torch.topk(weights, top_k, dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True), experts


def slot_capacity(num_slots: int, num_experts: int, block_size: int) -> int:
    """Length of the slot buffer that is enough for any routing.

    The host does not know how the slots fall on the experts, so it allows each expert that can have one a nearly
    empty last block.
    """
    worst = num_slots + num_experts * (block_size - 1)
    return min(worst, num_slots * block_size) if num_slots < num_experts else worst


def align_to_blocks(experts: torch.Tensor, num_experts: int, block_size: int) -> ExpertBlocks:
    """Sort the slots of `experts` [M, top_k] by expert and pad each expert's share to a multiple of `block_size`."""
    flat = experts.reshape(-1)
    num_slots, device = flat.numel(), flat.device
    capacity = slot_capacity(num_slots, num_experts, block_size)

    # Not bincount: its result's length depends on the data, which costs a wait for the device.
    counts = torch.zeros(num_experts, dtype=torch.int64, device=device).scatter_add_(0, flat, torch.ones_like(flat))
    padded = (counts + block_size - 1) // block_size * block_size
    ends = padded.cumsum(0)

    order = torch.argsort(flat, stable=True)
    by_expert = flat[order]
    rank_in_expert = torch.arange(num_slots, device=device) - (counts.cumsum(0) - counts)[by_expert]
    positions = (ends - padded)[by_expert] + rank_in_expert
    slots = torch.full((capacity,), num_slots, dtype=torch.int32, device=device)
    slots.scatter_(0, positions, order.to(torch.int32))

    block_starts = torch.arange(0, capacity, block_size, device=device)
    block_experts = (block_starts.unsqueeze(1) >= ends).sum(1).clamp(max=num_experts - 1)
    return ExpertBlocks(slots, block_experts.to(torch.int32), ends[-1:].to(torch.int32))
