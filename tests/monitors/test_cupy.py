"""CuPy: a fake of the path from a kernel's first call to a compiler, and its real code where it is installed.

The real one compiles nothing without a driver but LTO code for an architecture that it is told, so that is what it
does here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pytest_jitguard.contract import MonitorContract, module_with
from tests.conftest import ROOT

CUPY = "pytest_jitguard.monitors.cupy:CupyMonitor"
FAKES = ROOT / "tests" / "fakes"


def source(kernel: str) -> str:
    return f'extern "C" __global__ void {kernel}(float* x) {{ x[0] += 1; }}'


class _Cupy(MonitorContract):
    monitor = CUPY
    __test__ = False
    not_there: ClassVar[Mapping[str, str]] = {
        "reset": "there is no reset",
        "hide": "there is nothing to hide but the functions themselves, see put_back",
        "sneak_in": "what CuPy's compiled code has memoized cannot be looked through",
    }

    def compile_new(self) -> str:
        name = f"kernel_{self.number()}"
        self.look_up(source(name))
        return name

    def look_up(self, text: str) -> None:
        raise NotImplementedError

    def repeat(self) -> None:
        raise NotImplementedError

    def fail(self) -> None:
        self.look_up(source("broken") + " garbage!")

    def load_from_disk(self) -> None:
        self.look_up(source("stored"))

    def alias(self) -> Any:
        caller = module_with("from cupy.cuda.compiler import _compile_using_nvrtc_no_warning as build")
        text = source(f"kernel_{self.number()}")
        return lambda: caller.build(text, ("-std=c++17",), "90")


@pytest.mark.tells(
    "cupy",
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
class TestContractWithTheFake(_Cupy):
    __test__ = True

    def environment(self, folder: Path) -> Mapping[str, str]:
        return with_the_fake(folder)

    def look_up(self, text: str) -> None:
        import cupy

        self.kernel = cupy.RawKernel(text, "kernel")
        self.kernel()

    def repeat(self) -> None:
        self.kernel()


@pytest.mark.heavy
@pytest.mark.tells("cupy", "compile", "cache_load", "name", "seconds", "key", "failed", "threads", "uninstall", "blind")
class TestContractWithCupyItself(_Cupy):
    __test__ = True
    requires = ("cupy", "cuda.bindings")
    not_there: ClassVar[Mapping[str, str]] = {
        **_Cupy.not_there,
        "reload": "CuPy registers types at its import, which it cannot do twice",
    }

    def environment(self, folder: Path) -> Mapping[str, str]:
        return {"CUPY_CACHE_DIR": f"{folder}/cache"}

    def prepare(self) -> None:
        from cupy.cuda import compiler

        compiler._get_arch_for_options_for_nvrtc = lambda arch=None: ("-arch=compute_90", "ptx")
        self.look_up(source("first"))

    def look_up(self, text: str) -> None:
        from cupy.cuda import compiler

        self.made = compiler._compile_module_with_cache(text, ("-std=c++17",), arch="90", to_ltoir=True)

    def fail(self) -> None:
        from cupy.cuda.compiler import CompileException

        try:
            super().fail()
        except CompileException as error:  # its text has the name of a temporary folder
            raise RuntimeError(type(error).__name__) from None

    def repeat(self) -> None:
        """A module that is there is memoized by compiled code, which takes a driver."""
        assert self.made


def with_the_fake(folder: Path) -> dict[str, str]:
    return {
        "CUPY_CACHE_DIR": f"{folder}/cache",
        "PYTHONPATH": os.pathsep.join([str(FAKES), str(ROOT), *filter(None, sys.path)]),
    }


def in_process(program: str, folder: Path, **environment: str) -> list[str]:
    head = f"""
        import sys
        sys.path.insert(0, {str(ROOT / "tests" / "monitors")!r})
        from armed import armed
        import cupy
        from cupy.cuda import compiler
        CUPY = {CUPY!r}
        scale = 'extern "C" __global__ void scale(float* x) {{ x[0] += 1; }}'
    """
    env = {**os.environ, **with_the_fake(folder), **environment}
    text = textwrap.dedent(head) + textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.tells("cupy", "name", "key")
def test_a_kernel_has_name_options_and_source(tmp_path: Path) -> None:
    told = in_process(
        """
        with armed(CUPY) as watch:
            options = ("-DTILE=8", "--std=c++17")
            compiler._compile_module_with_cache(scale, options, arch="90", name_expressions=["scale<float>"])
            (event,) = watch.news()
            told = {part.name: part.value for part in event.key}
            source = told.pop("source")
            print(event.kernel, len(source), told)
            print(sorted(event.stages), 0 < event.stages["nvrtc"] <= event.seconds)
        """,
        tmp_path,
    )
    key = {"template arguments": "float", "arch": "sm_90", "TILE": "8", "std": "c++17"}
    assert told == [f"scale 12 {key}", "['nvrtc'] True"]


def test_asking_nvcc_for_its_version_is_no_compile_of_a_kernel(tmp_path: Path) -> None:
    program = """
        with armed(CUPY) as watch:
            cupy.RawKernel(scale, "scale", backend="nvcc")()
            print(*(f"{event.kind} {sorted(event.stages)}" for event in watch.all_news()))
    """
    assert in_process(program, tmp_path) == ["compile ['nvcc']"]
    # A process that finds the kernel on disk has run nvcc all the same, and says so among the stages.
    assert in_process(program, tmp_path) == ["cache_load ['nvcc']"]


def test_without_a_cache_folder_every_look_up_compiles(tmp_path: Path) -> None:
    program = """
        with armed(CUPY) as watch:
            cupy.RawKernel(scale, "scale")()
            print(*(event.kind for event in watch.all_news()))
    """
    for _ in range(2):
        assert in_process(program, tmp_path, CUPY_CACHE_IN_MEMORY="1") == ["compile"]


def test_a_compiler_that_is_run_past_the_cache_is_an_event(tmp_path: Path) -> None:
    told = in_process(
        """
        with armed(CUPY) as watch:
            compiler.compile_using_nvrtc(scale, ("-DA",), "80")
            (event,) = watch.all_news()
            print(event.kernel, event.kind, [str(part) for part in event.key][:2])
        """,
        tmp_path,
    )
    assert told == ["scale compile ['sm_80', '1']"]


@pytest.mark.tells("cupy", "blind")
def test_a_cupy_without_any_compiler_function_is_blind(tmp_path: Path) -> None:
    told = in_process(
        """
        for name in ("_compile_using_nvrtc_no_warning", "compile_using_nvrtc", "compile_using_nvcc"):
            delattr(compiler, name)
        with armed(CUPY) as watch:
            print(watch.monitor.state, watch.monitor.detail.partition(": ")[2])
        print(hasattr(compiler._compile_module_with_cache, "_jitguard_link"))
        """,
        tmp_path,
    )
    assert told == [
        "blind HookGone: cupy.cuda.compiler 14.2.0 has no function that runs a compiler",
        "False",
    ]


def test_the_fake_has_the_functions_of_cupy() -> None:
    real: Any = pytest.importorskip("cupy.cuda.compiler")
    import inspect
    import runpy

    fake = runpy.run_path(str(FAKES / "cupy" / "cuda" / "compiler.py"))
    for name in ("_compile_using_nvrtc_no_warning", "compile_using_nvcc", "_compile_module_with_cache", "_preprocess"):
        assert list(inspect.signature(fake[name]).parameters) == list(inspect.signature(getattr(real, name)).parameters)
