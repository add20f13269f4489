"""Which batches a rank runs before it serves: what servers usually run, and what covers every request.

A rank's launches are told apart by its rows alone: by the rows' tile (BLOCK_SIZE_M), and by the divisibility by 16 of
the two scalars that follow the rows, EM and num_valid_tokens. Each such class is two variants of the kernel, one for
each GEMM.
"""

from __future__ import annotations

from typing import NamedTuple

from examples.server.model import LAYER
from examples.wna16_moe.kernels import default_block_config, launch_length
from examples.wna16_moe.layer import LayerConfig
from examples.wna16_moe.routing import slot_capacity

DECODE_TOKENS = (1, 2, 4, 8, 16, 32)
DIVISOR = 16
"""Triton compiles a variant of its own for integers that are divisible by this."""


class LaunchClass(NamedTuple):
    """What a rank's number of rows makes of a launch, as far as Triton's key goes."""

    block_m: int
    em_divisible: bool
    rows_divisible: bool


def launch_class(rows: int, layer: LayerConfig) -> LaunchClass | None:
    """Return the class of a rank's launches; None where they take the path without Triton, or where there are none."""
    if layer.takes_small_batch_path(rows):
        return None
    block_m = default_block_config(rows).m
    capacity = slot_capacity(rows * layer.top_k, layer.experts, block_m)
    em = launch_length(rows, layer.top_k, capacity, block_m)
    return LaunchClass(block_m, em % DIVISOR == 0, rows * layer.top_k % DIVISOR == 0)


def basic_rows(layer: LayerConfig, token_budget: int) -> list[int]:
    """Return the rows of a usual start-up: a profile run with all tokens that a step can have, and some decode sizes.

    The dummy tokens are spread evenly over all experts, of which this rank has its share.
    """
    batches = (token_budget, *(tokens for tokens in DECODE_TOKENS if tokens < token_budget))
    rows = (tokens * LAYER.top_k * layer.experts // LAYER.experts for tokens in batches)
    return [count for count in rows if count]


def full_rows(layer: LayerConfig, token_budget: int) -> list[int]:
    """Return the usual rows, and one batch for each class that they leave out."""
    usual = basic_rows(layer, token_budget)
    covered = {launch_class(rows, layer) for rows in usual}
    return [*usual, *(rows for kind, rows in smallest_rows(layer, token_budget).items() if kind not in covered)]


def smallest_rows(layer: LayerConfig, token_budget: int) -> dict[LaunchClass, int]:
    """Return every class that this rank can reach, and the least rows that reach it.

    At worst all of a step's slots are this rank's. Where tile and path stay the same, EM and num_valid_tokens grow by
    a fixed amount with each row, so that their divisibility repeats after 16 rows: the first 16 of each stretch show
    all there is.
    """
    found: dict[LaunchClass, int] = {}
    for start in _stretches(layer, token_budget * LAYER.top_k):
        for rows in range(start, min(start + DIVISOR, token_budget * LAYER.top_k + 1)):
            kind = launch_class(rows, layer)
            if kind is not None:
                found.setdefault(kind, rows)
    return found


def _stretches(layer: LayerConfig, most: int) -> list[int]:
    """Return the rows with which another tile, or the path with Triton, begins."""

    def way(rows: int) -> int | None:
        return None if layer.takes_small_batch_path(rows) else default_block_config(rows).m

    return [rows for rows in range(1, most + 1) if way(rows) != way(rows - 1)]


WARMUPS = {"basic": basic_rows, "full": full_rows}
