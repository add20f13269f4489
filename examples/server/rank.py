"""A worker process: one rank with its share of the experts, driven step by step by the engine.

torch is imported when the process runs, not with this module, which the API process imports too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from examples.server.messages import CLOSED, Failed, Step, StepResult, Warm
from examples.server.options import Options

if TYPE_CHECKING:
    import torch

OFFLINE_VARIABLE = "EXAMPLE_OFFLINE"
NO_GPU = f"""no GPU here. Run the server under the guard's offline target (pytest --jitguard --jitguard-offline=h100),
or set {OFFLINE_VARIABLE}=h100 to run it alone: kernels are then compiled for that GPU, and launches do nothing."""


class NoGPU(Exception):
    """There is nothing here that kernels could be compiled for."""


def run_rank(options: Options, engine: Connection) -> None:
    """Be a rank until the engine closes the pipe. RANK and WORLD_SIZE in the environment say which one."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an orderly end, so that whatever is to run at exit runs
    try:
        _serve(options, engine)
    except CLOSED:
        pass
    except NoGPU as error:
        _fail(engine, str(error))
    except Exception as error:
        _fail(engine, f"{type(error).__name__}: {error}")
        raise  # the log gets the traceback


def _serve(options: Options, engine: Connection) -> None:
    place, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = find_device(int(os.environ["LOCAL_RANK"]))
    rank = Rank(place, ranks, device, executes=not _is_offline())
    rank.warm_up(options)
    engine.send(Warm(resident_kernels()))
    while True:
        engine.send(rank.step(engine.recv()))


def _fail(engine: Connection, reason: str) -> None:
    with contextlib.suppress(*CLOSED):
        engine.send(Failed(reason))


class Rank:
    """The model as one rank has it; `executes` tells whether the device's kernels leave results."""

    def __init__(self, rank: int, ranks: int, device: str, *, executes: bool) -> None:
        import torch

        from examples.server.model import LocalExperts, Trunk, experts_of_rank

        torch.set_num_threads(1)
        self.ranks = ranks
        self.held = experts_of_rank(rank, ranks)
        self.trunk = Trunk()
        self.experts = LocalExperts(rank, ranks, device)
        self.executes = executes

    def warm_up(self, options: Options) -> None:
        """Run one batch of each size that the configured warmup names."""
        from examples.server.warmup import WARMUPS

        for rows in WARMUPS[options.warmup](self.experts.config, options.token_budget):
            self.experts.run_dummy(rows)

    def step(self, step: Step) -> StepResult:
        """Run the model on a step's tokens; what other ranks' experts contribute is missing in the logits."""
        import torch

        tokens = torch.tensor(step.tokens, dtype=torch.int64)
        slots = self.trunk.slots(tokens, self.held)
        embedded = self.trunk.embeddings[tokens]
        contributions = embedded / self.ranks  # so that the ranks' parts add up to the whole
        rows = len(slots.positions)
        if rows:
            routed = self.experts.run(embedded[slots.positions], slots.weights, slots.experts)
            self._combine(contributions, slots.positions, routed)
        return StepResult(self.trunk.logits(contributions, step.lengths), rows, resident_kernels())

    def _combine(self, contributions: torch.Tensor, positions: torch.Tensor, routed: torch.Tensor) -> None:
        # The offline target's kernels leave no results. Reading none of them, those of the path without Triton
        # included, keeps a text independent of who shared its steps.
        if self.executes:
            contributions.index_add_(0, positions, routed.cpu().float())


def find_device(local_rank: int) -> str:
    """Return this rank's device, the offline target's among them; NoGPU where there is none.

    Ranks share GPUs if there are not enough.
    """
    import torch

    offline = os.environ.get(OFFLINE_VARIABLE)
    if offline and not _is_offline():
        _install_offline(offline)
    if not torch.cuda.is_available():
        raise NoGPU(NO_GPU)
    device = local_rank % torch.cuda.device_count()
    torch.cuda.set_device(device)
    return f"cuda:{device}"


def _is_offline() -> bool:
    """Tell whether somebody, such as the guard, has put an offline target into this process."""
    import torch

    from examples.wna16_moe.reference import kernels_execute

    return torch.cuda.is_available() and not kernels_execute()


def _install_offline(name: str) -> None:
    from pytest_jitguard.offline import OfflineTarget, parse_target

    target = OfflineTarget(parse_target(name))
    target.install_triton()
    target.install_torch()


def resident_kernels() -> int:
    """Return how many variants of the layer's kernel are in this process, by Triton's own cache."""
    from examples.wna16_moe.kernels import wna16_moe_gemm

    return sum(len(cache[0]) for cache in wna16_moe_gemm.device_caches.values())
