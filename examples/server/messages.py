"""What the processes say to each other: API process ↔ engine ↔ ranks, each pair over one pipe.

Nobody says goodbye: whoever finds the other end closed stops working. So no process outlives the API process.
"""

from __future__ import annotations

from typing import NamedTuple


class Submit(NamedTuple):
    """API to engine: generate `max_tokens` tokens after the prompt."""

    request: int
    prompt: tuple[int, ...]
    max_tokens: int


class Cancel(NamedTuple):
    """API to engine: nobody waits for this request any more."""

    request: int


class Warm(NamedTuple):
    """Rank to engine: the warmup is over, after which the process has this many variants of the layer's kernel."""

    kernels: int


class Ready(NamedTuple):
    """Engine to API: from now on requests are served."""


CLOSED = (EOFError, BrokenPipeError, ConnectionResetError)
"""What is raised by a pipe whose other end is closed."""


class Failed(NamedTuple):
    """Rank to engine, engine to API: it is over, for this reason."""

    reason: str


class Token(NamedTuple):
    """Engine to API: the next token of a request."""

    request: int
    token: int
    finished: bool


class Step(NamedTuple):
    """Engine to ranks: run the model on these tokens; `lengths` says how many of them each sequence has."""

    tokens: tuple[int, ...]
    lengths: tuple[int, ...]


class StepResult(NamedTuple):
    """Rank to engine: this rank's part of each sequence's logits, to be added to those of the other ranks.

    `rows` were routed to this rank's experts; `kernels` are the Triton variants now in the process.
    """

    logits: list[list[float]]
    rows: int
    kernels: int
