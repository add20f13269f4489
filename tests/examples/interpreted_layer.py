"""Run the layer's Triton path on the CPU, through Triton's interpreter, against the reference; print each agreed case.

A script, because TRITON_INTERPRET is read when a kernel is decorated: a process has one kind of kernel or the other.
"""

from __future__ import annotations

import torch

from examples.wna16_moe.layer import LayerConfig, WNA16MoE
from examples.wna16_moe.reference import TOLERANCE, reference_output

# Small enough for an interpreter; 96 is not a multiple of the 64 columns of a tile.
SIZES: dict[str, int] = {"experts": 4, "top_k": 2, "hidden": 96, "intermediate": 64, "group_size": 32}
CASES = [
    # has_zeros, token_scalars_specialized, tokens: odd sizes leave padding in every block
    (False, True, 13),
    (True, True, 13),
    (False, True, 37),
    (True, True, 45),
    (True, False, 25),
]


def check(has_zeros: bool, token_scalars_specialized: bool, tokens: int) -> None:
    config = LayerConfig(**SIZES, has_zeros=has_zeros)
    assert not config.takes_small_batch_path(tokens)
    layer = WNA16MoE(config, device="cpu", token_scalars_specialized=token_scalars_specialized)
    hidden = torch.randn((tokens, config.hidden), generator=torch.Generator().manual_seed(tokens)).half()
    torch.testing.assert_close(layer(hidden).float(), reference_output(layer, hidden), **TOLERANCE)


if __name__ == "__main__":
    for case in CASES:
        check(*case)
        print(case)
