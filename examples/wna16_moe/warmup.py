"""Two warmups for `--jitguard-warmup=examples.wna16_moe.warmup:...`: the one that missed the kernel, and the cure."""

from examples.wna16_moe.layer import serve

# One batch for each divisibility class of the kernel's two token-dependent scalars (EM; num_valid_tokens; neither),
# first with blocks of 32 rows, then with blocks of 64.
COVERING_BATCHES = (25, 28, 32, 41, 44, 48)


def warmup_as_it_was() -> None:
    """Run one small dummy batch. It takes the small-batch path, so it compiles nothing that a large request needs."""
    serve(16)


def warmup_with_a_large_batch() -> None:
    """Warm up with one large batch as well: the Triton path is reached, in one of its six classes."""
    warmup_as_it_was()
    serve(500)


def warmup_that_covers() -> None:
    """Run one batch for each variant of the kernel that a request can reach."""
    for tokens in COVERING_BATCHES:
        serve(tokens)
