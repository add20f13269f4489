"""The supported part of `torch.cuda`: one table, each name with what stands there for a GPU that is not there."""

from __future__ import annotations

from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_jitguard.offline.gpus import GPU, KIB, generic_gpu
from pytest_jitguard.offline.streams import CurrentStream, Event, Stream, StreamContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_RESERVED = 512 * KIB * KIB
"""Bytes that a driver keeps for itself on an idle GPU, roughly: free memory is never all of it."""


@dataclass(frozen=True)
class DeviceProperties:
    """What `torch.cuda.get_device_properties()` returns; the names are torch's."""

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int
    warp_size: int
    max_threads_per_block: int
    max_threads_per_multi_processor: int
    regs_per_multiprocessor: int
    shared_memory_per_block: int
    shared_memory_per_block_optin: int
    shared_memory_per_multiprocessor: int
    L2_cache_size: int
    gcnArchName: str
    clock_rate: int
    memory_clock_rate: int
    memory_bus_width: int
    is_integrated: int = 0
    is_multi_gpu_board: int = 0
    uuid: str = "00000000-0000-0000-0000-000000000000"
    pci_bus_id: int = 0
    pci_device_id: int = 0
    pci_domain_id: int = 0


def device_properties(gpu: GPU) -> DeviceProperties:
    """Return a GPU's figures under torch's names."""
    major, minor = gpu.capability
    return DeviceProperties(
        name=gpu.device_name,
        major=major,
        minor=minor,
        total_memory=gpu.total_memory,
        multi_processor_count=gpu.multiprocessors,
        warp_size=gpu.warp_size,
        max_threads_per_block=gpu.max_threads_per_block,
        max_threads_per_multi_processor=gpu.max_threads_per_multiprocessor,
        regs_per_multiprocessor=gpu.registers,
        shared_memory_per_block=min(gpu.max_shared_mem, 48 * KIB) if gpu.backend == "cuda" else gpu.max_shared_mem,
        shared_memory_per_block_optin=gpu.max_shared_mem,
        shared_memory_per_multiprocessor=gpu.shared_mem_per_multiprocessor,
        L2_cache_size=gpu.l2_cache,
        # ROCm names the target with its features; CUDA builds of torch put the device's name here.
        gcnArchName=_gcn_name(gpu) if gpu.backend == "hip" else gpu.device_name,
        clock_rate=gpu.clock_khz,
        memory_clock_rate=gpu.memory_clock_khz,
        memory_bus_width=gpu.memory_bus_bits,
    )


def _gcn_name(gpu: GPU) -> str:
    return f"{gpu.arch}:sramecc+:xnack-" if str(gpu.arch).startswith("gfx9") else str(gpu.arch)


class OfflineCuda:
    """The state that the stand-ins share: one device, its streams, whether anything has used it yet."""

    def __init__(self, gpu: GPU) -> None:
        self.gpu = gpu
        self.properties = device_properties(gpu)
        self.streams = CurrentStream()
        self.initialized = False

    def use(self) -> None:
        """Note a call upon which torch would have created a context."""
        self.initialized = True

    def check(self, device: object = None) -> int:
        """Return the index of the device meant, which is 0; refuse any other as torch does."""
        index = _device_index(device)
        if index not in (None, 0, -1):
            raise RuntimeError(
                f"CUDA error: invalid device ordinal ({device!r}; the offline target {self.gpu.target} is one device)"
            )
        return 0

    def using(self, answer: Callable[[], Any]) -> Callable[..., Any]:
        """Return a stand-in that takes a device, counts as use, and answers."""

        def stand_in(device: object = None) -> Any:
            self.check(device)
            self.use()
            return answer()

        return stand_in


def _device_index(device: object) -> int | None:
    if device is None or isinstance(device, int):
        return device
    if isinstance(device, Stream):
        return 0
    import torch

    parsed = torch.device(device) if isinstance(device, str) else device
    kind = getattr(parsed, "type", "cuda")
    if kind != "cuda":
        raise ValueError(f"Expected a cuda device, but got: {device}")
    index = getattr(parsed, "index", None)
    return None if index is None else int(index)


def stand_ins(cuda: OfflineCuda) -> dict[str, Any]:
    """Return the table: every supported name of `torch.cuda`, and what stands there offline."""
    return {**_device_table(cuda), **_stream_table(cuda), **_memory_table(cuda), **_random_table(), **_nvtx_table()}


def _device_table(cuda: OfflineCuda) -> dict[str, Any]:
    gpu = cuda.gpu
    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": cuda.using(lambda: 0),
        "set_device": cuda.using(lambda: None),
        "device": _device_context(cuda),
        "device_of": _device_context(cuda),
        "get_device_name": cuda.using(lambda: gpu.device_name),
        "get_device_capability": cuda.using(lambda: gpu.capability),
        "get_device_properties": cuda.using(lambda: cuda.properties),
        "get_arch_list": lambda: [_arch_name(gpu)],
        "get_gencode_flags": lambda: "",
        "can_device_access_peer": lambda device, peer_device: False,
        "is_bf16_supported": lambda including_emulation=True: _has_bf16(gpu, including_emulation),
        "is_tf32_supported": lambda: gpu.backend == "cuda" and gpu.capability >= (8, 0),
        "init": cuda.use,
        "is_initialized": lambda: cuda.initialized,
        "synchronize": cuda.using(lambda: None),
        "utilization": cuda.using(lambda: 0),
        "clock_rate": cuda.using(lambda: gpu.clock_khz // 1000),
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda debug_mode: None,
    }


def _arch_name(gpu: GPU) -> str:
    return f"sm_{gpu.arch}" if gpu.backend == "cuda" else str(gpu.arch)


def _has_bf16(gpu: GPU, including_emulation: bool) -> bool:
    return gpu.backend != "cuda" or including_emulation or gpu.capability >= (8, 0)


def _device_context(cuda: OfflineCuda) -> type:
    class device:
        """Stands in for `torch.cuda.device` and `torch.cuda.device_of`: there is one device to choose."""

        def __init__(self, device: Any = None) -> None:
            if not hasattr(device, "untyped_storage"):  # device_of takes a tensor
                cuda.check(device)
            self.idx = 0

        def __enter__(self) -> None:
            cuda.use()

        def __exit__(self, *exc_info: object) -> None:
            return None

    return device


def _stream_table(cuda: OfflineCuda) -> dict[str, Any]:
    streams = cuda.streams

    def set_stream(stream: Stream | None) -> None:
        streams.current = stream or streams.current

    return {
        "Stream": Stream,
        "ExternalStream": _external_stream(),
        "Event": Event,
        "StreamContext": _stream_context(streams),
        "stream": lambda stream: StreamContext(stream, streams),
        "set_stream": set_stream,
        "current_stream": cuda.using(lambda: streams.current),
        "default_stream": cuda.using(lambda: streams.default),
        "is_current_stream_capturing": lambda: False,
    }


def _stream_context(streams: CurrentStream) -> type[StreamContext]:
    class Context(StreamContext):  # a class, as in torch: Dynamo asks isinstance(..., torch.cuda.StreamContext)
        def __init__(self, stream: Stream | None) -> None:
            super().__init__(stream, streams)

    return Context


def _external_stream() -> type[Stream]:
    class ExternalStream(Stream):
        """Stands in for `torch.cuda.ExternalStream`: the handle is the caller's."""

        def __init__(self, stream_ptr: int, device: object = None, **_: object) -> None:
            super().__init__(device)
            self.stream_id = stream_ptr

    return ExternalStream


def _memory_table(cuda: OfflineCuda) -> dict[str, Any]:
    """Memory is not tracked: nothing is allocated on a device, so everything but the reserve is free."""
    total = cuda.gpu.total_memory
    zeros = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved", "memory_cached")
    resets = ("reset_peak_memory_stats", "reset_accumulated_memory_stats", "reset_max_memory_allocated")
    return {
        **{name: cuda.using(lambda: 0) for name in (*zeros, "max_memory_cached", "device_memory_used", "memory_usage")},
        **{name: cuda.using(lambda: None) for name in (*resets, "reset_max_memory_cached")},
        "mem_get_info": cuda.using(lambda: (total - _RESERVED, total)),
        "memory_stats": cuda.using(Counter),  # any counter one asks for is 0
        "memory_stats_as_nested_dict": cuda.using(lambda: defaultdict(dict)),
        "memory_summary": lambda device=None, abbreviated=False: f"offline target {cuda.gpu.target}: not tracked",
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "get_allocator_backend": lambda: "native",
        "get_per_process_memory_fraction": lambda device=None: 1.0,
        "set_per_process_memory_fraction": lambda fraction, device=None: None,
    }


def _random_table() -> dict[str, Any]:
    """Draw the offline GPU's random numbers from the CPU's generator, which is the one torch.cuda's seeds set."""
    import torch

    generator = torch.default_generator
    return {
        "manual_seed": lambda seed: _seed(generator, seed),
        "manual_seed_all": lambda seed: _seed(generator, seed),
        "seed": lambda: _seed(generator, None),
        "seed_all": lambda: _seed(generator, None),
        "initial_seed": generator.initial_seed,
        "get_rng_state": lambda device="cuda": generator.get_state(),
        "get_rng_state_all": lambda: [generator.get_state()],
        "set_rng_state": lambda new_state, device="cuda": _set_state(generator, new_state),
        "set_rng_state_all": lambda new_states: _set_state(generator, new_states[0]),
    }


def _seed(generator: Any, seed: int | None) -> None:
    generator.seed() if seed is None else generator.manual_seed(int(seed))


def _set_state(generator: Any, state: Any) -> None:
    generator.set_state(state)


def _nvtx_table() -> dict[str, Any]:
    depth = [0]

    def push(msg: str) -> int:
        depth[0] += 1
        return depth[0] - 1

    def pop() -> int:
        depth[0] -= 1
        return depth[0]

    @contextmanager
    def range_(msg: str, *args: object, **kwargs: object) -> Iterator[None]:
        yield

    return {
        "nvtx.range_push": push,
        "nvtx.range_pop": pop,
        "nvtx.range_start": lambda msg: 0,
        "nvtx.range_end": lambda range_id: None,
        "nvtx.mark": lambda msg: None,
        "nvtx.range": range_,
    }


def accelerator_stand_ins(cuda: OfflineCuda) -> dict[str, Any]:
    """Return the table for `torch.accelerator`; most of it is torch.cuda's under another name."""
    import torch

    table = stand_ins(cuda)
    same = ("is_available", "device_count", "synchronize", "empty_cache", "current_stream", "set_stream")
    memory = ("memory_stats", "memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
    resets = ("reset_peak_memory_stats", "reset_accumulated_memory_stats")
    return {
        **{name: table[name] for name in (*same, *memory, *resets)},
        "current_accelerator": lambda check_available=False: torch.device("cuda"),
        "current_device_index": table["current_device"],
        "current_device_idx": table["current_device"],
        "set_device_index": table["set_device"],
        "set_device_idx": table["set_device"],
        "device_index": table["device"],
        "get_memory_info": table["mem_get_info"],
    }


def supported_names() -> list[str]:
    """Return the names in the table; they do not depend on the GPU."""
    return sorted(stand_ins(OfflineCuda(generic_gpu("cuda", 90))))
