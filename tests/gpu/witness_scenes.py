"""What the CUPTI witness sees on a real GPU, scene by scene; `python -m tests.gpu.witness_scenes NAME`, in one process.

Each prints what it finds on the way, and as its last line a JSON object, which the test looks at.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.kinds import UNATTRIBUTED
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorError, MonitorSet, load
from pytest_jitguard.witness import _library, accounting, cupti
from pytest_jitguard.witness.images import image_of
from pytest_jitguard.witness.records import BEGAN, CALL, COMPILER, MODULE, Record
from tests.gpu import witness_forks

HERE = "pytest_jitguard.monitors"
OTHERS = (
    f"{HERE}.triton:TritonMonitor",
    f"{HERE}.dynamo:DynamoMonitor",
    f"{HERE}.inductor:InductorMonitor",
    f"{HERE}.nvrtc:TorchNvrtcMonitor",
)
WITNESS = "pytest_jitguard.witness.cupti:CuptiWitness"

PTX = b"""
.version 8.0
.target sm_80
.address_size 64
.visible .entry from_text_%d(.param .u64 p)
{
    .reg .b64 %%rd<3>;
    ld.param.u64 %%rd1, [p];
    cvta.to.global.u64 %%rd2, %%rd1;
    ret;
}
"""

SOURCE = """
extern "C" __global__ void %s(float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = x[i] * %d + sinf(x[i]);
}
"""


class Scene:
    """The witness and the monitors that exist, armed in this process."""

    def __init__(self, *names: str) -> None:
        self.recorder = Recorder("cafe0001", lambda record: None)
        self.monitors = MonitorSet([*filter(_can_be_had, names), WITNESS], self.recorder)
        self.monitors.arm()
        witness = self.monitors.named("cupti")
        assert isinstance(witness, cupti.CuptiWitness)
        self.witness = witness
        self.seen: list[accounting.Sighting] = []
        self._drain_aloud()

    def _drain_aloud(self) -> None:
        """Print every record as it is taken out."""
        gather = accounting.gather

        def aloud(records: list[Record], *rest: Any) -> accounting.Seen:
            for record in records:
                print(f"    {_line(record)}")
            seen = gather(records, *rest)
            self.seen += seen.sightings
            return seen

        accounting.gather = aloud  # type: ignore[assignment]

    def settle(self) -> None:
        self.monitors.settle()
        self.monitors.account()

    def mine(self) -> list[CompileEvent]:
        return [event for event in self.recorder.events if event.system == UNATTRIBUTED]

    def print_all(self) -> None:
        for monitor in self.monitors:
            print(f"  monitor {monitor.to_wire()}")
        for event in self.recorder.events:
            at = f"{event.started:.3f}..{event.ended or 0:.3f}"
            witnesses = ",".join(event.witnesses) or "-"
            print(
                f"  event {at} {event.system} {event.kind} {event.status} {event.kernel} [{event.thread}] {witnesses}"
            )

    def result(self, **more: Any) -> dict[str, Any]:
        self.print_all()
        told = [
            {"kernel": e.kernel, "kind": e.kind, "thread": e.thread, "detail": e.detail, "seconds": e.seconds}
            for e in self.mine()
        ]
        return {
            "state": self.witness.state,
            "detail": self.witness.detail,
            "activities": self.witness.library.activities if self.witness.library else None,
            "sightings": len(self.seen),
            "loads": sum(seen.image is not None for seen in self.seen),
            "accounted": self.witness.accounted,
            "lazy": self.witness.lazily_loaded,
            "unattributed": told,
            "monitors": {monitor.name: monitor.state for monitor in self.monitors},
            "corroborated": dict(Counter(e.system for e in self.recorder.events if "cupti" in e.witnesses)),
            **more,
        }


def _can_be_had(name: str) -> bool:
    try:
        load(name)
    except MonitorError as error:
        print(f"  skipped: {error}")
        return False
    return True


def _line(record: Record) -> str:
    at = f"{record.started:.4f} +{(record.ended - record.started) * 1e3:.1f} ms thread {record.thread}"
    if record.what == CALL:
        image = image_of(record.data, record.size)
        return f"call {record.call} {record.name} -> {record.result} {at} {image.kind} {image.size} {image.kernels[:2]}"
    if record.what == MODULE:
        image = image_of(record.data, record.size)
        return f"module in call {record.call} {at} {image.kind} {image.size} {image.kernels[:2]}"
    if record.what == BEGAN:
        return f"call {record.call} begins {at}"
    return f"{'compiler' if record.what == COMPILER else 'overhead'} {record.stage}/{record.operation} {at}"


def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def load_image(image: bytes) -> int:
    """Load an image past every framework; the driver's answer."""
    module = ctypes.c_void_p()
    return int(_driver().cuModuleLoadData(ctypes.byref(module), image))


def make_context() -> None:
    """Make the primary context of GPU 0 current, past every framework."""
    driver, context = _driver(), ctypes.c_void_p()
    assert driver.cuInit(0) == 0
    assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert driver.cuCtxSetCurrent(context) == 0


# -- when to subscribe -------------------------------------------------------------------------------------------------


def before_everything() -> dict[str, Any]:
    """The driver's library is there, but nobody has called it."""
    _driver()
    return _arm_and_load()


def after_torch_import() -> dict[str, Any]:
    """As in a guard: the witness waits for torch's import, and CUDA is initialised later."""
    scene = Scene()
    print(f"  before the import: {scene.witness.state}, libcuda {_library.mapped('libcuda.so') or 'is not loaded'}")
    import torch

    print(f"  after the import: {scene.witness.to_wire()}, libcuda {_library.mapped('libcuda.so') or 'is not loaded'}")
    print(f"  libcupti {_library.mapped('libcupti.so')}")
    assert not torch.cuda.is_initialized()
    return _load(scene)


def after_initialisation() -> dict[str, Any]:
    """CUDA runs already."""
    make_context()
    return _arm_and_load()


def asked_first() -> dict[str, Any]:
    """As in a guard: it asks whether the witness would be refused, which subscribes and leaves, then arms."""
    refusal = cupti.refusal()
    print(f"  refusal: {refusal!r}")
    return {**after_torch_import(), "refusal": refusal}


def _arm_and_load() -> dict[str, Any]:
    began = time.monotonic()
    scene = Scene()
    print(f"  armed in {time.monotonic() - began:.3f} s: {scene.witness.to_wire()}")
    return _load(scene)


def _load(scene: Scene) -> dict[str, Any]:
    make_context()
    answers = [load_image(PTX % number) for number in range(2)]
    scene.settle()
    return scene.result(answers=answers)


# -- monitors and witness ----------------------------------------------------------------------------------------------


def _triton_variants() -> None:
    import torch

    from tests.gpu.witness_kernels import scale, tuned

    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        x, y = torch.ones(4096, device="cuda", dtype=dtype), torch.empty(4096, device="cuda", dtype=dtype)
        for block in (64, 128, 256, 512):
            scale[(8,)](x, y, 1024, BLOCK=block)
        for n in (1, 1000, 1023):
            scale[(8,)](x, y, n, BLOCK=128)
    x, y = torch.ones(4096, device="cuda"), torch.empty(4096, device="cuda")
    for n in (1024, 1001):
        tuned[lambda meta, n=n: (triton_cdiv(n, meta["BLOCK"]),)](x, y, n)
    torch.cuda.synchronize()


def triton_cdiv(n: int, block: int) -> int:
    return -(-n // block)


def _inductor_functions() -> None:
    import torch

    def pointwise(x: Any) -> Any:
        return torch.sin(x) * 2 + x

    def reduction(x: Any) -> Any:
        return (x * x).sum(dim=-1)

    def softmax(x: Any) -> Any:
        return torch.softmax(x * 0.5, dim=-1)

    def norm(x: Any) -> Any:
        return torch.nn.functional.layer_norm(x, x.shape[-1:])

    x = torch.rand(256, 512, device="cuda")
    for function in (pointwise, reduction, softmax, norm):
        torch.compile(function, dynamic=False)(x)
    torch.compile(pointwise, dynamic=False)(x[:, :100].contiguous())
    torch.cuda.synchronize()


def _nvrtc_kernels() -> bool:
    import torch

    if not hasattr(torch.cuda, "_compile_kernel"):
        return False
    x = torch.ones(64, device="cuda")
    for number in range(4):
        name = f"by_nvrtc_{number}"
        kernel = torch.cuda._compile_kernel(SOURCE % (name, number + 2), name)
        kernel((1, 1, 1), (64, 1, 1), (x, 64))
    torch.cuda.synchronize()
    return True


def agreement() -> dict[str, Any]:
    """At least 30 compiles through monitored systems: all of them must be accounted for."""
    scene = Scene(*OTHERS)
    import torch

    scene.monitors.prove()
    torch.ones(8, device="cuda").add_(1)
    scene.settle()
    library = scene.witness.lazily_loaded
    for what in (_triton_variants, _nvrtc_kernels, _inductor_functions):
        before, unattributed = len(scene.seen), len(scene.mine())
        print(f"  {what.__name__}")
        what()
        scene.settle()
        print(f"  {what.__name__}: {len(scene.seen) - before} seen, {len(scene.mine()) - unattributed} unattributed")
    # Hits, and first uses of torch's own kernels, are nobody's compile.
    torch.rand(128, 128, device="cuda").cumsum(0).sort()
    _triton_variants()
    scene.settle()
    return scene.result(library_before=library)


def hidden() -> dict[str, Any]:
    """What no monitor sees, among what they see: each is unattributed, with size, time and thread."""
    scene = Scene(*OTHERS)
    import torch

    scene.monitors.prove()
    from tests.gpu.witness_kernels import scale, shift, unseen

    x, y = torch.ones(4096, device="cuda"), torch.empty(4096, device="cuda")
    scale[(8,)](x, y, 1024, BLOCK=128)
    compiled = shift[(8,)](x, y, 1024, BLOCK=128)
    torch.cuda.synchronize()
    scene.settle()
    marks = [time.monotonic()]
    before = len(scene.mine())

    def step(what: Callable[[], Any]) -> None:
        what()
        torch.cuda.synchronize()
        scene.settle()
        marks.append(time.monotonic())

    def on_a_thread() -> None:
        done = threading.Event()

        def work() -> None:
            make_context()
            load_image(PTX % 77)
            done.wait()

        thread = threading.Thread(target=work, name="hidden-worker")
        thread.start()
        time.sleep(1.0)
        scene.witness.flush()
        done.set()
        thread.join()

    def past_the_monitor() -> None:
        triton = scene.monitors.named("triton")
        assert triton is not None
        triton.uninstall()
        unseen[(8,)](x, y, 1024, BLOCK=128)

    step(lambda: load_image(PTX % 1))
    step(on_a_thread)
    step(lambda: load_image(compiled.asm["cubin"]))  # the name of a kernel that was accounted for
    step(lambda: torch.erfinv(torch.rand(64, device="cuda")))
    step(lambda: torch.special.i1e(torch.rand(64, device="cuda", dtype=torch.float64)))
    step(past_the_monitor)
    at = [event.started for event in scene.mine()[before:]]
    return scene.result(before=before, at=at, marks=marks, cubin=len(compiled.asm["cubin"]))


# -- other processes, other users of CUPTI -----------------------------------------------------------------------------


def forked() -> dict[str, Any]:
    """A child forked before CUDA was used, from a process with a witness: it sees modules, and nothing hangs."""
    witness_forks.limit_scene()
    _driver()
    scene = Scene()
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        witness_forks.limit_child()
        scene.recorder.renew("cafe0002", lambda record: None)
        print(f"  in the child: {scene.witness.to_wire()}", flush=True)
        try:
            told = _load(scene)
        except BaseException as error:  # noqa: BLE001 - the parent must hear of it
            told = {"state": "failed", "detail": repr(error)}
        os.write(writing, json.dumps(told).encode())
        sys.stdout.flush()
        os._exit(0)
    os.close(writing)
    ended = witness_forks.wait(pid)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    child = json.loads(text) if text else {"state": ended}
    print(f"  in the parent: {scene.witness.to_wire()}", flush=True)
    print(f"  the child: {child}")
    return {**_load(scene), "child": child}


def _fork_variant(name: str) -> dict[str, Any]:
    def load() -> list[int]:
        make_context()
        return [load_image(PTX % number) for number in range(2)]

    return witness_forks.play(name, load)


def forked_after_use() -> dict[str, Any]:
    """A child forked after CUDA was used cannot use it; nothing must hang."""
    witness_forks.limit_scene()
    make_context()
    scene = Scene()
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        witness_forks.limit_child()
        scene.recorder.renew("cafe0002", lambda record: None)
        scene.settle()
        os.write(writing, json.dumps(scene.witness.to_wire()).encode())
        os._exit(0)
    os.close(writing)
    ended = witness_forks.wait(pid)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    child = json.loads(text) if text else {"state": ended}
    return {**_load(scene), "child": child}


def profiled() -> dict[str, Any]:
    """torch.profiler holds CUPTI: refused. Then the witness does, and the profiler gets no CUDA events."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    x = torch.ones(8, device="cuda")
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as first:
        x.add_(1)
        torch.cuda.synchronize()
        refused = cupti.refusal()
    print(f"  while it profiles: {refused!r}")
    after = cupti.refusal()
    print(f"  when it is over: {after!r}")
    scene = Scene()
    print(f"  armed: {scene.witness.to_wire()}")
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as second:
        x.add_(1)
        torch.cuda.synchronize()
    counts = [sum("cuda" in str(e.device_type).lower() for e in p.events()) for p in (first, second)]
    print(f"  CUDA events of the profiler: {counts[0]} without the witness, {counts[1]} with it")
    return {**_load(scene), "refused": refused, "after": after, "profiler_events": counts}


def left() -> dict[str, Any]:
    """After the witness has left nothing is recorded, and another may come."""
    make_context()
    scene = Scene()
    library = scene.witness.library
    assert library is not None
    scene.monitors.disarm()
    load_image(PTX % 5)
    library.flush()
    records = len(library.take())
    again = Scene()
    return {**_load(again), "records_after_leaving": records}


def threads() -> dict[str, Any]:
    """Many threads load at once: nothing is lost, nothing hangs."""
    make_context()
    scene = Scene()

    def work(number: int) -> None:
        make_context()
        for step in range(10):
            load_image(PTX % (1000 + 100 * number + step))

    workers = [threading.Thread(target=work, args=(number,), name=f"worker-{number}") for number in range(8)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        scene.witness.flush()
    scene.settle()
    return scene.result()


SCENES: dict[str, Callable[[], dict[str, Any]]] = {
    scene.__name__: scene
    for scene in (
        before_everything,
        after_torch_import,
        after_initialisation,
        asked_first,
        agreement,
        hidden,
        forked,
        forked_after_use,
        profiled,
        left,
        threads,
    )
} | {name: functools.partial(_fork_variant, name) for name in witness_forks.VARIANTS}


if __name__ == "__main__":
    result = SCENES[sys.argv[1]]()
    print(json.dumps(result), flush=True)
    sys.exit(0)
