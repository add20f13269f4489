"""numba-cuda's compile side, for real, on a machine without a driver: what asks a device is answered for it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pytest_jitguard.contract import MonitorContract
from tests.heavy.process import in_process

CUDA = "pytest_jitguard.monitors.numba_cuda:NumbaCudaMonitor"

pytestmark = pytest.mark.heavy

STORED = """
from numba import cuda


@cuda.jit(cache=True)
def stored(x, n):
    if n > 3:
        x[0] = n
"""


def without_a_driver() -> None:
    """Stand in for an H100: its compute capability, and loading and launching nothing."""
    from numba.cuda import codegen, dispatcher

    class Device:
        compute_capability = (9, 0)

    dispatcher.get_current_device = Device
    dispatcher._Kernel.bind = lambda kernel: None
    dispatcher._Kernel.launch = lambda kernel, *args, **more: None
    codegen.CUDACodeLibrary._ensure_cc = lambda library, cc: cc or (9, 0)
    codegen.JITCUDACodegen.magic_tuple = lambda of: ("numba-cuda", (9, 0))
    codegen.CUDACodeLibrary._reduce_states = lambda library: {"name": library.name}
    codegen.CUDACodeLibrary._rebuild = classmethod(lambda kind, name: name)


def fresh(number: int, body: str = "x[0] = n + {number}") -> Any:
    """Return a kernel that nobody has compiled."""
    from numba import cuda

    namespace: dict[str, Any] = {"__name__": "made_for_a_test"}
    exec(f"def kernel_{number}(x, n):\n    {body.format(number=number)}\n", namespace)
    return cuda.jit(namespace[f"kernel_{number}"])


SIGNATURE = "void(float32[::1], int32)"


@pytest.mark.tells(
    "numba_cuda",
    "compile",
    "hit",
    "cache_load",
    "name",
    "seconds",
    "key",
    "failed",
    "threads",
    "uninstall",
    "blind",
    "no_frames",
)
class TestContract(MonitorContract):
    monitor = CUDA
    requires = ("numba_cuda",)
    not_there: ClassVar[Mapping[str, str]] = {
        "alias": "what compiles is a method of the dispatcher: no name of it can be taken before us",
        "reset": "there is no reset",
        "hide": "there is nothing to hide but the methods themselves, see put_back",
        "sneak_in": "kernels that are resident are not looked through",
        "reload": "numba registers types at its import, which it cannot do twice",
    }

    def environment(self, folder: Path) -> Mapping[str, str]:
        (folder / "stored.py").write_text(STORED, encoding="utf-8")
        return {"NUMBA_CACHE_DIR": f"{folder}/cache", "NUMBA_CUDA_USE_NVIDIA_BINDING": "1"}

    def prepare(self) -> None:
        import numpy

        self.arguments = numpy.ones(4, numpy.float32), numpy.int32(1)
        without_a_driver()
        fresh(0).compile(SIGNATURE)

    def compile_new(self) -> str:
        number = self.number()
        self.last = fresh(number)
        self.last.compile(SIGNATURE)
        return f"kernel_{number}"

    def repeat(self) -> None:
        """Look the kernel up as a launch does: in C."""
        from numba.cuda.dispatcher import _dispatcher

        _dispatcher.Dispatcher._cuda_call(self.last, *self.arguments)

    def fail(self) -> None:
        fresh(self.number(), "x.nothing").compile(SIGNATURE)

    def load_from_disk(self) -> None:
        sys.path.insert(0, str(self.folder))
        importlib.import_module("stored").stored.compile(SIGNATURE)


@pytest.mark.tells("numba_cuda", "compile", "name", "key")
def test_an_explicit_compile_is_one_event_at_every_call(tmp_path: Path) -> None:
    pytest.importorskip("numba_cuda")
    told = in_process(
        """
        from numba import cuda

        def add(x, n):
            i = cuda.grid(1)
            if i < n:
                x[i] += 1

        with armed(MONITOR) as watch:
            for _ in range(2):
                ptx, _ = cuda.compile_ptx(
                    add, "void(float32[:], int32)", cc=(9, 0), device=False, abi="numba", fastmath=True
                )
                assert ".target sm_90" in ptx
            first, second = watch.all_news()
            print(first.kind, first.full_name, first.stack[0].partition(":")[0].endswith("/program.py"))
            print({part.name: str(part) for part in first.key})
            print(first.key == second.key, first.artifact_hash == second.artifact_hash)
        """,
        CUDA,
        tmp_path,
    )
    assert told[0] == "compile __main__.add True"
    assert told[1] == str(
        {"x": "array(float32, 1d, A)", "n": "int32", "abi": "numba", "cc": "(9, 0)", "fastmath": "True"}
    )
    assert told[2] == "True True"


@pytest.mark.tells("numba_cuda", "parts")
def test_device_functions_are_parts(tmp_path: Path) -> None:
    pytest.importorskip("numba_cuda")
    told = in_process(
        """
        from numba import cuda
        from tests.heavy.test_numba_cuda import without_a_driver

        without_a_driver()

        @cuda.jit(device=True)
        def more(x):
            return x + 1

        @cuda.jit
        def kernel(x):
            x[0] = more(x[0])

        with armed(MONITOR) as watch:
            kernel.compile("void(float32[:])")
            outer, inner = watch.all_news()
            print(outer.kernel, inner.kernel, inner.parent == outer.id)
        """,
        CUDA,
        tmp_path,
    )
    assert told == ["kernel more True"]


@pytest.mark.tells("numba_cuda", "hit")
def test_a_version_that_is_there_is_no_event(tmp_path: Path) -> None:
    pytest.importorskip("numba_cuda")
    told = in_process(
        """
        from tests.heavy.test_numba_cuda import SIGNATURE, fresh, without_a_driver

        without_a_driver()
        kernel = fresh(1)
        with armed(MONITOR) as watch:
            for signature in (SIGNATURE, SIGNATURE, "void(float64[::1], int32)"):
                kernel.compile(signature)
                print(*(event.kind for event in watch.all_news()))
        """,
        CUDA,
        tmp_path,
    )
    assert told == ["compile", "", "compile"]


@pytest.mark.tells("numba_cuda", "lock_wait", "threads")
def test_a_thread_that_waited_for_another_one_s_compile_compiled_nothing(tmp_path: Path) -> None:
    pytest.importorskip("numba_cuda")
    told = in_process(
        """
        import threading, time
        from numba.cuda.core.compiler_lock import global_compiler_lock
        from tests.heavy.test_numba_cuda import SIGNATURE, fresh, without_a_driver

        without_a_driver()
        kernel = fresh(1)
        with armed(MONITOR) as watch:
            threads = [threading.Thread(target=kernel.compile, args=(SIGNATURE,)) for _ in range(2)]
            with global_compiler_lock:
                for thread in threads:
                    thread.start()
                while sum(event.status == "running" for event in watch.recorder.events) < 2:
                    time.sleep(0.01)
            for thread in threads:
                thread.join()
            print(*sorted(event.kind for event in watch.all_news()))
        """,
        CUDA,
        tmp_path,
    )
    assert told == ["compile lock_wait"]
