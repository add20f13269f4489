"""The engine process: takes requests from the API process, schedules steps, drives the ranks, sends tokens back."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from examples.server.messages import CLOSED, Cancel, Failed, Ready, Step, StepResult, Submit, Token
from examples.server.options import Options
from examples.server.rank import run_rank
from examples.server.scheduler import Chunk, Scheduler, Sequence
from examples.server.vocabulary import PRINTABLE

SPAWN = multiprocessing.get_context("spawn")
RANK_GRACE = 3.0
ENGINE_GRACE = 3 * RANK_GRACE + 1.0  # it may have to try three times itself
DECAY = 0.5  # as in model.py, which would import torch here


class RankLost(Exception):
    """A rank has failed or is gone, and with it what its experts would have computed."""


def run_engine(options: Options, api: Connection) -> None:
    """Be the engine until the API process closes the pipe."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through `finally`, so that the ranks end as well
    ranks = RankGroup(options)
    try:
        with contextlib.suppress(*CLOSED):
            try:
                ranks.start()
                ranks.wait_until_ready(api)
                api.send(Ready())
                Engine(options, api, ranks).serve()
            except RankLost as error:
                api.send(Failed(str(error)))
    finally:
        ranks.stop()


class RankGroup:
    """The worker processes, stepped together: the slowest one decides when a step ends."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._members: list[tuple[BaseProcess, Connection]] = []

    def start(self) -> None:
        """Start all ranks; each is told its place by the variables that torchrun sets."""
        for rank in range(self.options.ranks):
            ours, theirs = SPAWN.Pipe()
            process = SPAWN.Process(target=run_rank, args=(self.options, theirs), name=f"rank-{rank}", daemon=True)
            with _environment(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=self.options.ranks):
                process.start()
            theirs.close()  # or its end would never be seen here
            self._members.append((process, ours))

    def wait_until_ready(self, api: Connection) -> None:
        """Return when all ranks are warm. RankLost if one is not going to be, EOFError if the API process is gone."""
        waiting: dict[Any, int] = {connection: rank for rank, (_, connection) in enumerate(self._members)}
        while waiting:
            for heard in wait([api, *waiting]):
                if heard is api:
                    raise EOFError  # nothing is submitted before we are ready
                rank = waiting.pop(heard)
                kernels = self._receive(rank).kernels
                _log(
                    f"rank {rank} of {self.options.ranks} has {kernels} kernels after the {self.options.warmup} warmup"
                )

    def step(self, step: Step) -> list[StepResult]:
        """Run one step on all ranks; RankLost if one of them fails."""
        for rank, (_, connection) in enumerate(self._members):
            try:
                connection.send(step)
            except CLOSED as error:
                raise RankLost(f"rank {rank} is gone") from error
        return [self._receive(rank) for rank in range(len(self._members))]

    def _receive(self, rank: int) -> Any:
        try:
            answer = self._members[rank][1].recv()
        except CLOSED as error:
            raise RankLost(f"rank {rank} is gone") from error
        if isinstance(answer, Failed):
            raise RankLost(f"rank {rank} failed: {answer.reason}")
        return answer

    def stop(self) -> None:
        """End all ranks: politely, then by force."""
        for _, connection in self._members:
            connection.close()
        end([process for process, _ in self._members], RANK_GRACE)


class Engine:
    """Steps as long as there are requests, and listens for new ones in between."""

    def __init__(self, options: Options, api: Connection, ranks: RankGroup) -> None:
        self.options = options
        self.scheduler = Scheduler(options.token_budget, options.max_running)
        self._api = api
        self._ranks = ranks
        self._logits: dict[int, list[float]] = {}
        self._steps = 0

    def serve(self) -> None:
        """Serve until the API process is gone (EOFError)."""
        while True:
            self._listen()
            self.step()

    def _listen(self) -> None:
        """Take what has arrived; with nothing to do, wait for it."""
        while not self.scheduler or self._api.poll():
            message = self._api.recv()
            if isinstance(message, Submit):
                self.scheduler.add(Sequence(message.request, list(message.prompt), message.max_tokens))
            elif isinstance(message, Cancel):
                self.scheduler.cancel(message.request)
                self._logits.pop(message.request, None)

    def step(self) -> None:
        """Run one step, and send on the tokens that it has brought."""
        chunks = self.scheduler.schedule()
        results = self._ranks.step(_step_of(chunks))
        self._steps += 1
        if self.options.log_steps:
            self._log_step(chunks, results)
        for index, chunk in enumerate(chunks):
            self._advance(chunk, [result.logits[index] for result in results])

    def _advance(self, chunk: Chunk, parts: list[list[float]]) -> None:
        request = chunk.sequence.request
        faded = DECAY ** len(chunk.tokens)
        before = self._logits.get(request) or [0.0] * len(parts[0])
        logits = [faded * old + sum(new) for old, new in zip(before, zip(*parts, strict=True), strict=True)]
        chosen = max(PRINTABLE, key=logits.__getitem__)
        if self.scheduler.advance(chunk, chosen):
            self._api.send(Token(request, chosen, chunk.sequence.finished))
        if chunk.sequence.finished:
            self._logits.pop(request, None)
        else:
            self._logits[request] = logits

    def _log_step(self, chunks: list[Chunk], results: list[StepResult]) -> None:
        rows = "+".join(str(result.rows) for result in results)
        kernels = "+".join(str(result.kernels) for result in results)
        tokens = sum(len(chunk.tokens) for chunk in chunks)
        _log(f"step {self._steps}: {len(chunks)} requests, {tokens} tokens, rows {rows}, kernels {kernels}")


def _step_of(chunks: list[Chunk]) -> Step:
    tokens = tuple(token for chunk in chunks for token in chunk.tokens)
    return Step(tokens, tuple(len(chunk.tokens) for chunk in chunks))


def end(processes: list[BaseProcess], grace: float) -> None:
    """Wait for processes whose pipes are closed; after `grace` seconds terminate them, after as many more kill them."""
    _join(processes, grace)
    for process in processes:
        process.terminate()  # does nothing to one that has ended
    _join(processes, grace)
    for process in processes:
        process.kill()
    _join(processes, grace)


def _join(processes: list[BaseProcess], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


@contextlib.contextmanager
def _environment(**variables: int) -> Iterator[None]:
    """Set variables for a child that is started inside the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update({name: str(value) for name, value in variables.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _log(text: str) -> None:
    print(f"engine: {text}", file=sys.stderr, flush=True)
