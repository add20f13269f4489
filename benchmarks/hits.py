"""In-process hits beside those that a contract repeats: what a server does where the contract goes a shorter way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.subjects import Subject
from pytest_jitguard.contract import MonitorContract

Hit = Callable[[], object]
Maker = Callable[[MonitorContract], Hit]


class NeedsGPU(Exception):
    """These hits cannot run here; the text says what of them takes a GPU."""


def hits(subject: Subject) -> Iterator[tuple[str, Maker]]:
    """Yield what to add to the system's name, and what makes the hit."""
    own = {} if subject.is_stand_in else OWN.get(subject.system, {})
    is_worth_it = subject.is_stand_in or subject.system not in ONLY_OWN
    if is_worth_it and "repeat" not in subject.contract.not_there:
        yield "", _of_contract
    yield from own.items()


def _of_contract(contract: MonitorContract) -> Hit:
    contract.prepare()
    contract.compile_new()
    contract.repeat()
    return contract.repeat


def _call_of_torch_compile(contract: MonitorContract) -> Hit:
    import torch

    compiled, x = torch.compile(lambda x: torch.mm(x, x), dynamic=True), torch.ones(4, 4)
    compiled(x)
    return functools.partial(compiled, x)


def _call_of_a_compiled_function(contract: MonitorContract) -> Hit:
    import cute_programs
    from cutlass import Int32, cute

    compiled = cute.compile(cute_programs.count, Int32(1))
    compiled(2)
    return functools.partial(compiled, 2)


def _call_of_a_kernel(contract: MonitorContract) -> Hit:
    import tile_programs
    import torch

    kernel, x = tile_programs.add(64), torch.ones(64)
    kernel(x, x)
    return functools.partial(kernel, x, x)


def _load_again(contract: Any) -> Hit:
    """Ask torch for an extension that this process has loaded."""
    name = f"again_{contract.number()}"
    contract._load(name)
    return functools.partial(contract._load, name)


def _launch_by_cupy(contract: MonitorContract) -> Hit:
    _need_a_gpu("a launch")
    import cupy

    x = cupy.ones(1, cupy.float32)
    text = 'extern "C" __global__ void one(float* x) { x[0] = 1; }'
    return lambda: cupy.RawKernel(text, "one")((1,), (1,), (x,))


def _launch_by_torch(contract: MonitorContract) -> Hit:
    _need_a_gpu("a launch")
    import torch

    kernel = torch.cuda._compile_kernel('extern "C" __global__ void one(float* x) { x[0] = 1; }', "one")
    return functools.partial(kernel, (1, 1, 1), (1, 1, 1), (torch.ones(1, device="cuda"),))


def _need_a_gpu(what: str) -> None:
    import ctypes

    try:
        if ctypes.CDLL("libcuda.so.1").cuInit(0) == 0:
            return
    except OSError:
        pass
    raise NeedsGPU(what)


OWN: dict[str, dict[str, Maker]] = {
    "inductor": {": call of torch.compile": _call_of_torch_compile},
    "cutedsl": {": call of what cute.compile returned": _call_of_a_compiled_function},
    "tilelang": {": call of the kernel": _call_of_a_kernel},
    "cpp_extension": {": load() again": _load_again},
    "cupy": {": RawKernel made and launched": _launch_by_cupy},
    "torch_nvrtc": {": launch": _launch_by_torch},
}
"""By system, what to add to its name; for the real libraries, not for their stand-ins."""

ONLY_OWN = frozenset({"cupy", "torch_nvrtc"})
"""What the contract repeats with these libraries is no call of them: that takes a driver."""
