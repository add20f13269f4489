"""Programs that compile with torch under armed monitors, each in a process of its own: `python torch_programs.py NAME`.

A program is a list of steps. Each step calls something and tells what it caused; the output is one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet

DYNAMO = "pytest_jitguard.monitors.dynamo:DynamoMonitor"
QUICK = {
    "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",  # worth it for many kernels; for a few it costs seconds
    "TORCHINDUCTOR_VEC_ISA_OK": "0",  # as do trial compiles for each set of vector instructions
    "TORCHINDUCTOR_COMPILE_THREADS": "2",
}
INDUCTOR = "pytest_jitguard.monitors.inductor:InductorMonitor"


class Ran:
    """What a program told."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told

    def step(self, name: str) -> Any:
        """One step."""
        return self.told["steps"][name]

    def seconds(self, name: str) -> float:
        """Seconds that a step took."""
        return float(self.step(name)["seconds"])

    def events(self, name: str) -> list[Any]:
        """All events of a step, parts included."""
        return list(self.step(name)["events"])

    def tops(self, name: str) -> list[Any]:
        """The events of a step that are part of no other."""
        return [event for event in self.events(name) if event["parent"] is None]

    def one(self, name: str) -> Any:
        """The only event of a step that is part of no other."""
        (event,) = self.tops(name)
        return event

    def parts(self, name: str, of: Any) -> list[Any]:
        """The parts of an event."""
        return [event for event in self.events(name) if event["parent"] == of["id"]]

    def component(self, name: str, component: str) -> list[str]:
        """A component of the key of a step's only event."""
        return next(list(cells) for cells in self.one(name)["key"] if cells[0] == component)


def run_program(name: str, folder: Path, *, programs: Path = Path(__file__), **environment: str) -> Ran:
    """Run a program in a process of its own, with caches in a folder, and return what it told."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JITGUARD", "TORCH", "TRITON"))}
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, str(programs), name],
        env={**clean, **caches, **QUICK, **environment, "PYTHONPATH": root},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return Ran(json.loads(run.stdout.splitlines()[-1]))


class Program:
    """Monitors armed before torch is imported, and the steps that ran under them."""

    def __init__(self, *names: str) -> None:
        self.records: list[Any] = []
        self.recorder = Recorder("program", self.records.append)
        self.monitors = MonitorSet(names, self.recorder)
        self.steps: dict[str, Any] = {}

    def step(self, name: str, action: Callable[[], Any], **more: Any) -> Any:
        """Run an action and keep its events, its seconds, and how it failed."""
        known, started, result = len(self.recorder.events), time.monotonic(), None
        try:
            result = action()
        except Exception as error:  # noqa: BLE001 - how it failed is what is told
            more["raised"] = type(error).__name__
            more["message"] = str(error)
        seconds = time.monotonic() - started
        self.monitors.settle()
        self.steps[name] = {"events": [_told(e) for e in self.recorder.events[known:]], "seconds": seconds, **more}
        return result

    def frames_over(self, calls: int, action: Callable[[], Any]) -> int:
        """Return how many Python frames of ours there are in so many calls."""
        frames = 0

        def count(frame: Any, what: str, argument: Any) -> None:
            nonlocal frames
            frames += what == "call" and "/pytest_jitguard/" in frame.f_code.co_filename

        def run() -> None:
            sys.setprofile(count)
            try:
                for _ in range(calls):
                    action()
            finally:
                sys.setprofile(None)

        self.step("hits", run)
        return frames

    def states(self) -> dict[str, str]:
        """Return what each monitor says of itself."""
        return {monitor.name: f"{monitor.state} {monitor.detail}".strip() for monitor in self.monitors}

    def finish(self, **more: Any) -> None:
        """Print everything."""
        self.monitors.prove()
        began = [r["event"] for r in self.records if r["record"] == "begin"]
        ended = [r["event"] for r in self.records if r["record"] == "end"]
        out = {"steps": self.steps, "states": self.states(), "unended": sorted(set(began) - set(ended)), **more}
        print("\n" + json.dumps(out, default=str))


def _told(event: Any) -> dict[str, Any]:
    key = [] if event.key is None else [[c.name, c.role, c.type, c.value] for c in event.key]
    told = {name: value for name, value in vars(event).items() if name not in ("key", "launch")}
    return {**told, "key": key, "seconds": event.seconds, "full_name": event.full_name}


# -- Dynamo, with a backend that compiles nothing ----------------------------------------------------------------------


def scale(x: Any, k: int = 2, flag: bool = True) -> Any:
    return x * k + 1 if flag else x - k


def broken(x: Any) -> Any:
    y = x + 1
    print("a graph break")
    return helper(y) * 2


def helper(y: Any) -> Any:
    return y.sin()


def unsupported(x: Any) -> Any:
    import torch

    with _Block():
        torch._dynamo.graph_break()
        return x + 1


class _Block:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def nothing(a: int) -> int:
    return a + 1


def made(number: int) -> Any:
    def inner(x: Any) -> Any:
        return x + number

    return inner


def dynamo() -> None:
    """First compiles, recompiles with their guards, limits, resets, breaks, failures."""
    p = Program(DYNAMO)
    p.monitors.arm()
    import torch

    ones = torch.ones
    globals()["compiled_scale"] = compiled = torch.compile(scale, backend="eager")
    p.step("first", lambda: compiled(ones(32)))
    p.step("hit", lambda: [compiled(ones(32)) for _ in range(5)])
    p.step("second size", lambda: compiled(ones(64)))
    p.step("any size", lambda: compiled(ones(100)))
    p.step("one", lambda: compiled(ones(1)))
    p.step("dtype", lambda: compiled(ones(9, dtype=torch.float64)))
    p.step("number", lambda: compiled(ones(9), 3))
    p.step("gradient", lambda: compiled(ones(9, requires_grad=True)))

    def without_gradient() -> None:
        with torch.no_grad():
            compiled(ones(9))

    p.step("mode", without_gradient)
    resident = sorted({name for monitor in p.monitors for name in monitor.resident().values()})
    torch._dynamo.reset()
    p.step("after reset", lambda: compiled(ones(32)))

    torch._dynamo.reset()
    static = torch.compile(scale, backend="eager", dynamic=False)
    p.step("static", lambda: [static(ones(32)), static(ones(64))])
    p.step("static other", lambda: static(ones(100)))

    torch._dynamo.reset()
    marked = ones(32)
    torch._dynamo.mark_dynamic(marked, 0)
    p.step("marked", lambda: static(marked))
    p.step("any size once marked", lambda: [static(ones(64)), static(ones(100))])

    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 3
    p.step("to the limit", lambda: [static(ones(n)) for n in (2, 3, 4)])
    p.step("limit", lambda: static(ones(5)))
    p.step("after the limit", lambda: static(ones(6)))
    whole = torch.compile(helper, backend="eager", dynamic=False, fullgraph=True)
    p.step("to the limit of one graph", lambda: [whole(ones(n)) for n in (2, 3, 4)])
    p.step("limit of one graph", lambda: whole(ones(5)))
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 8

    p.step("break", lambda: torch.compile(broken, backend="eager")(ones(3)))
    p.step("unsupported", lambda: torch.compile(unsupported, backend="eager")(ones(3)))
    p.step("nothing", lambda: torch.compile(nothing, backend="eager")(3))
    p.step("closure", lambda: torch.compile(made(1), backend="eager")(ones(3)))
    torch._dynamo.reset()
    p.step("one graph", lambda: torch.compile(broken, backend="eager", fullgraph=True)(ones(3)))

    def fails(graph: Any, inputs: Any) -> Any:
        raise ValueError("no backend today")

    p.step("backend", lambda: torch.compile(helper, backend=fails)(ones(3)))

    class Layer(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 3)

        def forward(self, x: Any) -> Any:
            return self.linear(x)

    layer = torch.compile(Layer(), backend="eager")
    p.step("module", lambda: layer(ones(2, 3)))
    p.step("module other", lambda: layer(ones(4, 3)))
    p.finish(resident=resident)


def threads() -> None:
    """Several threads that compile at once, a fork, frames on a hit, refusals, and everything put back."""
    p = Program(DYNAMO)
    import torch
    from torch._dynamo import convert_frame, eval_frame

    names = ("_compile", "get_and_maybe_log_recompilation_reasons", "exceeds_recompile_limit")
    before = [getattr(convert_frame, name) for name in names]
    p.monitors.arm()
    ones = torch.ones
    compiled = torch.compile(scale, backend="eager")
    p.step("first", lambda: compiled(ones(3)))

    functions = [torch.compile(made_apart(n), backend="eager") for n in range(4)]
    workers = [threading.Thread(target=f, args=(ones(3),), name=f"worker-{n}") for n, f in enumerate(functions)]

    def together() -> None:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    p.step("threads", together)

    same = ones(3)
    frames = p.frames_over(10_000, lambda: compiled(same))
    p.monitors.refuse(["dynamo"], on=True)
    p.step("refused", lambda: compiled(ones(4)))
    p.step("hit while refusing", lambda: compiled(ones(3)))
    p.step("refused on a thread", _on_a_thread(lambda: compiled(ones(4))))
    p.monitors.refuse(["dynamo"], on=False)
    p.step("not refused", lambda: compiled(ones(4)))
    stance = eval_frame._stance.stance

    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        p.recorder.renew("child", lambda record: None)
        compiled(ones(3, 3))
        os.write(writer, json.dumps([e.full_name for e in p.recorder.events]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    forked = json.loads(os.read(reader, 10_000))

    states = p.states()
    p.monitors.disarm()
    restored = [getattr(convert_frame, name) is it for name, it in zip(names, before, strict=True)]
    p.step("disarmed", lambda: compiled(ones(2, 2, 2)))
    p.finish(frames=frames, stance=stance, forked=forked, restored=restored, before_disarming=states)


def made_apart(number: int) -> Any:
    """Return a function with a code object of its own."""
    space: dict[str, Any] = {"__name__": "apart"}
    exec(compile(f"def apart_{number}(x):\n    return x * {number + 3}\n", f"apart_{number}.py", "exec"), space)
    return space[f"apart_{number}"]


def _on_a_thread(action: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        raised: list[BaseException] = []

        def target() -> None:
            try:
                action()
            except Exception as error:  # noqa: BLE001 - raised again where the thread is waited for
                raised.append(error)

        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
        if raised:
            raise raised[0]

    return run


def blind() -> None:
    """Ways in which the monitor is no longer reached, and ways in which it still is."""
    p = Program(DYNAMO)
    p.monitors.arm()
    import torch
    from torch._dynamo import convert_frame

    compiled = torch.compile(scale, backend="eager")
    ours = convert_frame._compile

    def chained(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    convert_frame._compile = chained
    p.step("chained", lambda: compiled(torch.ones(3)))
    states = {"chained": p.states()["dynamo"]}
    convert_frame._compile = ours.__wrapped__
    compiled(torch.ones(3, 3))
    convert_frame._compile = ours
    p.step("unseen", lambda: None)
    states["unseen"] = p.states()["dynamo"]

    other = Program(DYNAMO)
    other.monitors.arm()
    convert_frame._compile = ours.__wrapped__
    other.monitors.settle()
    states["replaced"] = other.states()["dynamo"]

    del convert_frame._compile
    gone = Program(DYNAMO)
    gone.monitors.arm()
    states["gone"] = gone.states()["dynamo"]
    p.finish(blind=states)


# -- Inductor ----------------------------------------------------------------------------------------------------------


def wave(x: Any, k: int = 2) -> Any:
    return (x * k + 1).sin()


def inductor() -> None:
    """Code generated or found, forward and backward, with Dynamo above and without, for the CPU."""
    p = Program(DYNAMO, INDUCTOR)
    p.monitors.arm()
    import torch

    ones = torch.ones
    compiled = torch.compile(wave)
    p.step("first", lambda: compiled(ones(32)))
    p.step("second size", lambda: compiled(ones(64)))
    p.step("any size", lambda: compiled(ones(100)))
    p.step("one", lambda: compiled(ones(1)))
    same = ones(64)
    frames = p.frames_over(10_000, lambda: compiled(same))
    torch._dynamo.reset()
    p.step("after reset", lambda: compiled(ones(32)))

    from torch._inductor.graph import GraphLowering

    def fails(*_: Any) -> Any:
        raise RuntimeError("the graph cannot be lowered")

    run, GraphLowering.run = GraphLowering.run, fails
    p.step("failed", lambda: torch.compile(sinking)(ones(3)))
    GraphLowering.run = run

    square = torch.compile(squares)
    x = ones(8, requires_grad=True)
    loss = p.step("forward", lambda: square(x))
    p.step("backward", lambda: loss.backward())

    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).parent
    graph, inputs = p.step("captured", lambda: captured(torch))
    if not (folder / "unpacked").exists():
        artifact = p.step("standalone", lambda: torch._inductor.standalone_compile(graph, inputs))
        artifact.save(path=str(folder / "unpacked"), format="unpacked")
        artifact.save(path=str(folder / "binary"))
    else:
        load = torch._inductor.CompiledArtifact.load
        p.step("binary", lambda: load(path=str(folder / "binary")))
        p.step("unpacked", lambda: load(path=str(folder / "unpacked"), format="unpacked"))
    p.finish(frames=frames)


def squares(x: Any) -> Any:
    return (x * x).sum()


def sinking(x: Any) -> Any:
    return x.cos() - 7


def captured(torch: Any) -> Any:
    """Return a graph and its inputs, as Dynamo hands them to a server's own backend."""
    handed: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        handed.append((graph, inputs))
        return graph

    torch.compile(lambda x: x.exp() * 5, backend=backend)(torch.ones(6))
    return handed[0]


def pool() -> None:
    """A real pool of compile workers, and everything put back."""
    p = Program(INDUCTOR)
    import torch._inductor.async_compile as async_compile
    import torch._inductor.compile_fx as compile_fx
    from torch._inductor.compile_worker.subproc_pool import SubprocPool
    from torch._inductor.runtime.coordinate_descent_tuner import CoordescTuner

    places: list[tuple[Any, str]] = [
        (compile_fx, "compile_fx"),
        (compile_fx, "_compile_fx_inner"),
        (compile_fx, "fx_codegen_and_compile"),
        (async_compile.AsyncCompile, "submit"),
        (SubprocPool, "submit"),
        (CoordescTuner, "autotune"),
    ]
    before = [vars(owner)[name] for owner, name in places]
    p.monitors.arm()
    import functools

    from torch._inductor.runtime.compile_tasks import _worker_compile_triton

    workers = async_compile.AsyncCompile.process_pool()
    p.step("ready", lambda: workers.submit(async_compile.AsyncCompile._get_ready).result(120))

    def job(source: str) -> list[str]:
        load = functools.partial(async_compile._load_triton_kernel_from_source, "triton_poi_fused_add_0", source)
        extra = {name: os.environ[name] for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
        kernel, _ = workers.submit(_worker_compile_triton, load, extra, {}).result(120)
        return [result.kernel.hash for result in kernel.compile_results]

    hashes = p.step("cold", lambda: job(TRITON_SOURCE))
    p.step("found on disk", lambda: job(TRITON_SOURCE + "# once more"))
    p.step("cannot be compiled", lambda: job(TRITON_SOURCE.replace("tl.load(in_ptr0", "tl.load(nowhere")))
    state = p.states()
    p.monitors.disarm()
    restored = [vars(owner)[name] is it for (owner, name), it in zip(places, before, strict=True)]
    p.step("disarmed", lambda: job(TRITON_SOURCE))
    workers.shutdown()
    p.finish(restored=restored, before_disarming=state, hashes=hashes)


TRITON_SOURCE = """
import triton
import triton.language as tl
from torch._inductor.runtime import triton_helpers, triton_heuristics
from torch._inductor.runtime.hints import DeviceProperties

triton_helpers.set_driver_to_gpu = lambda: None

GPU = DeviceProperties(
    type="cuda", index=0, multi_processor_count=132, cc=90, major=9, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, warp_size=32,
)

@triton_heuristics.pointwise(
    size_hints={"x": 4096},
    filename=__file__,
    triton_meta={
        "signature": {"in_ptr0": "*fp32", "out_ptr0": "*fp32", "xnumel": "i32", "XBLOCK": "constexpr"},
        "device": GPU,
        "constants": {},
        "configs": [{(0,): [["tt.divisibility", 16]], (1,): [["tt.divisibility", 16]]}],
    },
    inductor_meta={
        "grid_type": "Grid1D", "autotune_hints": set(), "kernel_name": "triton_poi_fused_add_0",
        "mutated_arg_names": [], "optimize_mem": True, "no_x_dim": False, "num_load": 1, "num_reduction": 0,
        "backend_hash": "", "autotune_local_cache": False, "autotune_pointwise": True, "autotune_remote_cache": None,
        "force_disable_caches": False, "dynamic_scale_rblock": True, "max_autotune": False, "spill_threshold": 16,
        "max_autotune_pointwise": False, "min_split_scan_rblock": 256, "store_cubin": False,
        "are_deterministic_algorithms_enabled": False, "assert_indirect_indexing": True,
    },
    min_elem_per_thread=0,
)
@triton.jit
def triton_poi_fused_add_0(in_ptr0, out_ptr0, xnumel, XBLOCK: tl.constexpr):
    index = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:]
    tl.store(out_ptr0 + index, tl.load(in_ptr0 + index, index < xnumel) + 1.0, index < xnumel)
"""
"""What Inductor writes for a GPU; Triton compiles it without one."""


if __name__ == "__main__":
    # By its name, so that what is pickled for a worker can be found there.
    import torch_programs as programs

    getattr(programs, sys.argv[1])()
