"""Inductor, real, on the CPU: code that is generated or found, C++ that is compiled or not, and a real worker pool."""

from __future__ import annotations

import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from torch_programs import DYNAMO, INDUCTOR, QUICK, Ran, run_program

from pytest_jitguard.contract import MonitorContract
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.kinship import COMPILE_WORKER, doubles_of
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet
from tests.conftest import GuardedRun

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes of this module keep what they compiled."""
    return tmp_path_factory.mktemp("inductor")


@pytest.fixture(scope="module")
def cold(folder: Path) -> Ran:
    """A process that finds nothing compiled."""
    return run_program("inductor", folder)


@pytest.fixture(scope="module")
def warm(cold: Ran, folder: Path) -> Ran:
    """A process that finds everything compiled that the first one kept."""
    return run_program("inductor", folder)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A process with a real pool of compile workers."""
    pytest.importorskip("triton")
    return run_program("pool", tmp_path_factory.mktemp("pool"))


@pytest.mark.tells("inductor", "compile", "name", "seconds", "parts")
def test_one_compile_is_one_event_with_parts(cold: Ran) -> None:
    dynamo = cold.one("first")
    (graph,) = cold.parts("first", dynamo)
    (library,) = cold.parts("first", graph)
    assert [event["system"] for event in (dynamo, graph, library)] == ["dynamo", "inductor", "inductor"]
    assert [event["kind"] for event in (dynamo, graph, library)] == ["compile"] * 3
    assert dynamo["full_name"] == graph["full_name"] == "torch_programs.wave"
    assert library["kernel"].endswith(".so")
    assert library["seconds"] < graph["seconds"] < dynamo["seconds"] <= cold.seconds("first")
    assert dynamo["artifact_hash"] == graph["artifact_hash"]
    assert dynamo["stages"] == {"inductor": pytest.approx(graph["seconds"])}
    assert cold.told["unended"] == []


@pytest.mark.tells("inductor", "hit", "no_frames")
def test_automatic_dynamic_shapes_and_the_one_that_they_leave_out(cold: Ran) -> None:
    assert cold.events("any size") == []
    event = cold.one("one")
    assert event["kind"] == "compile"
    assert "the guard 2 <= x.size()[0] failed" in event["reason"]
    assert (cold.told["frames"], cold.events("hits")) == (0, [])


@pytest.mark.tells("inductor", "cache_load")
def test_what_is_found_on_disk_is_a_load(warm: Ran) -> None:
    for step in ("first", "second size", "one", "forward"):
        event = warm.one(step)
        assert [part["kind"] for part in warm.events(step)] == ["cache_load"] * 2
        assert event["seconds"] <= warm.seconds(step)


def test_a_load_in_the_same_process_is_one_too(cold: Ran) -> None:
    assert [event["kind"] for event in cold.events("after reset")] == ["cache_load"] * 2


def test_the_binary_is_known_again(cold: Ran, warm: Ran) -> None:
    assert cold.one("first")["artifact_hash"]
    assert cold.one("first")["artifact_hash"] == warm.one("first")["artifact_hash"]


def test_a_late_backward_is_an_event_of_its_own(cold: Ran, warm: Ran) -> None:
    event = cold.one("backward")
    assert (event["kernel"], event["kind"]) == ("squares (backward)", "compile")
    assert event["module"] == "torch_programs"
    assert warm.events("backward") == []  # it came with the forward


@pytest.mark.tells("inductor", "failed")
def test_a_graph_that_cannot_be_lowered_is_a_failed_event(cold: Ran) -> None:
    assert [event["status"] for event in cold.events("failed")] == ["failed"] * 2
    assert "the graph cannot be lowered" in cold.events("failed")[1]["detail"]
    assert cold.step("failed")["raised"] == "InductorError"


@pytest.mark.tells("inductor", "key")
def test_a_server_s_own_backend_is_seen_without_dynamo(cold: Ran) -> None:
    event = cold.one("standalone")
    assert (event["system"], event["kind"], event["kernel"]) == ("inductor", "compile", "graph_exp_mul")
    assert [cells[1:] for cells in event["key"]] == [["argument", "float32", "[6]"]]


def test_a_saved_artifact_is_a_load_unless_a_compiler_runs_for_it(warm: Ran) -> None:
    binary, unpacked = warm.one("binary"), warm.one("unpacked")
    assert (binary["kernel"], binary["kind"]) == ("compiled_artifact", "cache_load")
    assert (unpacked["kernel"], unpacked["kind"]) == ("compiled_artifact", "compile")
    assert [part["kernel"].endswith(".so") for part in warm.parts("unpacked", unpacked)] == [True]
    assert binary["artifact_hash"] == unpacked["artifact_hash"] != ""


def test_nobody_is_blind_after_all_that(cold: Ran, warm: Ran) -> None:
    assert cold.told["states"] == warm.told["states"] == {"dynamo": "armed", "inductor": "armed"}


# -- the pool ----------------------------------------------------------------------------------------------------------


@pytest.mark.tells("inductor", "parts")
def test_a_job_of_the_pool_is_one_event_with_its_variants(pool: Ran) -> None:
    event = pool.one("cold")
    assert (event["kernel"], event["kind"], event["status"]) == ("triton_poi_fused_add_0", "compile", "ok")
    told = [event["artifact_hash"], *(part["artifact_hash"] for part in pool.parts("cold", event))]
    assert sorted(told) == sorted(pool.told["hashes"])
    assert len(told) > 1
    assert event["seconds"] <= pool.seconds("cold")


@pytest.mark.tells("inductor", "children")
def test_what_the_workers_report_themselves_is_counted_once(pool: Ran) -> None:
    here = [_event(e["artifact_hash"], "") for e in pool.events("cold")]
    there = [_event(hash, COMPILE_WORKER) for hash in pool.told["hashes"]]
    assert set(doubles_of([*here, *there])) == {event.id for event in there}


def _event(hash: str, role: str) -> CompileEvent:
    return CompileEvent(f"{role}-{hash}", "triton", "kernel", "", 0.0, artifact_hash=hash, role=role)


def test_a_job_that_finds_everything_is_a_load(pool: Ran) -> None:
    assert {event["kind"] for event in pool.events("found on disk")} == {"cache_load"}
    assert pool.one("found on disk")["artifact_hash"] == pool.one("cold")["artifact_hash"]


def test_a_job_that_fails_and_one_that_compiles_nothing(pool: Ran) -> None:
    event = pool.one("cannot be compiled")
    assert event["status"] == "failed"
    assert "nowhere is not defined" in event["detail"]
    assert pool.events("ready") == []


@pytest.mark.tells("inductor", "uninstall")
def test_it_leaves_no_trace(pool: Ran) -> None:
    assert set(pool.told["restored"]) == {True}
    assert pool.events("disarmed") == []


# -- what needs a GPU to happen, with the classes that it happens in ---------------------------------------------------


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules named as Inductor's, with as much in them as the monitor looks at; the real ones are tested on a GPU."""
    modules = {name: types.ModuleType(name) for name in _LATE}
    tuning, descent, trees = modules.values()

    class Launcher:
        def __init__(self, config: str) -> None:
            self.config = config

    class CachingAutotuner:
        inductor_meta: ClassVar[Any] = {"kernel_name": "triton_red_fused_sum_1"}

        def benchmark_all_configs(self, *args: Any) -> Any:
            if "fail" in args:
                raise RuntimeError("no config fits")
            return {Launcher("XBLOCK: 64"): 0.2, Launcher("XBLOCK: 128"): 0.1}

    class CoordescTuner:
        name = "triton_red_fused_sum_1"

        def autotune(self, function: Any, config: Any) -> Any:
            return f"{config}, num_warps: 8"

    class CUDAGraphTreeManager:
        id_to_compile_id: ClassVar[Any] = {7: "0/0", 8: "0/0", 9: "5/5"}
        id_to_mode: ClassVar[Any] = {8: types.SimpleNamespace(name="BACKWARD")}

        def get_func_name(self, function: int) -> str:
            return "call"

        def record_function(self, inputs: Any, function: int) -> Any:
            return inputs

    tuning.CachingAutotuner = CachingAutotuner  # type: ignore[attr-defined]
    descent.CoordescTuner = CoordescTuner  # type: ignore[attr-defined]
    trees.CUDAGraphTreeManager = CUDAGraphTreeManager  # type: ignore[attr-defined]
    compile_fx = types.ModuleType("torch._inductor.compile_fx")
    for name in ("compile_fx", "_compile_fx_inner", "fx_codegen_and_compile"):
        setattr(compile_fx, name, lambda *args, **kwargs: None)
    everything = {**modules, compile_fx.__name__: compile_fx}
    for name in [*everything, "torch._inductor.codecache", "torch._inductor.async_compile"]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name, module in everything.items():
        monkeypatch.setitem(sys.modules, name, module)
    return {"tuner": CachingAutotuner, "descent": CoordescTuner, "trees": CUDAGraphTreeManager}


_LATE = (
    "torch._inductor.runtime.triton_heuristics",
    "torch._inductor.runtime.coordinate_descent_tuner",
    "torch._inductor.cudagraph_trees",
)


@pytest.fixture
def armed(fakes: dict[str, Any]) -> Any:
    """Return a recorder and a monitor that is armed on the fakes."""
    recorder = Recorder("fakes", lambda record: None)
    monitors = MonitorSet([INDUCTOR], recorder)
    monitors.arm()
    yield recorder, monitors.named("inductor")
    monitors.disarm()
    assert not hasattr(fakes["tuner"].benchmark_all_configs, "__wrapped__")


def test_tuning_when_a_graph_runs_is_an_autotune_event(armed: Any, fakes: dict[str, Any]) -> None:
    recorder, _ = armed
    fakes["tuner"]().benchmark_all_configs(1, 2)
    assert fakes["descent"]().autotune(None, "XBLOCK: 128") == "XBLOCK: 128, num_warps: 8"
    with pytest.raises(RuntimeError, match="no config fits"):
        fakes["tuner"]().benchmark_all_configs("fail")
    assert [(e.kind, e.kernel, e.status, e.detail) for e in recorder.events] == [
        ("autotune", "triton_red_fused_sum_1", "ok", "chose XBLOCK: 128 of 2"),
        ("autotune", "triton_red_fused_sum_1", "ok", "coordinate descent chose XBLOCK: 128, num_warps: 8"),
        ("autotune", "triton_red_fused_sum_1", "failed", "RuntimeError: no config fits"),
    ]


def test_recording_a_cuda_graph_is_no_compile(armed: Any, fakes: dict[str, Any]) -> None:
    recorder, monitor = armed
    monitor._names["0/0"] = ("wave", "suite")
    for function in (7, 8, 9):
        assert fakes["trees"]().record_function([1], function) == [1]
    assert [(e.kind, e.full_name) for e in recorder.events] == [
        ("graph_capture", "suite.wave"),
        ("graph_capture", "suite.wave (backward)"),
        ("graph_capture", "call"),
    ]


def test_what_the_threads_of_max_autotune_compile_is_part_of_the_choice(
    fakes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("torch._inductor.select_algorithm")
    module.ThreadPoolExecutor = ThreadPoolExecutor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    recorder = Recorder("choices", lambda record: None)
    monitors = MonitorSet([INDUCTOR], recorder)
    monitors.arm()
    choice = recorder.begin("inductor", "graph", "")
    with recorder.inside(choice), module.ThreadPoolExecutor(2) as pool:
        candidates = [pool.submit(recorder.begin, "triton", f"mm_{n}", "").result() for n in range(3)]
    assert {event.parent for event in candidates} == {choice.id}
    monitors.disarm()
    assert module.ThreadPoolExecutor is ThreadPoolExecutor


@pytest.mark.tells("inductor", "blind")
def test_a_late_module_without_its_hook_point_makes_it_blind(fakes: dict[str, Any]) -> None:
    del sys.modules["torch._inductor.cudagraph_trees"].CUDAGraphTreeManager.record_function
    monitors = MonitorSet([INDUCTOR], Recorder("gone", lambda record: None))
    monitors.arm()
    monitor = monitors.named("inductor")
    assert monitor is not None
    assert (monitor.state, "record_function" in monitor.detail) == ("blind", True)
    monitors.disarm()


# -- guarded -----------------------------------------------------------------------------------------------------------

SUITE = """
    import torch

    def wave(x, k=2):
        return (x * k + 1).sin()

    compiled = torch.compile(wave)

    @pytest.fixture(scope="session", autouse=True)
    def warm():
        for size in (32, 64):
            compiled(torch.ones(size))

    def test_any_size():
        compiled(torch.ones(100))

    def test_one():
        compiled(torch.ones(1))
"""


def test_a_guarded_run_has_one_violation_that_names_the_guard(
    guarded: GuardedRun, cold: Ran, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is compiled there, with the same settings, needs no compiler.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    guarded.suite(SUITE)
    monitors = f"--jitguard-monitors={DYNAMO},{INDUCTOR}"
    guarded.run("--jitguard-guard=all", monitors, fake=False, timeout=240).assert_outcomes(passed=1, failed=1)
    assert guarded.violations("test_any_size") == []
    (violation,) = [each for each in guarded.violations("test_one") if each["parent"] is None]
    assert violation["system"] == "dynamo"
    assert "because the guard 2 <= x.size()[0] failed" in violation["message"].splitlines()[0]


# -- the contract ------------------------------------------------------------------------------------------------------


@pytest.mark.soak
class TestContract(MonitorContract):
    """What every monitor keeps; graphs without a C++ kernel, because those take seconds."""

    monitor = INDUCTOR
    requires = ("torch",)
    not_there: ClassVar[dict[str, str]] = {
        "alias": "below compile_fx, what a graph needs is looked up by name",
        "reset": "torch has none for Inductor, and Dynamo's does not concern it",
        "reload": "torch._inductor.compile_fx cannot be imported twice",
        "hide": "nothing is registered with Inductor",
        "sneak_in": "a compiled graph is held by who asked for it, and by nobody else",
    }
    _last: Any = None

    def environment(self, folder: Path) -> dict[str, str]:
        """Keep caches to ourselves, and start no pool; threads of OpenMP would not survive the forks of the checks."""
        alone = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"), "1")
        return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), **alone}

    def prepare(self) -> None:
        """Import what Inductor imports at its first compile."""
        compile_product(2)

    def compile_new(self) -> str:
        """Compile a product of matrices of a size that nobody has multiplied."""
        import torch

        size = 100 + self.number()
        compiled = compile_product(size)
        self._last = lambda: compiled(torch.ones(2, size), torch.ones(size, 2))
        self._last()
        return "graph_matmul"

    def repeat(self) -> None:
        """Multiply once more."""
        self._last()

    def fail(self) -> None:
        """Compile what no lowering knows."""
        import torch
        from torch._inductor.graph import GraphLowering

        def fails(*_: Any) -> Any:
            raise ValueError("the graph cannot be lowered")

        run, GraphLowering.run = GraphLowering.run, fails
        try:
            compile_product(100 + self.number())
        finally:
            GraphLowering.run = run
        assert torch

    def load_from_disk(self) -> None:
        """Compile a product of the same size in every process."""
        compile_product(99)


def compile_product(size: int) -> Any:
    """Compile a matrix product, by the way that servers go."""
    import torch
    from torch._inductor import standalone_compile
    from torch.fx import symbolic_trace

    graph = symbolic_trace(lambda x, y: (torch.matmul(x, y),))
    inputs = [torch.ones(2, size), torch.ones(size, 2)]
    with _ONE_AT_A_TIME:
        return standalone_compile(graph, inputs, dynamic_shapes="from_example_inputs")


_ONE_AT_A_TIME = threading.Lock()
"""Inductor keeps state of a compile in class attributes (`TritonBundler`, 2.13): Dynamo's lock is what protects it."""
