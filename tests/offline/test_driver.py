from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from pytest_jitguard.offline.driver import kernel_name  # noqa: E402

from . import kernels  # noqa: E402

if TYPE_CHECKING:
    from .conftest import Install


def gpu_tensor(size: int = 1024, dtype: Any = torch.float32) -> Any:
    return torch.zeros(size, dtype=dtype, device="cuda")


def variants(kernel: Any) -> int:
    return len(kernel.device_caches[0][0])


@pytest.mark.parametrize(
    ("target", "binary"),
    [
        ("cuda:75", "cubin"),
        ("cuda:80", "cubin"),
        ("cuda:90", "cubin"),
        ("cuda:100", "cubin"),
        ("cuda:103", "cubin"),
        ("cuda:120", "cubin"),
        ("hip:gfx90a", "hsaco"),
        ("hip:gfx942", "hsaco"),
        ("hip:gfx950", "hsaco"),
        ("hip:gfx1100", "hsaco"),
        ("hip:gfx1250", "hsaco"),
    ],
)
def test_a_launch_compiles_down_to_the_binary(offline: Install, target: str, binary: str) -> None:
    offline(target)
    compiled = kernels.make_copy()[(2,)](gpu_tensor(), gpu_tensor(), 1000, BLOCK=128)
    assert compiled.asm[binary][:4] == b"\x7fELF"
    assert f"{compiled.metadata.target.backend}:{compiled.metadata.target.arch}" == target


def test_the_kernel_does_not_run(offline: Install) -> None:
    offline()
    source, target = torch.ones(64, device="cuda"), torch.zeros(64, device="cuda")
    kernels.make_copy()[(1,)](source, target, 64, BLOCK=64)
    assert torch.sum(source).item() == 64


def test_keys_are_specialised_as_on_the_device(offline: Install) -> None:
    offline()
    copy, x, y = kernels.make_copy(), gpu_tensor(), gpu_tensor()
    copy[(1,)](x, y, 1000, BLOCK=64)
    copy[(4,)](x[16:], y[4:], 1001, BLOCK=64)  # still 16-byte aligned; 1000 and 1001 are both not divisible by 16
    assert variants(copy) == 1
    copy[(1,)](x[1:], y, 1000, BLOCK=64)  # not aligned
    copy[(1,)](x, y, 1024, BLOCK=64)  # divisible by 16
    copy[(1,)](x, y, 1, BLOCK=64)
    copy[(1,)](x, y, 2**31, BLOCK=64)
    assert variants(copy) == 5


@pytest.mark.parametrize("placement", ["cpu", "meta"])
def test_alignment_of_a_slice_is_seen_in_either_placement(offline: Install, placement: str) -> None:
    offline(placement=placement)
    copy, x, y = kernels.make_copy(), gpu_tensor(), gpu_tensor()
    for start in (0, 1, 2, 3, 4):
        copy[(1,)](x[start:], y, 1000, BLOCK=64)
    assert variants(copy) == 2


def test_launches_are_counted_by_the_functions_own_name(offline: Install) -> None:
    target = offline()
    copy = kernels.make_copy()
    name = f"{kernels.__name__}.make_copy.<locals>.copy"
    for _ in range(3):
        copy[(1,)](gpu_tensor(), gpu_tensor(), 1000, BLOCK=64)
    assert target.launches() == {name: 3}
    copy[(0,)](gpu_tensor(), gpu_tensor(), 1000, BLOCK=64)  # an empty grid launches nothing on a device either
    assert target.launches() == {name: 3}
    copy.warmup(gpu_tensor(), gpu_tensor(), 1000, BLOCK=64, grid=(1,))
    assert target.launches() == {name: 3}


def test_a_source_without_a_function_is_counted_by_its_own_name() -> None:
    class IRSource:
        name = "from_ir"

    assert kernel_name(IRSource()) == "from_ir"


def test_launch_hooks_are_called_as_by_the_c_launcher(offline: Install) -> None:
    offline()
    seen: list[tuple[str, Any]] = []

    def enter(metadata: Any) -> None:
        seen.append(("enter", metadata.get()["name"]))

    def leave(metadata: Any) -> None:
        seen.append(("exit", metadata.get()["stream"]))

    triton.knobs.runtime.launch_enter_hook.add(enter)
    triton.knobs.runtime.launch_exit_hook.add(leave)
    try:
        kernels.make_copy()[(1,)](gpu_tensor(), gpu_tensor(), 1000, BLOCK=64)
    finally:
        triton.knobs.runtime.launch_enter_hook.remove(enter)
        triton.knobs.runtime.launch_exit_hook.remove(leave)
    assert seen == [("enter", "copy"), ("exit", 0)]


def test_autotune_compiles_each_configuration_and_takes_the_first(offline: Install) -> None:
    target = offline()
    tuned = kernels.make_tuned()
    tuned[(1,)](gpu_tensor(), gpu_tensor(), 1000)
    assert tuned.best_config.kwargs == {"BLOCK": 64}
    assert variants(tuned.fn) == 2
    tuned[(1,)](gpu_tensor(), gpu_tensor(), 1000)
    assert list(target.launches().values()) == [4]  # two benchmarks, two launches


def test_autotune_results_are_kept_on_disk(offline: Install) -> None:
    target = offline()
    kernels.make_tuned(cache_results=True)[(1,)](gpu_tensor(), gpu_tensor(), 3000)
    again = kernels.make_tuned(cache_results=True)
    before = sum(target.launches().values())
    again[(1,)](gpu_tensor(), gpu_tensor(), 3000)
    assert sum(target.launches().values()) == before + 1


def test_autotune_timings_are_distinct_and_the_first_wins(offline: Install) -> None:
    offline()
    bench = triton.runtime.driver.active.get_benchmarker()
    calls: list[int] = []
    first = bench(lambda: calls.append(1), quantiles=(0.5, 0.2, 0.8))
    second = bench(lambda: calls.append(2), quantiles=(0.5, 0.2, 0.8))
    assert len(first) == 3
    assert first[0] < second[0]
    assert calls == [1, 2]


def test_heuristics(offline: Install) -> None:
    offline()
    kernel = kernels.make_heuristic()
    for n in (64, 65, 128, 129):
        kernel[(1,)](gpu_tensor(), gpu_tensor(), n)
    assert variants(kernel.fn) == 2


def test_do_bench_ends_soon(offline: Install) -> None:
    offline()
    calls: list[int] = []
    assert triton.testing.do_bench(lambda: calls.append(1)) > 0
    assert len(calls) < 20


def test_out_of_resources_follows_the_gpus_shared_memory(offline: Install) -> None:
    tile: dict[str, Any] = {"M": 256, "N": 128, "K": 64, "STEPS": 8, "num_warps": 8}  # 192 KiB
    half, out = {"dtype": torch.float16}, 256 * 128

    def launch() -> None:
        kernels.big_tiles.device_caches.clear()
        kernels.big_tiles[(1,)](gpu_tensor(1 << 18, **half), gpu_tensor(1 << 18, **half), gpu_tensor(out), **tile)

    target = offline("h100")
    launch()
    target.uninstall()
    offline("rtx5090")
    with pytest.raises(triton.runtime.errors.OutOfResources, match="Hardware limit: 101376"):
        launch()


def test_a_tensor_descriptor_is_an_argument(offline: Install) -> None:
    from triton.tools.tensor_descriptor import TensorDescriptor

    offline()
    descriptor = TensorDescriptor.from_tensor(torch.zeros(64, 64, dtype=torch.float16, device="cuda"), [32, 32])
    compiled = kernels.descriptor_argument[(1,)](descriptor, gpu_tensor(1024, torch.float16), SIZE=32)
    assert "cp.async.bulk.tensor" in compiled.asm["ptx"]


def test_a_descriptor_made_on_the_device_needs_an_allocator_here_too(offline: Install) -> None:
    offline()
    source, target = gpu_tensor(4096, torch.float16), gpu_tensor(1024, torch.float16)
    with pytest.raises(RuntimeError, match="no allocator was set"):
        kernels.descriptor_on_device[(1,)](source, target, SIZE=32)
    asked: list[int] = []

    def allocate(size: int, alignment: int, stream: int | None) -> Any:
        asked.append(size)
        return torch.empty(size, dtype=torch.int8, device="cuda")

    from triton.runtime import _allocation

    token = _allocation._allocator.set(allocate)
    try:
        kernels.descriptor_on_device[(3,)](source, target, SIZE=32)
    finally:
        _allocation._allocator.reset(token)
    assert asked
    assert asked[0] % 3 == 0


@pytest.mark.parametrize(("target", "warp"), [("cuda:90", 32), ("hip:gfx942", 64)])
def test_gluon(offline: Install, target: str, warp: int) -> None:
    installed = offline(target)
    kernels.gluon_copy.device_caches.clear()
    kernels.gluon_copy[(1,)](gpu_tensor(), gpu_tensor(), BLOCK=256, WARP=warp)
    assert installed.launches() == {f"{kernels.__name__}.gluon_copy": 1}


def test_async_compile_mode(offline: Install) -> None:
    offline()
    copy, x, y = kernels.make_copy(), gpu_tensor(), gpu_tensor()
    with ThreadPoolExecutor(2) as pool, triton.AsyncCompileMode(pool):
        copy.warmup(x, y, 1000, BLOCK=256, grid=(1,))
        copy.warmup(x, y, 1024, BLOCK=256, grid=(1,))
    copy[(1,)](x, y, 1000, BLOCK=256)
    assert variants(copy) == 2


@pytest.mark.parametrize(("target", "active"), [("cuda:90", "nvidia"), ("hip:gfx942", "amd")])
def test_exactly_one_backend_is_active_for_those_who_ask_themselves(offline: Install, target: str, active: str) -> None:
    from triton.backends import backends

    offline(target)
    assert [name for name, backend in backends.items() if backend.driver.is_active()] == [active]
    assert triton.runtime.driver.default is triton.runtime.driver.active
    triton.runtime.driver.reset_active()
    assert triton.runtime.driver.active.get_current_target().backend == target.partition(":")[0]


def test_device_figures_under_tritons_names(offline: Install) -> None:
    offline("h20")
    figures = triton.runtime.driver.active.utils.get_device_properties(0)
    assert figures["multiprocessor_count"] == 78
    assert figures["max_shared_mem"] == 232448


def test_a_kernel_of_a_removed_target_is_unloaded_and_does_not_launch(offline: Install) -> None:
    target = offline()
    copy, x, y = kernels.make_copy(), gpu_tensor(), gpu_tensor()
    compiled = copy[(1,)](x, y, 1000, BLOCK=64)
    launcher = compiled.run
    target.uninstall()
    assert compiled.module is None
    with pytest.raises(RuntimeError, match="compiled for the offline target cuda:90, which is gone"):
        launcher(1, 1, 1, 0, 0, None, None, None, None)


def test_a_driver_set_by_somebody_else_is_left_alone(offline: Install) -> None:
    target = offline()
    theirs = object()
    previous = triton.runtime.driver._default
    triton.runtime.driver.set_active(theirs)
    target.uninstall()
    assert triton.runtime.driver._active is theirs
    triton.runtime.driver.set_active(None)
    assert triton.runtime.driver._default is not previous


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # torch's, upon Triton's own look
def test_triton_alone_works_without_the_torch_part(offline: Install) -> None:
    from pytest_jitguard.offline import OfflineTarget, parse_target

    target = OfflineTarget(parse_target("cuda:80"))
    target.install_triton()
    try:
        copy = kernels.make_copy()
        copy[(1,)](torch.zeros(64), torch.zeros(64), 64, BLOCK=64)
        with torch._subclasses.fake_tensor.FakeTensorMode():
            copy[(1,)](torch.zeros(64), torch.zeros(64), 64, BLOCK=64)
        copy[(1,)](torch.zeros(64, device="meta"), torch.zeros(64, device="meta"), 64, BLOCK=64)
        assert variants(copy) == 1
        assert triton.testing.do_bench(lambda: None) > 0
    finally:
        target.uninstall()


def test_the_package_imports_neither_torch_nor_triton_nor_pytest() -> None:
    code = """
import importlib, pkgutil, sys
import pytest_jitguard.offline as package
for module in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f"{package.__name__}.{module.name}")
print(sorted({"torch", "triton", "pytest"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
