"""NVRTC by its three doors, with real compiles: it needs no driver."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from armed import armed

from pytest_jitguard.contract import MonitorContract, module_with
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.explain import Background, explain
from pytest_jitguard.monitors._cuda_source import kernel_name, kernels_in_image, kernels_in_source, key_of

NVRTC = "pytest_jitguard.monitors.nvrtc:NvrtcMonitor"
CORE = "pytest_jitguard.monitors.nvrtc:CudaCoreMonitor"
TORCH = "pytest_jitguard.monitors.nvrtc:TorchNvrtcMonitor"
ARCH = b"--gpu-architecture=sm_90"


def source(kernel: str) -> str:
    return f'extern "C" __global__ void {kernel}(float* x, int n) {{ if (threadIdx.x < n) x[0] += 1; }}'


def program(text: str, name: bytes = b"") -> Any:
    from cuda.bindings import nvrtc

    code, made = nvrtc.nvrtcCreateProgram(text.encode(), name, 0, None, None)
    assert int(code) == 0
    return made


def compile_program(made: Any, *options: bytes) -> int:
    from cuda.bindings import nvrtc

    (code,) = nvrtc.nvrtcCompileProgram(made, len(options), list(options))
    return int(code)


ALWAYS_COLD = {
    "load_from_disk": "nothing is cached on disk that a caller could tell from a compile",
    "reset": "there is no reset",
    "hide": "there is nothing to hide but the function itself, see put_back",
    "sneak_in": "nothing becomes resident",
}
"""What does not exist for NVRTC."""


@pytest.mark.tells("nvrtc", "compile", "name", "seconds", "key", "threads", "uninstall", "blind", "no_frames")
class TestContractOfTheBindings(MonitorContract):
    monitor = NVRTC
    requires = ("cuda.bindings",)
    not_there: ClassVar[Mapping[str, str]] = {
        **ALWAYS_COLD,
        "fail": "NVRTC returns a code and raises nothing, see below",
        "reload": "a module in C is not made anew by a reload",
        "renamed": "the name is the C library's",
    }

    def compile_new(self) -> str:
        name = f"kernel_{self.number()}"
        self.made = program(source(name), b"file.cu")
        assert compile_program(self.made, ARCH) == 0
        return name

    def repeat(self) -> None:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcGetCUBINSize(self.made)

    def alias(self) -> Any:
        caller = module_with("from cuda.bindings.nvrtc import nvrtcCompileProgram as build")
        made = program(source(f"kernel_{self.number()}"))
        return lambda: caller.build(made, 1, [ARCH])


@pytest.mark.tells("cuda_core", "compile", "name", "seconds", "failed", "threads", "uninstall", "blind", "no_frames")
class TestContractOfCudaCore(MonitorContract):
    monitor = CORE
    requires = ("cuda.core",)
    not_there: ClassVar[Mapping[str, str]] = {
        **ALWAYS_COLD,
        "reload": "a module in C is not made anew by a reload",
        "renamed": "the caller is in C: nothing can be renamed in it",
    }

    def compile_new(self) -> str:
        from cuda.core import Program, ProgramOptions

        name = f"kernel_{self.number()}"
        self.made = Program(source(name), "c++", ProgramOptions(arch="sm_90", name="file")).compile("cubin")
        return name

    def repeat(self) -> None:
        assert self.made.code

    def alias(self) -> Any:
        from cuda.core import Program, ProgramOptions

        caller = module_with("from cuda.core._program import _program_compile_uncached as build")
        made = Program(source(f"kernel_{self.number()}"), "c++", ProgramOptions(arch="sm_90"))
        return lambda: caller.build(made, "cubin", None, None)

    def fail(self) -> None:
        from cuda.core import Program, ProgramOptions

        Program("garbage!", "c++", ProgramOptions(arch="sm_90")).compile("cubin")


@pytest.mark.tells("torch_nvrtc", "compile", "name", "seconds", "failed", "threads", "uninstall", "blind", "no_frames")
class TestContractOfTorch(MonitorContract):
    """torch's own code and a real NVRTC; a CPU build of torch has no handle of the library, so it is given one."""

    monitor = TORCH
    requires = ("torch", "cuda.bindings")
    not_there: ClassVar[Mapping[str, str]] = {
        **ALWAYS_COLD,
        "reload": "torch.cuda registers types with C++ that it cannot register twice",
    }

    def prepare(self) -> None:
        give_torch_nvrtc()

    def compile_new(self) -> str:
        name = f"kernel_{self.number()}"
        self.made = compile_by_torch(name)
        return name

    def repeat(self) -> None:
        assert self.made

    def alias(self) -> Any:
        caller = module_with("from torch.cuda._utils import _nvrtc_compile as build")
        name = f"kernel_{self.number()}"
        return lambda: caller.build(source(name), name, "90")

    def fail(self) -> None:
        from torch.cuda import _utils

        _utils._nvrtc_compile("garbage!", "kernel", "90")


def give_torch_nvrtc() -> None:
    import torch.utils.cpp_extension
    from cuda.bindings import nvrtc

    nvrtc.nvrtcVersion()  # loads the library
    path = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libnvrtc.so" in line)
    torch.cuda._utils._get_gpu_rtc_library = lambda: ctypes.CDLL(path)
    torch.utils.cpp_extension.include_paths = lambda device: []


def compile_by_torch(name: str, **more: Any) -> Any:
    """Do what `torch.cuda._compile_kernel` does before it loads the result, which takes a driver."""
    import torch

    try:
        return torch.cuda._compile_kernel(source(name), name, compute_capability="90", **more)
    except (RuntimeError, OSError) as error:
        if "cuda" not in str(error).lower():
            raise
        return error


def cause_of(served: CompileEvent, *warmed: CompileEvent) -> str:
    return explain(served, Background(warmed=warmed)).cause


# -- the bindings ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bindings() -> Any:
    return pytest.importorskip("cuda.bindings.nvrtc")


@pytest.mark.tells("nvrtc", "failed")
def test_a_refused_program_is_a_failed_event_and_its_caller_gets_the_code(bindings: Any) -> None:
    bare = compile_program(program("garbage!", b"bad.cu"))
    with armed(NVRTC) as watch:
        assert compile_program(program("garbage!", b"bad.cu")) == bare != 0
        (event,) = watch.news()
    assert (event.status, event.kernel) == ("failed", "bad")
    assert event.detail.startswith("NVRTC_ERROR_COMPILATION: bad.cu(1): error:")


@pytest.mark.tells("nvrtc", "key", "name")
def test_templates_are_told_by_their_arguments(bindings: Any) -> None:
    text = "template <typename T, int N> __global__ void scale(T* x) { x[0] *= N; }"
    with armed(NVRTC) as watch:
        for expression in (b"scale<float, 2>", b"scale<double, 2>"):
            made = program(text, b"default_program")
            bindings.nvrtcAddNameExpression(made, expression)
            assert compile_program(made, ARCH, b"-DUNROLL=4", b"-I/somewhere", b"--std=c++17") == 0
        first, second = watch.news()
    assert (first.kernel, second.kernel) == ("scale", "scale")
    assert first.key is not None
    told = {part.name: (part.role, part.value) for part in first.key}
    assert told["template arguments"] == ("constexpr", "float, 2")
    assert told["UNROLL"] == ("constexpr", "4")
    assert told["arch"] == ("target", "sm_90")
    assert told["std"] == ("option", "c++17")
    assert not any("somewhere" in part.value for part in first.key)
    assert first.artifact_hash != second.artifact_hash


def test_the_same_program_is_compiled_at_every_call_and_is_the_same(bindings: Any) -> None:
    with armed(NVRTC) as watch:
        made = program(source("again"))
        assert [compile_program(made, ARCH), compile_program(made, ARCH)] == [0, 0]
        first, second = watch.news()
    assert first.kind == second.kind == "compile"
    assert (first.artifact_hash, first.key) == (second.artifact_hash, second.key)
    assert (first.reason, "NVRTC keeps none" in second.reason) == ("", True)


@pytest.mark.tells("nvrtc", "blind")
def test_a_function_that_had_the_compile_before_the_guard_is_named(bindings: Any) -> None:
    build = bindings.nvrtcCompileProgram

    def has_it(made: Any) -> Any:
        return build(made, 1, [ARCH])

    del bindings
    with armed(NVRTC) as watch:
        watch.monitors.prove()
        assert watch.monitor.state == "unproven"
        assert "nvrtcCompileProgram was taken by name before the guard" in watch.monitor.detail
        assert f"{__name__}.{has_it.__qualname__}" in watch.monitor.detail


def test_arguments_by_name_are_understood(bindings: Any) -> None:
    with armed(NVRTC) as watch:
        _, made = bindings.nvrtcCreateProgram(
            src=source("named").encode(), name=b"", numHeaders=0, headers=None, includeNames=None
        )
        bindings.nvrtcCompileProgram(prog=made, numOptions=1, options=[ARCH])
        (event,) = watch.news()
    assert event.kernel == "named"
    assert event.key is not None
    assert "arch" in {part.name for part in event.key}


def test_programs_that_are_never_compiled_do_not_pile_up(bindings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_jitguard.monitors.nvrtc._MOST_PROGRAMS", 3)
    with armed(NVRTC) as watch:
        kept = [program(source(f"kernel_{number}")) for number in range(5)]
        assert len(watch.monitor._programs) == 3  # type: ignore[attr-defined]
        compile_program(kept[0], ARCH)
        compile_program(kept[-1], ARCH)
        forgotten, known = watch.news()
    assert (forgotten.kernel, known.kernel) == ("unnamed program", "kernel_4")
    assert watch.monitor.state != "blind"


# -- cuda.core ---------------------------------------------------------------------------------------------------------


@pytest.mark.tells("cuda_core", "key", "hit")
def test_loads_from_a_callers_program_cache_are_no_compiles() -> None:
    pytest.importorskip("cuda.core")
    from cuda.core import Program, ProgramOptions
    from cuda.core.utils import InMemoryProgramCache

    cache = InMemoryProgramCache()
    with armed(CORE, NVRTC) as watch:
        for _ in range(2):
            Program(source("cached"), "c++", ProgramOptions(arch="sm_90")).compile("cubin", cache=cache)
        (event,) = watch.all_news()  # and none of the bindings' monitor: it is called past
    assert (event.system, event.kernel) == ("cuda_core", "cached")
    assert event.key is not None
    assert {part.name: part.value for part in event.key} == {"output": "cubin", "compiler": "NVRTC"}


@pytest.mark.tells("cuda_core", "reason")
def test_a_program_of_cuda_core_that_is_compiled_again_says_what_its_key_does_not() -> None:
    pytest.importorskip("cuda.core")
    from cuda.core import Program, ProgramOptions

    text = 'extern "C" __global__ void divide(float* x) { x[0] /= x[1]; }'
    with armed(CORE) as watch:
        for fast in (False, True, False):
            Program(text, "c++", ProgramOptions(arch="sm_90", use_fast_math=fast)).compile("cubin")
        warmed, other, same = watch.news()
    assert warmed.reason == ""
    assert "with other options, which cuda.core does not show" in cause_of(other, warmed)
    assert cause_of(same, warmed).startswith("this very binary was made before")


# -- torch -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch_with_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    utils = pytest.importorskip("torch.cuda._utils")
    extension = pytest.importorskip("torch.utils.cpp_extension")
    monkeypatch.setattr(utils, "_get_gpu_rtc_library", utils._get_gpu_rtc_library)
    monkeypatch.setattr(extension, "include_paths", extension.include_paths)
    give_torch_nvrtc()


@pytest.mark.tells("torch_nvrtc", "key", "name")
@pytest.mark.usefixtures("torch_with_nvrtc")
def test_a_kernel_of_torch_has_key_and_cure() -> None:
    with armed(TORCH) as watch:
        options = ["-DTILE=8"]
        compile_by_torch("tiled", nvcc_options=options)
        (event,) = watch.news()
    assert (event.system, event.kernel, event.status) == ("torch_nvrtc", "tiled", "ok")
    assert event.key is not None
    told = {part.name: part.value for part in event.key}
    assert (told["arch"], told["TILE"]) == ("sm_90", "8")
    assert "keep the kernel that it returns" in event.cure
    assert event.stack[0].startswith(__file__)


@pytest.mark.tells("torch_nvrtc", "reason")
@pytest.mark.usefixtures("torch_with_nvrtc")
def test_a_kernel_of_torch_that_is_compiled_again_is_told_by_what_changed() -> None:
    with armed(TORCH) as watch:
        for options in (["-DTILE=8"], ["-DTILE=16"], ["-DTILE=8", "--use_fast_math"], ["-DTILE=8"]):
            compile_by_torch("tiled", nvcc_options=options)
        warmed, macro, option, same = watch.news()
    assert cause_of(macro, warmed) == "TILE 8 → 16"
    assert cause_of(option, warmed) == "use_fast_math absent → on"
    why = "this very kernel was compiled before, and torch keeps none: each call compiles it anew"
    assert cause_of(same, warmed) == why


def test_a_torch_that_cannot_compile_kernels_is_not_called_blind(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    for name in ("_compile_kernel", "compile_kernel"):
        monkeypatch.delattr(torch.cuda, name, raising=False)
    monkeypatch.delattr(torch.cuda._utils, "_nvrtc_compile")
    with armed(TORCH) as watch:
        watch.monitors.settle()
        assert watch.monitor.state == "unproven"


# -- sources and images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kernels"),
    [
        ("__global__ void a(int* x) {}", ("a",)),
        ("__global__ void __launch_bounds__(256, MIN(1, 2)) a(int* x) {}", ("a",)),
        ("__launch_bounds__(256) __global__ void a(int* x) {}", ("a",)),
        ("// __global__ void old(int* x)\n/* __global__ void older(int*) */ __global__ void a(int* x) {}", ("a",)),
        ("template <int N> __global__ static void a(int* x) { f(x); }\n__global__ void b();", ("a", "b")),
        ("__global__ void a(int* x);\n__global__ void a(int* x) {}", ("a",)),
        (b"__global__ void a(int* x) {}", ("a",)),
        ("__device__ int f(int x) { return x; }", ()),
        ("", ()),
    ],
)
def test_kernels_are_found_in_sources(text: object, kernels: tuple[str, ...]) -> None:
    assert kernels_in_source(text) == kernels


def test_kernels_are_found_in_ptx() -> None:
    assert kernels_in_image(b".visible .entry scale(\n.param") == ("scale",)


@pytest.mark.parametrize(
    ("expressions", "kernels", "file", "name"),
    [
        (["&scale<float>"], (), "", "scale"),
        (["scale<float>", "scale<double>"], (), "", "scale"),
        (["ns::scale<float>"], ("scale",), "x.cu", "ns::scale"),
        ([], ("a",), "x.cu", "a"),
        ([], ("a", "b"), "/tmp/x.cu", "x"),
        ([], ("a", "b"), "default_program", "a"),
        ([], (), b"", "unnamed program"),
    ],
)
def test_a_program_is_named_by_its_kernel_or_its_file(
    expressions: list[str], kernels: tuple[str, ...], file: object, name: str
) -> None:
    assert kernel_name(expressions, kernels, file) == name


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-arch", "sm_90"], {"arch": "sm_90"}),
        (["-arch=compute_90"], {"arch": "compute_90"}),
        (["--offload-arch=gfx942"], {"arch": "gfx942"}),
        (["-DN"], {"N": "1"}),
        (["-D", "N=2"], {"N": "2"}),
        (["--define-macro=N=3"], {"N": "3"}),
        (["-I/x", "-I", "/y", "--include-path=/z"], {}),
        (["--use_fast_math"], {"use_fast_math": "on"}),
    ],
)
def test_options_become_a_key(options: list[str], told: Mapping[str, str]) -> None:
    assert {part.name: part.value for part in key_of(options)} == told


def test_the_test_module_brings_no_library() -> None:
    """The contract's processes load this file before the library, and look for that."""
    assert "cuda.bindings.nvrtc" not in vars(sys.modules[__name__])
