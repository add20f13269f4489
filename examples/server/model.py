"""A language model that is small where it does not matter, and real where it does: in its mixture of experts.

Expert parallelism: each rank holds a share of the experts and works on one row for each (token, expert) pair that is
routed to them. So what a rank's kernels are launched with depends on the text, and differs from rank to rank.

A token's hidden state is its embedding, whose routing is therefore known before any kernel has run. What attention
would do is left to a sum over the past in which each token counts half as much as the next one. Both are computed with
torch on the CPU: on the offline target, where kernels compute nothing, the routing is the same as on a GPU.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from examples.server import vocabulary
from examples.wna16_moe.layer import LayerConfig, WNA16MoE
from examples.wna16_moe.packing import PackedWeight, to_device
from examples.wna16_moe.routing import route

LAYER = LayerConfig(experts=8, top_k=2, hidden=128, intermediate=64, group_size=32)
SEED = 0
DECAY = 0.5


def experts_of_rank(rank: int, ranks: int, experts: int = LAYER.experts) -> range:
    """Return the experts that a rank holds: its share, as even as it can be."""
    return range(experts * rank // ranks, experts * (rank + 1) // ranks)


def layer_of_rank(rank: int, ranks: int) -> LayerConfig:
    """Return the layer's sizes as a rank sees them: its own experts only, and one expert for each row."""
    return dataclasses.replace(LAYER, experts=len(experts_of_rank(rank, ranks)), top_k=1)


@dataclass(frozen=True)
class Slots:
    """The (token, expert) pairs that are one rank's work; all tensors are on the CPU."""

    positions: torch.Tensor  # int64 [rows]: which of the step's tokens
    experts: torch.Tensor  # int64 [rows, 1]: which of the rank's experts
    weights: torch.Tensor  # float32 [rows, 1]: what that expert counts for


class Trunk:
    """What every rank has a copy of: embeddings, router and output head."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.embeddings = torch.randn((vocabulary.SIZE, LAYER.hidden), generator=generator)
        self.router = torch.randn((LAYER.experts, LAYER.hidden), generator=generator)
        self.head = torch.randn((vocabulary.SIZE, LAYER.hidden), generator=generator)
        # Once for the whole vocabulary, so that a token's experts cannot depend on its neighbours in a batch.
        self.weights, self.experts = route(self.embeddings, self.router, LAYER.top_k)

    def slots(self, tokens: torch.Tensor, held: range) -> Slots:
        """Return what of these tokens is routed to the experts that a rank holds."""
        experts = self.experts[tokens]
        positions, choices = torch.nonzero((experts >= held.start) & (experts < held.stop), as_tuple=True)
        mine = experts[positions, choices].unsqueeze(1) - held.start
        return Slots(positions, mine, self.weights[tokens][positions, choices].unsqueeze(1))

    def rows(self, tokens: list[int], ranks: int) -> list[int]:
        """Return how many rows these tokens are for each rank, if they are a step of their own."""
        ids = torch.tensor(tokens, dtype=torch.int64)
        return [len(self.slots(ids, experts_of_rank(rank, ranks)).positions) for rank in range(ranks)]

    def logits(self, contributions: torch.Tensor, lengths: tuple[int, ...]) -> list[list[float]]:
        """Return each sequence's logits [vocabulary], from its tokens' [length, hidden]; the last one counts most."""
        ages = (torch.arange(length - 1, -1, -1, dtype=torch.float32) for length in lengths)
        sums = [DECAY**age @ part for age, part in zip(ages, contributions.split(lengths), strict=True)]
        logits: list[list[float]] = (torch.stack(sums) @ self.head.T).tolist()
        return logits


class LocalExperts(WNA16MoE):
    """One rank's share of the layer, for rows whose expert has been chosen."""

    def __init__(self, rank: int, ranks: int, device: torch.device | str) -> None:
        super().__init__(LAYER, device="cpu", seed=SEED)  # all experts, as a checkpoint has them
        held = experts_of_rank(rank, ranks)
        self.config = layer_of_rank(rank, ranks)
        self.device = device
        self.w13 = _share(self.w13, held, device)
        self.w2 = _share(self.w2, held, device)

    def run(self, hidden: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """Run each row [hidden] through its own expert; tensors may come from the CPU, the result is on the device."""
        hidden, weights, experts = hidden.to(self.device, self.dtype), weights.to(self.device), experts.to(self.device)
        if self.config.takes_small_batch_path(hidden.shape[0]):
            return self._small_batch(hidden, weights, experts)
        return self._grouped_gemms(hidden, weights, experts)

    def run_dummy(self, rows: int) -> torch.Tensor:
        """Run rows of nothing, spread evenly over the experts."""
        experts = torch.arange(rows).remainder(self.config.experts).unsqueeze(1)
        return self.run(torch.zeros((rows, self.config.hidden)), torch.ones((rows, 1)), experts)


def _share(weight: PackedWeight, held: range, device: torch.device | str) -> PackedWeight:
    part = slice(held.start, held.stop)
    zeros = None if weight.zeros is None else weight.zeros[part].contiguous()
    share = PackedWeight(weight.packed[part].clone(), weight.scales[part].clone(), zeros, weight.group_size)
    return to_device(share, device)
