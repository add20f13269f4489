from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")

from pytest_jitguard.offline.cuda_table import accelerator_stand_ins, supported_names  # noqa: E402
from pytest_jitguard.offline.torch_cuda import unsupported_names  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Install

cuda = torch.cuda


def _enters(context: Any) -> bool:
    with context:
        return True


def _refuses_device_one(call: Callable[[Any], Any]) -> bool:
    for device in (1, "cuda:1", torch.device("cuda", 1)):
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            call(device)
    return True


def _times() -> bool:
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    start.record()
    end.record(cuda.current_stream())
    end.synchronize()
    end.wait()
    with pytest.raises(ValueError, match="enable_timing"):
        start.elapsed_time(cuda.Event())
    return bool(end.query() and start.elapsed_time(end) > 0 > end.elapsed_time(start))


def _switches_streams() -> bool:
    side = cuda.Stream(priority=-1)
    with cuda.stream(side) as entered:
        inside = cuda.current_stream()
    side.wait_stream(inside)
    side.wait_event(side.record_event())
    side.synchronize()
    return entered is side and inside == side != cuda.current_stream() and side.query()


def _draws_again() -> bool:
    state = cuda.get_rng_state()
    first = torch.rand(4, device="cuda")
    cuda.set_rng_state(state)
    return bool(torch.equal(first, torch.rand(4, device="cuda")))


def _draws_all_again() -> bool:
    states = cuda.get_rng_state_all()
    first = torch.rand(4, device="cuda")
    cuda.set_rng_state_all(states)
    return bool(torch.equal(first, torch.rand(4, device="cuda")))


def _seeds(seed: Callable[[int], None]) -> bool:
    seed(7)
    first = torch.rand(4, device="cuda")
    seed(7)
    return bool(torch.equal(first, torch.rand(4, device="cuda"))) and cuda.initial_seed() == 7


def _reseeds(seed: Callable[[], None]) -> bool:
    cuda.manual_seed(7)
    seed()
    return bool(cuda.initial_seed() != 7)


def _sets_stream() -> bool:
    side = cuda.Stream()
    cuda.set_stream(side)
    cuda.set_stream(None)
    return bool(cuda.current_stream() == side)


def _initializes() -> bool:
    before = cuda.is_initialized()
    cuda.init()
    return not before and cuda.is_initialized()


# One line for each supported call; the target is an H100.
CHECKS: dict[str, Callable[[], object]] = {
    "is_available": lambda: cuda.is_available() is True,
    "device_count": lambda: cuda.device_count() == 1,
    "current_device": lambda: cuda.current_device() == 0,
    "set_device": lambda: cuda.set_device("cuda:0") is None and _refuses_device_one(cuda.set_device),
    "device": lambda: _enters(cuda.device(0)) and _refuses_device_one(cuda.device),
    "device_of": lambda: _enters(cuda.device_of(torch.zeros(1, device="cuda"))),
    "get_device_name": lambda: cuda.get_device_name("cuda") == "NVIDIA H100 80GB HBM3",
    "get_device_capability": lambda: cuda.get_device_capability(torch.device("cuda:0")) == (9, 0),
    "get_device_properties": lambda: cuda.get_device_properties(0).multi_processor_count == 132,
    "get_arch_list": lambda: cuda.get_arch_list() == ["sm_90"],
    "get_gencode_flags": lambda: cuda.get_gencode_flags() == "",
    "can_device_access_peer": lambda: cuda.can_device_access_peer(0, 1) is False,
    "is_bf16_supported": lambda: cuda.is_bf16_supported() and cuda.is_bf16_supported(including_emulation=False),
    "is_tf32_supported": lambda: cuda.is_tf32_supported(),
    "init": _initializes,
    "is_initialized": lambda: cuda.is_initialized() is False,
    "synchronize": lambda: cuda.synchronize() is None and _refuses_device_one(cuda.synchronize),
    "utilization": lambda: cuda.utilization() == 0,
    "clock_rate": lambda: cuda.clock_rate() == 1980,
    "get_sync_debug_mode": lambda: cuda.get_sync_debug_mode() == 0,
    "set_sync_debug_mode": lambda: cuda.set_sync_debug_mode("warn") is None,
    "Stream": lambda: isinstance(cuda.Stream(device="cuda"), cuda.Stream) and cuda.Stream() != cuda.Stream(),
    "ExternalStream": lambda: cuda.ExternalStream(77).cuda_stream == 77,
    "Event": _times,
    "StreamContext": lambda: _enters(cuda.StreamContext(cuda.Stream())),
    "stream": _switches_streams,
    "set_stream": _sets_stream,
    "current_stream": lambda: cuda.current_stream().cuda_stream == 0 and cuda.current_stream().device.type == "cuda",
    "default_stream": lambda: cuda.default_stream() == cuda.current_stream(),
    "is_current_stream_capturing": lambda: cuda.is_current_stream_capturing() is False,
    "mem_get_info": lambda: 0 < cuda.mem_get_info()[0] < cuda.mem_get_info()[1] == 81079 << 20,
    "memory_stats": lambda: cuda.memory_stats()["allocated_bytes.all.peak"] == 0,
    "memory_stats_as_nested_dict": lambda: cuda.memory_stats_as_nested_dict()["allocated_bytes"] == {},
    "memory_summary": lambda: "not tracked" in cuda.memory_summary(),
    "empty_cache": lambda: cuda.empty_cache() is None,
    "ipc_collect": lambda: cuda.ipc_collect() is None,
    "get_allocator_backend": lambda: cuda.get_allocator_backend() == "native",
    "get_per_process_memory_fraction": lambda: cuda.get_per_process_memory_fraction() == 1.0,
    "set_per_process_memory_fraction": lambda: cuda.set_per_process_memory_fraction(0.5) is None,
    "manual_seed": lambda: _seeds(cuda.manual_seed),
    "manual_seed_all": lambda: _seeds(cuda.manual_seed_all),
    "seed": lambda: _reseeds(cuda.seed),
    "seed_all": lambda: _reseeds(cuda.seed_all),
    "initial_seed": lambda: cuda.initial_seed() == torch.initial_seed(),
    "get_rng_state": _draws_again,
    "set_rng_state": _draws_again,
    "get_rng_state_all": _draws_all_again,
    "set_rng_state_all": _draws_all_again,
    "nvtx.range_push": lambda: cuda.nvtx.range_push("outer") == 0 and cuda.nvtx.range_push("inner") == 1,
    "nvtx.range_pop": lambda: cuda.nvtx.range_push("a") == 0 and cuda.nvtx.range_pop() == 0,
    "nvtx.range_start": lambda: cuda.nvtx.range_start("a") is not None,
    "nvtx.range_end": lambda: cuda.nvtx.range_end(cuda.nvtx.range_start("a")) is None,
    "nvtx.mark": lambda: cuda.nvtx.mark("a") is None,
    "nvtx.range": lambda: _enters(cuda.nvtx.range("a {}", 1)),
}
for _name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved", "memory_cached"):
    CHECKS[_name] = lambda name=_name: getattr(cuda, name)() == 0  # type: ignore[misc]
for _name in ("max_memory_cached", "device_memory_used", "memory_usage"):
    CHECKS[_name] = lambda name=_name: getattr(cuda, name)("cuda:0") == 0  # type: ignore[misc]
for _name in ("reset_peak_memory_stats", "reset_accumulated_memory_stats", "reset_max_memory_allocated"):
    CHECKS[_name] = lambda name=_name: getattr(cuda, name)() is None  # type: ignore[misc]
CHECKS["reset_max_memory_cached"] = lambda: cuda.reset_max_memory_cached() is None


def test_every_supported_call_has_a_check() -> None:
    assert sorted(CHECKS) == supported_names()


@pytest.mark.parametrize("name", CHECKS)
def test_supported(offline: Install, name: str) -> None:
    offline("cuda:90")
    assert CHECKS[name]()


@pytest.mark.parametrize("name", unsupported_names())
def test_unsupported_raises_by_name(offline: Install, name: str) -> None:
    offline("cuda:90")
    with pytest.raises(NotImplementedError, match=rf"^torch\.cuda\.{name} is not available on .* target cuda:90:"):
        getattr(torch.cuda, name)()


def test_an_unsupported_class_stays_a_class(offline: Install) -> None:
    offline()
    assert not isinstance(3, torch.cuda.CUDAGraph)
    assert torch.cuda.CUDAGraph | None


def test_types_and_errors_are_left_alone(offline: Install) -> None:
    before = (torch.cuda.FloatTensor, torch.cuda.OutOfMemoryError, torch.cuda.HalfStorage)
    offline()
    assert before == (torch.cuda.FloatTensor, torch.cuda.OutOfMemoryError, torch.cuda.HalfStorage)


def test_the_modules_that_torch_cuda_is_made_of_agree_with_it(offline: Install) -> None:
    offline()
    assert torch.cuda.memory.memory_allocated is torch.cuda.memory_allocated
    assert torch.cuda.random.manual_seed is torch.cuda.manual_seed
    assert torch.cuda.streams.Stream is torch.cuda.Stream


@pytest.mark.parametrize("name", ["h20", "mi300x", "t4"])
def test_properties_of_a_named_gpu(offline: Install, name: str) -> None:
    gpu = offline(name).gpu
    properties = torch.cuda.get_device_properties("cuda")
    assert (properties.major, properties.minor) == torch.cuda.get_device_capability() == gpu.capability
    assert properties.name == torch.cuda.get_device_name() == gpu.device_name
    assert properties.shared_memory_per_block_optin == gpu.max_shared_mem
    assert properties.total_memory == gpu.total_memory
    assert properties.L2_cache_size == gpu.l2_cache
    assert properties.warp_size == gpu.warp_size


def test_amd_is_told_by_the_version_and_the_architectures_name(offline: Install) -> None:
    offline("mi300x")
    assert torch.version.hip
    assert torch.version.cuda is None
    assert torch.cuda.get_device_properties(0).gcnArchName == "gfx942:sramecc+:xnack-"
    assert torch.cuda.is_bf16_supported()


def test_nvidia_is_told_by_the_version(offline: Install) -> None:
    offline("h100")
    assert torch.version.cuda
    assert torch.version.hip is None


def test_old_nvidia_has_no_bf16_of_its_own(offline: Install) -> None:
    offline("t4")
    assert not torch.cuda.is_bf16_supported(including_emulation=False)


def test_looking_does_not_initialize_and_placing_does(offline: Install) -> None:
    offline()
    assert torch.cuda.is_available()
    assert torch.cuda.device_count()
    assert not torch.cuda.is_initialized()
    torch.zeros(1, device="cuda")
    assert torch.cuda.is_initialized()


def test_accelerator(offline: Install) -> None:
    offline()
    accelerator = torch.accelerator
    assert accelerator.is_available()
    assert accelerator.current_accelerator() == torch.device("cuda")
    assert (accelerator.device_count(), accelerator.current_device_index()) == (1, 0)
    assert accelerator.synchronize() is None
    assert accelerator.current_stream() == torch.cuda.current_stream()


def test_every_accelerator_call_that_this_torch_has_is_replaced(offline: Install) -> None:
    before = dict(vars(torch.accelerator))
    target = offline()
    assert target._torch is not None
    for name in accelerator_stand_ins(target._torch.cuda):
        assert name not in before or getattr(torch.accelerator, name) is not before[name]


def test_a_failed_install_leaves_nothing(offline: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_jitguard.offline.torch_cuda import TorchPart

    def fail(self: TorchPart) -> None:
        raise RuntimeError("halfway")

    monkeypatch.setattr(TorchPart, "_patch_python_callbacks", fail)
    is_available = torch.cuda.is_available
    with pytest.raises(RuntimeError, match="halfway"):
        offline()
    assert torch.cuda.is_available is is_available


def test_everything_is_put_back(offline: Install) -> None:
    is_available, load, generator = torch.cuda.is_available, torch.load, torch.Generator
    target = offline()
    assert torch.cuda.is_available is not is_available
    target.uninstall()
    assert torch.cuda.is_available is is_available
    assert (torch.load, torch.Generator) == (load, generator)
    assert torch.zeros(1).device.type == "cpu"


def test_installing_twice_is_installing_once(offline: Install) -> None:
    target = offline()
    stand_in = torch.cuda.is_available
    target.install_torch()
    target.install_triton()
    assert torch.cuda.is_available is stand_in
    assert len(torch.overrides._get_current_function_mode_stack()) == 1
