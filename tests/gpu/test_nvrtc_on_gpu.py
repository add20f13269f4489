"""NVRTC on a real GPU: torch's compiled kernels, the bindings, CuPy, and the jiterator, which has no hook in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.heavy.process import in_process

pytestmark = pytest.mark.gpu

TORCH = "pytest_jitguard.monitors.nvrtc:TorchNvrtcMonitor"
BINDINGS = "pytest_jitguard.monitors.nvrtc:NvrtcMonitor"
CUPY = "pytest_jitguard.monitors.cupy:CupyMonitor"


@pytest.mark.tells("torch_nvrtc", "compile", "hit", "name", "seconds", "no_frames")
def test_a_kernel_of_torch_is_compiled_once_and_launched_for_nothing(tmp_path: Path) -> None:
    told = in_process(
        """
        import time, torch

        SOURCE = 'extern "C" __global__ void scale(float* x, int n) { if (threadIdx.x < n) x[threadIdx.x] *= 2; }'
        x = torch.ones(32, device="cuda")
        with armed(MONITOR) as watch:
            watch.monitors.prove()
            began = time.monotonic()
            kernel = torch.cuda._compile_kernel(SOURCE, "scale")
            whole = time.monotonic() - began
            (event,) = watch.all_news()
            print(event.kind, event.kernel, event.status, 0 < event.seconds <= whole)

            calls = []
            def count(frame, what, argument):
                if what == "call" and "/pytest_jitguard/" in frame.f_code.co_filename:
                    calls.append(frame.f_code.co_name)

            sys.setprofile(count)
            for _ in range(1_000):
                kernel(grid=(1, 1, 1), block=(32, 1, 1), args=[x, 32])
            sys.setprofile(None)
            print(len(watch.all_news()), calls, watch.monitor.state)
        torch.cuda.synchronize()
        print(x[0].item() > 1)
        try:
            with armed(MONITOR) as watch:
                torch.cuda._compile_kernel("garbage!", "scale")
        except RuntimeError as error:
            (event,) = watch.recorder.events
            print(event.status, "compilation failed" in str(error))
        """,
        TORCH,
        tmp_path,
    )
    assert told == ["compile scale ok True", "0 [] armed", "True", "failed True"]


@pytest.mark.tells("nvrtc", "compile", "name")
def test_the_bindings(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    told = in_process(
        """
        from cuda.bindings import nvrtc

        with armed(MONITOR) as watch:
            source = b"template <typename T> __global__ void scale(T* x) { x[0] *= 2; }"
            _, program = nvrtc.nvrtcCreateProgram(source, b"", 0, None, None)
            nvrtc.nvrtcAddNameExpression(program, b"scale<float>")
            (code,) = nvrtc.nvrtcCompileProgram(program, 1, [b"--gpu-architecture=sm_90"])
            (event,) = watch.all_news()
            print(int(code), event.kernel, event.status, event.seconds > 0)
        """,
        BINDINGS,
        tmp_path,
    )
    assert told == ["0 scale ok True"]


@pytest.mark.tells("cupy", "compile", "hit", "cache_load", "name", "seconds", "no_frames")
def test_cupy_compiles_loads_and_hits(tmp_path: Path) -> None:
    pytest.importorskip("cupy")
    program = """
        import cupy

        cupy.zeros(1)
        SOURCE = 'extern "C" __global__ void scale(float* x) { x[threadIdx.x] *= 2; }'
        x = cupy.ones(32, dtype=cupy.float32)
        raw = cupy.RawKernel(SOURCE, "scale")
        add = cupy.ElementwiseKernel("float32 x", "float32 y", "y = x + 1", "add_one")
        calls = []
        def count(frame, what, argument):
            if what == "call" and "/pytest_jitguard/" in frame.f_code.co_filename:
                calls.append(frame.f_code.co_name)

        with armed(MONITOR) as watch:
            raw((1,), (32,), (x,))
            add(x)
            for event in watch.all_news():
                print(event.kind, event.kernel, event.status, event.seconds > 0)
            sys.setprofile(count)
            for _ in range(1_000):
                raw((1,), (32,), (x,))
                add(x)
            sys.setprofile(None)
            print(len(watch.all_news()), calls)
        """
    for kind in ("compile", "cache_load"):
        told = in_process(program, CUPY, tmp_path, CUPY_CACHE_DIR=str(tmp_path / "cache"))
        assert told == [f"{kind} scale ok True", f"{kind} add_one ok True", "0 []"]


JITERATED = {
    "from Python": """
        double = torch.cuda.jiterator._create_jit_fn("template <typename T> T twice(T x) { return x + x; }")
        double(torch.ones(8, device="cuda"))
    """,
    "inside ATen": """
        torch.erfinv(torch.zeros(8, device="cuda"))
    """,
}


@pytest.mark.parametrize("how", list(JITERATED))
def test_the_jiterator_passes_every_monitor_and_leaves_a_file(tmp_path: Path, how: str) -> None:
    """There is no function in Python that only its misses reach; its cache folder tells, and the CUPTI witness."""
    import textwrap

    program = "import torch\nwith armed(*MONITOR.split()) as watch:\n"
    program += textwrap.indent(textwrap.dedent(JITERATED[how]).strip(), "    ")
    program += "\n    print(len(watch.all_news()))\n"
    folder = tmp_path / "kernels"
    folder.mkdir()
    left: list[Any] = []
    for _ in range(2):
        assert in_process(program, f"{TORCH}", tmp_path, PYTORCH_KERNEL_CACHE_PATH=str(folder)) == ["0"]
        left.append(sorted((path.name, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()))
    cold, warm = left
    assert len(cold) == 1
    assert warm == cold
