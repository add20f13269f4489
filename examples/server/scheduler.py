"""Continuous batching: which tokens of which requests share the next step. Pure: no processes, no torch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(eq=False)
class Sequence:
    """One request in the engine: its tokens so far, and how many of them the model has seen."""

    request: int
    tokens: list[int]
    max_tokens: int
    computed: int = 0
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)

    @property
    def pending(self) -> int:
        """Tokens that the model has not seen: one when decoding, more while the prompt is being read."""
        return len(self.tokens) - self.computed

    @property
    def finished(self) -> bool:
        """Whether all tokens that were asked for have been generated."""
        return len(self.tokens) - self.prompt_length >= self.max_tokens


class Chunk(NamedTuple):
    """The part of a step that belongs to one sequence."""

    sequence: Sequence
    tokens: list[int]


class Scheduler:
    """Fills each step with at most `token_budget` tokens of at most `max_running` requests.

    Who needs one token gets it first; what is left of the budget goes to prompts, first come, first served, in chunks.
    There are never more requests in a step than tokens in the budget. So in every step each decode moves on, and so
    does the oldest prompt: nobody starves.
    """

    def __init__(self, token_budget: int, max_running: int) -> None:
        self.token_budget = token_budget
        self.max_running = min(max_running, token_budget)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Let a request wait for its turn."""
        self.waiting.append(sequence)

    def cancel(self, request: int) -> None:
        """Forget a request, wherever it stands; nothing happens if it is gone already."""
        self.waiting = deque(sequence for sequence in self.waiting if sequence.request != request)
        self.running = [sequence for sequence in self.running if sequence.request != request]

    def schedule(self) -> list[Chunk]:
        """Choose the next step, without changing any sequence."""
        while self.waiting and len(self.running) < self.max_running:
            self.running.append(self.waiting.popleft())
        left = self.token_budget
        chunks = []
        for sequence in sorted(self.running, key=lambda sequence: sequence.pending > 1):  # keeps the order of arrival
            taken = min(sequence.pending, left)
            left -= taken
            if taken:
                chunks.append(Chunk(sequence, sequence.tokens[sequence.computed : sequence.computed + taken]))
        return chunks

    def advance(self, chunk: Chunk, chosen: int) -> bool:
        """Note that a chunk was run, after which the model would say `chosen`; tell whether that is a new token.

        It is none while the prompt is only partly read. A sequence that has all its tokens leaves.
        """
        sequence = chunk.sequence
        sequence.computed += len(chunk.tokens)
        if sequence.pending:
            return False
        sequence.tokens.append(chosen)
        if sequence.finished:
            self.running.remove(sequence)
        return True
