"""What Inductor does on a GPU under armed monitors: `python torch_programs_on_gpu.py NAME`, one line of JSON."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "monitors"))

from torch_programs import DYNAMO, INDUCTOR, Program


def _armed() -> Program:
    program = Program("triton", DYNAMO, INDUCTOR)
    program.monitors.arm()
    return program


def total(x: Any, y: Any) -> Any:
    return (x * y + 1).sum(dim=-1)


def product(x: Any, y: Any) -> Any:
    return (x @ y).relu()


def tuned() -> None:
    """Benchmarks when a graph runs for the first time, and none later."""
    p = _armed()
    import torch

    x, y = torch.ones(512, 4096, device="cuda"), torch.ones(512, 4096, device="cuda")
    compiled = torch.compile(total, mode="max-autotune-no-cudagraphs")
    p.step("first", lambda: compiled(x, y))
    p.step("second", lambda: compiled(x, y))
    frames = p.frames_over(2_000, lambda: compiled(x, y))
    gemm = torch.compile(product, mode="max-autotune-no-cudagraphs")
    p.step("gemm", lambda: gemm(x, y.T.contiguous()))
    p.step("gemm again", lambda: gemm(x, y.T.contiguous()))
    p.finish(frames=frames)


def descent() -> None:
    """Coordinate descent, which compiles in this process when a graph runs."""
    p = _armed()
    import torch
    import torch._inductor.config as config

    config.coordinate_descent_tuning = True
    x, y = torch.ones(512, 4096, device="cuda"), torch.ones(512, 4096, device="cuda")
    compiled = torch.compile(total)
    p.step("first", lambda: compiled(x, y))
    p.step("second", lambda: compiled(x, y))
    p.finish(frames=p.frames_over(2_000, lambda: compiled(x, y)))


def graphs() -> None:
    """CUDA graphs: compiled once, recorded on the second run, replayed from the third."""
    p = _armed()
    import torch

    x, y = torch.ones(64, 64, device="cuda"), torch.ones(64, 64, device="cuda")
    compiled = torch.compile(total, mode="reduce-overhead")

    def call() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        compiled(x, y)

    for number in range(4):
        p.step(f"run {number + 1}", call)
    p.finish(frames=p.frames_over(2_000, call))


def wrapper() -> None:
    """Code in C++ around the kernels."""
    p = _armed()
    import torch
    import torch._inductor.config as config

    config.cpp_wrapper = True
    x, y = torch.ones(512, 512, device="cuda"), torch.ones(512, 512, device="cuda")
    compiled = torch.compile(total)
    p.step("first", lambda: compiled(x, y))
    p.step("second", lambda: compiled(x, y))
    p.finish()


def sizes() -> None:
    """Compiled with sizes 32 and 64; 100 needs nothing, 1 does."""
    p = _armed()
    import torch

    compiled = torch.compile(total)
    for size in (32, 64, 100, 1):
        x, y = torch.ones(size, 16, device="cuda"), torch.ones(size, 16, device="cuda")
        p.step(str(size), functools.partial(compiled, x, y))
    p.finish()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
