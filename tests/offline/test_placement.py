from __future__ import annotations

import copy
import io
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

numpy = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from pytest_jitguard.offline import OfflineResultWarning, OfflineTarget, parse_target  # noqa: E402
from pytest_jitguard.offline.marks import forget_warnings  # noqa: E402

from . import kernels  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Install

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")

WAYS_TO_THE_GPU: dict[str, Callable[[], Any]] = {
    "device=": lambda: torch.ones(4, device="cuda"),
    "device=index": lambda: torch.ones(4, device=0),
    "device=object": lambda: torch.randn(4, device=torch.device("cuda:0")),
    ".cuda()": lambda: torch.ones(4).cuda(),
    ".cuda(0)": lambda: torch.ones(4).cuda(0, non_blocking=True),
    ".to(text)": lambda: torch.ones(4).to("cuda"),
    ".to(text, dtype)": lambda: torch.ones(4).to("cuda", torch.float16),
    ".to(device=)": lambda: torch.ones(4).to(device="cuda:0", non_blocking=True),
    ".to(index)": lambda: torch.ones(4).to(0),
    ".to(tensor)": lambda: torch.ones(4).to(torch.ones(1, device="cuda")),
    "pinned": lambda: torch.ones(4).pin_memory().to("cuda", non_blocking=True),
    "view": lambda: torch.ones(4, 4, device="cuda")[1:].T.reshape(-1)[2:],
    "operation": lambda: torch.ones(4, device="cuda") * 2 + 1,
    "list of tensors": lambda: torch.cat([torch.ones(2, device="cuda"), torch.ones(2, device="cuda")]),
    "several results": lambda: torch.topk(torch.ones(4, device="cuda"), 2).indices,
    "like": lambda: torch.empty_like(torch.ones(4, device="cuda")),
    "like on the GPU": lambda: torch.empty_like(torch.ones(4), device="cuda"),
    "new": lambda: torch.ones(4, device="cuda").new_zeros(3),
    "another's device": lambda: torch.zeros(4, device=torch.ones(1, device="cuda").device),
    "as_tensor": lambda: torch.as_tensor([1, 2], device="cuda"),
    "parameter": lambda: torch.nn.Parameter(torch.ones(4, device="cuda")),
    "module(device=)": lambda: torch.nn.Linear(2, 2, device="cuda").weight,
    "module.cuda()": lambda: torch.nn.Linear(2, 2).cuda().weight,
    "module.to()": lambda: torch.nn.Linear(2, 2).to("cuda", torch.float16).weight,
    "module.to(text)": lambda: torch.nn.Linear(2, 2).to("cuda").weight,
    "module.to(object)": lambda: torch.nn.Linear(2, 2).to(torch.device("cuda")).weight,
    "module.to(device=)": lambda: torch.nn.Linear(2, 2).to(device="cuda").weight.data,
    "module.to_empty()": lambda: torch.nn.Linear(2, 2, device="meta").to_empty(device="cuda").weight,
    "module's output": lambda: torch.nn.Linear(2, 2, device="cuda")(torch.ones(1, 2, device="cuda")),
    "generator": lambda: torch.rand(4, device="cuda", generator=torch.Generator(device="cuda")),
    "detach": lambda: torch.ones(4, device="cuda", requires_grad=True).detach(),
    "deepcopy": lambda: copy.deepcopy(torch.ones(4, device="cuda")),
    "attention": lambda: torch.nn.functional.scaled_dot_product_attention(*[torch.ones(1, 2, 4, 8, device="cuda")] * 3),
    "in place": lambda: torch.ones(4, device="cuda").add_(torch.ones(4, device="cuda")),
}


@pytest.mark.parametrize("placement", ["cpu", "meta"])
@pytest.mark.parametrize("way", WAYS_TO_THE_GPU)
def test_on_the_gpu(offline: Install, way: str, placement: str) -> None:
    offline(placement=placement)
    tensor = WAYS_TO_THE_GPU[way]()
    assert tensor.is_cuda
    assert tensor.device == GPU
    assert tensor.get_device() == 0
    assert not tensor.is_cpu
    assert not tensor.is_meta


WAYS_ON_THE_HOST: dict[str, Callable[[], Any]] = {
    "default": lambda: torch.ones(4),
    "device=": lambda: torch.ones(4, device="cpu"),
    ".cpu()": lambda: torch.ones(4, device="cuda").cpu(),
    ".to()": lambda: torch.ones(4, device="cuda").to("cpu", torch.float16),
    "like": lambda: torch.zeros_like(torch.ones(4, device="cuda"), device="cpu"),
    "copy_": lambda: torch.zeros(4).copy_(torch.ones(4, device="cuda")),
    "operation": lambda: torch.ones(4) + 1,
    "view like one on the GPU": lambda: torch.ones(4).view_as(torch.ones(2, 2, device="cuda")),
    "pinned": lambda: torch.ones(4, pin_memory=True),
}


@pytest.mark.parametrize("way", WAYS_ON_THE_HOST)
def test_on_the_host(offline: Install, way: str) -> None:
    offline()
    tensor = WAYS_ON_THE_HOST[way]()
    assert tensor.device == CPU
    assert not tensor.is_cuda
    assert tensor.is_cpu


def test_crossing_copies_in_both_directions(offline: Install) -> None:
    offline()
    host = torch.zeros(4)
    device = host.cuda()
    device.add_(1)
    assert host.sum().item() == 0
    back = device.cpu()
    back.add_(1)
    assert device.sum().item() == 4
    assert device.to("cuda") is device
    assert not host.is_cuda


def test_as_tensor_crosses_too(offline: Install) -> None:
    offline()
    host = torch.zeros(4)
    assert torch.as_tensor(host, device="cuda").is_cuda
    assert not host.is_cuda
    array = numpy.zeros(4)
    torch.as_tensor(array, device="cuda").add_(1)
    assert array.sum() == 0
    device = torch.zeros(4, device="cuda")
    assert not torch.as_tensor(device, device="cpu").is_cuda
    assert device.is_cuda


def test_arithmetic_is_real_on_the_cpu(offline: Install) -> None:
    offline()
    assert (torch.arange(4, device="cuda") @ torch.arange(4, device="cuda")).item() == 14


def test_default_device(offline: Install) -> None:
    offline()
    with torch.device("cuda"):
        assert torch.ones(2).device == torch.nn.Linear(2, 2).bias.device == GPU
        assert torch.ones(2, device="cpu").device == CPU
    torch.set_default_device("cuda")
    try:
        assert torch.ones(2).device == torch.get_default_device() == GPU
        assert torch.nn.functional.one_hot(torch.tensor([1])).device == GPU
    finally:
        torch.set_default_device(None)
    assert torch.ones(2).device == CPU


def test_pinned_memory_is_remembered(offline: Install) -> None:
    offline()
    assert torch.ones(4).pin_memory().is_pinned()
    assert torch.ones(4, pin_memory=True).is_pinned()
    assert not torch.ones(4).is_pinned()


def test_generator(offline: Install) -> None:
    offline()
    generator = torch.Generator(device="cuda")
    assert generator.device == GPU
    assert torch.Generator().device == CPU
    assert isinstance(torch.default_generator, torch.Generator)
    first = torch.rand(3, device="cuda", generator=generator.manual_seed(3))
    assert torch.equal(first, torch.rand(3, device="cuda", generator=generator.manual_seed(3)))


def test_autocast_gives_the_gpus_types(offline: Install) -> None:
    offline()
    x = torch.ones(2, 2, device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.is_autocast_enabled("cuda")
        assert (x @ x).dtype == torch.bfloat16
    with torch.amp.autocast("cuda", enabled=False):
        assert (x @ x).dtype == torch.float32
    assert (x @ x).dtype == torch.float32


@pytest.mark.parametrize("placement", ["cpu", "meta"])
def test_checkpoints(offline: Install, placement: str) -> None:
    offline(placement=placement)
    file = io.BytesIO()
    torch.save({"a": torch.ones(4), "b": [torch.zeros(2, 2)]}, file)
    file.seek(0)
    assert not torch.load(file)["a"].is_cuda
    file.seek(0)
    loaded = torch.load(file, map_location="cuda")
    assert loaded["a"].device == loaded["b"][0].device == GPU
    file.seek(0)
    assert torch.load(file, map_location="cpu")["a"].device == CPU


class OwnRun(threading.Thread):
    def run(self) -> None:
        self.seen = torch.ones(1, device="cuda").device


def test_threads_see_the_gpu(offline: Install) -> None:
    offline()
    seen: list[Any] = []
    plain = threading.Thread(target=lambda: seen.append(torch.ones(1, device="cuda").device))
    own = OwnRun()
    for thread in (plain, own):
        thread.start()
        thread.join()
        assert "run" not in vars(thread)
    with ThreadPoolExecutor(1) as pool:
        pooled = pool.submit(lambda: torch.ones(1, device="cuda").device).result()
    assert [*seen, own.seen, pooled] == [GPU, GPU, GPU]
    with pytest.raises(RuntimeError, match="only be started once"):
        own.start()


def test_a_thread_that_outlives_the_target_has_a_mode_that_does_nothing(offline: Install) -> None:
    begun, done = threading.Event(), threading.Event()
    seen: list[Any] = []

    def work() -> None:
        seen.append(torch.ones(1, device="cuda").device)
        begun.set()
        done.wait(10)
        seen.append(torch.ones(1).device)
        seen.append(len(torch.overrides._get_current_function_mode_stack()))  # still on this thread's stack

    target = offline()
    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(10)
    target.uninstall()
    done.set()
    thread.join()
    assert seen == [GPU, CPU, 1]


def test_a_mode_entered_later_does_not_hinder_removal(offline: Install) -> None:
    class Other(torch.overrides.TorchFunctionMode):  # type: ignore[misc, name-defined]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    target = offline()
    with Other():
        target.uninstall()
        assert len(torch.overrides._get_current_function_mode_stack()) == 1
    assert not torch.overrides._get_current_function_mode_stack()


def test_custom_operators_run_their_python_code_for_cuda(offline: Install) -> None:
    offline()
    library = torch.library.Library("jitguard_test", "DEF")
    library.define("double(Tensor x) -> Tensor")
    library.impl("double", lambda x: torch.empty(4, device="cuda").fill_(2) * x, "CUDA")
    library.impl("double", lambda x: torch.empty_like(x), "Meta")
    x = torch.ones(4, device="cuda")
    assert torch.ops.jitguard_test.double(x).sum().item() == 8
    assert torch.ops.jitguard_test.double.default(x).device == GPU
    library._destroy()


def test_backward_of_a_custom_function_sees_the_gpu(offline: Install) -> None:
    offline()
    seen: list[Any] = []

    class Double(torch.autograd.Function):  # type: ignore[misc, name-defined]
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            seen.extend([gradient.device, torch.ones(1, device="cuda").device])
            return gradient * 2

    x = torch.ones(4, device="cuda", requires_grad=True)
    Double.apply(x).sum().backward()
    assert seen == [GPU, GPU]
    assert x.grad.device == GPU


def test_a_model_larger_than_memory_fits_on_meta(offline: Install) -> None:
    offline("h200", "meta")
    weight = torch.empty(400_000, 400_000, dtype=torch.bfloat16, device="cuda")  # 320 GB
    out = torch.ones(1, 400_000, dtype=torch.bfloat16, device="cuda") @ weight
    assert (out.shape, out.device) == ((1, 400_000), GPU)
    copy = kernels.make_copy()
    copy[(1,)](weight, out, 1000, BLOCK=64)
    assert len(copy.device_caches[0][0]) == 1


READS: dict[str, Callable[[Any], object]] = {
    "item": lambda x: x[0].item(),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "copy_": lambda x: torch.empty(64).copy_(x),
    "bool": lambda x: bool(x[0]),
    "int": lambda x: int(x[0]),
    "float": lambda x: float(x[0]),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "derived": lambda x: (x * 2).sum().item(),
    "assert_close": lambda x: torch.testing.assert_close(x, x.clone()),
    "numpy": lambda x: x.numpy(),
}


@pytest.mark.parametrize("read", READS)
def test_reading_what_a_kernel_should_have_written_is_warned_about(offline: Install, read: str) -> None:
    offline()
    source, target = torch.ones(64, device="cuda"), torch.zeros(64, device="cuda")
    kernels.make_copy()[(1,)](source, target, 64, BLOCK=64)
    with pytest.warns(
        OfflineResultWarning, match=r"shape \(.*passed to the offline launch of .*copy: kernels do not run"
    ):
        READS[read](target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        READS[read](source)  # only read by the kernel
        READS[read](target)  # once per place


def test_the_warning_is_at_the_callers_line(offline: Install) -> None:
    offline()
    target = torch.zeros(64, device="cuda")
    kernels.make_copy()[(1,)](target, target, 64, BLOCK=64)
    with pytest.warns(OfflineResultWarning) as caught:
        target.sum().item()
    assert caught[0].filename == __file__
    assert caught[0].lineno == test_the_warning_is_at_the_callers_line.__code__.co_firstlineno + 5


def test_printing_is_not_reading(offline: Install) -> None:
    offline()
    target = torch.zeros(64, device="cuda")
    kernels.make_copy()[(1,)](target, target, 64, BLOCK=64)
    assert "0." in repr(target)


@pytest.mark.parametrize("read", ["item", "tolist", "cpu", "to", "copy_", "bool", "int", "float", "equal", "numpy"])
def test_there_are_no_values_on_meta(offline: Install, read: str) -> None:
    offline(placement="meta")
    with pytest.raises(RuntimeError, match="placed on 'meta' and have no values"):
        READS[read](torch.ones(64, device="cuda"))


def test_writes_are_told_from_reads_through_loops(offline: Install) -> None:
    offline()
    x, y, out = (torch.zeros(256, device="cuda") for _ in range(3))
    count = torch.zeros(1, dtype=torch.int32, device="cuda")
    kernels.add_in_loop[(1,)](x, y, out, count, 256, BLOCK=64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert x.sum().item() == y.sum().item() == 0
    for written in (out, count):
        with pytest.warns(OfflineResultWarning):
            written.sum().item()
        forget_warnings()


def test_each_target_warns_anew(offline: Install) -> None:
    def warned() -> int:
        out = torch.zeros(64, device="cuda")
        kernels.make_copy()[(1,)](torch.ones(64, device="cuda"), out, 64, BLOCK=64)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                out.sum().item()
        return len(caught)

    target = offline()
    assert (warned(), warned()) == (1, 0)
    target.uninstall()
    offline()
    assert warned() == 1


def test_nothing_is_kept_alive(offline: Install) -> None:
    import gc
    import weakref

    offline()
    target = torch.zeros(64, device="cuda")
    kernels.make_copy()[(1,)](target, target, 64, BLOCK=64)
    storage = weakref.ref(target.untyped_storage())
    del target
    gc.collect()
    assert storage() is None


def test_an_unknown_placement_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown placement 'disk' of offline tensors; accepted: cpu, meta"):
        OfflineTarget(parse_target("h100"), "disk")  # type: ignore[arg-type]
