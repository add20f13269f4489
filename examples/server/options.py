"""What the server is told on its command line, handed on to the engine and to the ranks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

MAX_RANKS = 8
WARMUPS = ("basic", "full")


@dataclass(frozen=True)
class Options:
    """One server. `token_budget` is what a step may process, over all requests; the other sizes count tokens too."""

    host: str = "127.0.0.1"
    port: int = 8000
    ranks: int = 2
    token_budget: int = 2048
    max_model_len: int = 8192
    max_running: int = 64
    warmup: str = "full"
    log_steps: bool = False


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line; ends the process with a message where it is wrong."""
    default = Options()
    parser = argparse.ArgumentParser(prog="python -m examples.server", description=__doc__)
    parser.add_argument("--host", default=default.host)
    parser.add_argument("--port", type=int, default=default.port, help="0 takes a free one, which the log names")
    parser.add_argument("--ranks", type=int, default=default.ranks, choices=range(1, MAX_RANKS + 1), metavar="N")
    parser.add_argument("--token-budget", type=_positive, default=default.token_budget, help="tokens per step")
    parser.add_argument("--max-model-len", type=_positive, default=default.max_model_len, help="prompt and completion")
    parser.add_argument("--max-running", type=_positive, default=default.max_running, help="requests that share steps")
    parser.add_argument("--warmup", choices=WARMUPS, default=default.warmup, help="full leaves out nothing")
    parser.add_argument("--log-steps", action="store_true", help="one line per step: tokens, rows and kernels by rank")
    return Options(**vars(parser.parse_args(arguments)))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value
