"""Prompts by what they make of a step: the same number of tokens can be any number of rows on a rank.

Which rows a prompt has on each rank follows from its tokens alone (model.py), and what they mean to the rank's kernels
follows from the rows (warmup.py). So a prompt that reaches given classes is found by drawing prompts until one does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from examples.server import vocabulary
from examples.server.model import Trunk, layer_of_rank
from examples.server.warmup import LaunchClass, launch_class

DRAWS = 20_000

# By rank: the class that the prompt's rows on that rank have, None where they are too few for the Triton kernel. The
# basic warmup covers the classes whose rows are divisible by 16.
REQUESTS: dict[str, tuple[int, tuple[LaunchClass | None, LaunchClass | None]]] = {
    "short": (5, (None, None)),
    "25-tokens": (25, (None, LaunchClass(32, em_divisible=False, rows_divisible=True))),
    "25-tokens-that-rank-1-has-not-seen": (25, (None, LaunchClass(32, em_divisible=False, rows_divisible=False))),
    "50-tokens-that-rank-1-has-not-seen": (
        50,
        (
            LaunchClass(64, em_divisible=False, rows_divisible=True),
            LaunchClass(64, em_divisible=True, rows_divisible=False),
        ),
    ),
    "60-tokens-that-no-rank-has-seen": (60, (LaunchClass(64, em_divisible=False, rows_divisible=False),) * 2),
}


def classes_of(trunk: Trunk, prompt: list[int], ranks: int) -> list[LaunchClass | None]:
    """Return each rank's class of launches for a prompt that is a step of its own."""
    rows = trunk.rows(prompt, ranks)
    return [launch_class(count, layer_of_rank(rank, ranks)) for rank, count in enumerate(rows)]


def find_prompt(length: int, wanted: Sequence[LaunchClass | None]) -> list[int]:
    """Return the first of a fixed series of random printable prompts that has the wanted class on each rank.

    LookupError if none of the first 20,000 has: some cannot be, since all ranks' rows together are twice the length.
    """
    trunk, draw = Trunk(), random.Random(length)
    for _ in range(DRAWS):
        prompt = draw.choices(vocabulary.PRINTABLE, k=length)
        if classes_of(trunk, prompt, len(wanted)) == list(wanted):
            return prompt
    raise LookupError(f"none of {DRAWS} prompts of {length} tokens has {wanted} on its ranks")
