"""FlashInfer's own package: modules of C++ and CUDA that it builds with ninja, without a GPU.

Its needs weigh gigabytes, and building needs few of them, so that no extra names it: `pip install --no-deps
flashinfer-python==0.7.2.post1 einops tabulate nvidia-ml-py requests urllib3 idna certifi charset-normalizer`.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

sys.path.append(str(Path(__file__).parent.parent / "monitors"))

from scenes import Scene, Stage

from pytest_jitguard.contract import MonitorContract
from tests.heavy.toolkit import cuda_home

MONITOR = "pytest_jitguard.monitors.flashinfer:FlashInferMonitor"
NVCC_LIMIT = 300
"""Seconds for a scene with a build by nvcc."""

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        cuda_home() is None or not shutil.which("ninja"), reason="FlashInfer builds with nvcc and ninja"
    ),
]
pytest.importorskip("torch")

_ADD = """
#include <tvm/ffi/tvm_ffi.h>
int add(int a, int b) { return a + b; }
TVM_FFI_DLL_EXPORT_TYPED_FUNC(add, add);
"""

_BEGIN = f"""
from flashinfer.jit import gen_jit_spec

def add(name="add_two", text={_ADD!r}):
    return gen_jit_spec(name, [source("source_" + name, text, ".cc")]).build_and_load()
"""


def environment(folder: Path) -> dict[str, str]:
    """Return what FlashInfer needs to build for a Hopper GPU on a machine that has none."""
    stubs = folder / "stubs"
    stubs.mkdir(exist_ok=True)
    if not (stubs / "libcuda.so").exists():  # modules name the driver's library, which comes with a GPU
        empty = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-Wl,-soname,libcuda.so.1", "-o", str(stubs / "libcuda.so")]
        subprocess.run(empty, input=b"", check=True)
        (stubs / "libcuda.so.1").symlink_to("libcuda.so")
    home = cuda_home()
    libraries = os.pathsep.join([os.environ.get("LD_LIBRARY_PATH", ""), str(stubs), f"{home}/lib64"])
    return {
        **{"FLASHINFER_WORKSPACE_BASE": str(folder), "FLASHINFER_CUDA_ARCH_LIST": "9.0a", "CUDA_HOME": str(home)},
        **{"LIBRARY_PATH": str(stubs), "LD_LIBRARY_PATH": libraries.lstrip(os.pathsep)},
    }


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    pytest.importorskip("flashinfer.jit")
    return Stage(MONITOR, tmp_path, environment(tmp_path))


def play(stage: Stage, body: str, **variables: str) -> Scene:
    return stage.finish(stage.start(_BEGIN + body, **variables), NVCC_LIMIT)


@pytest.mark.tells("flashinfer", "compile", "hit", "cache_load", "name", "seconds", "reason")
def test_a_module_is_built_once_and_loaded_in_a_fresh_process(stage: Stage) -> None:
    body = """
started = time.monotonic()
told["sum"] = add().add(2, 3)
told["call"] = time.monotonic() - started
say("first")
add(); say("again")
"""
    cold, warm = play(stage, body), play(stage, body)
    built, loaded = cold.one("first"), warm.one("first")
    assert (built["kind"], loaded["kind"]) == ("compile", "cache_load")
    assert built["kernel"] == loaded["kernel"] == "add_two"
    assert built["hash"] == loaded["hash"]
    assert cold["sum"] == warm["sum"] == 5
    assert 0.2 < built["seconds"] <= cold["call"]
    assert built["reason"].startswith("there was no add_two.so in ")
    assert built["reason"].endswith(
        "for sm_90a, and flashinfer-jit-cache, which has prebuilt ones, is not installed",
    )
    assert cold["again"] == warm["again"] == []
    assert cold["state"] == ["armed", ""]


@pytest.mark.tells("flashinfer", "compile", "cache_load", "name", "seconds")
def test_an_operator_of_its_own_is_built_by_nvcc(stage: Stage) -> None:
    body = """
from flashinfer.activation import get_act_and_mul_module
started = time.monotonic()
get_act_and_mul_module("silu")
told["call"] = time.monotonic() - started
say("first")
get_act_and_mul_module("silu"); say("again")
"""
    cold, warm = play(stage, body), play(stage, body)
    assert cold.kinds("first") == ["compile silu_and_mul"]
    assert 1 < cold.one("first")["seconds"] <= cold["call"]
    assert warm.kinds("first") == ["cache_load silu_and_mul"]
    assert cold["again"] == warm["again"] == []


@pytest.mark.tells("flashinfer", "compile")
def test_a_source_that_changed_is_built_again(stage: Stage) -> None:
    play(stage, "add()")
    text = _ADD.replace("a + b", "a + b + 1")
    scene = play(stage, f"told['sum'] = add(text={text!r}).add(2, 3); say('changed')")
    assert scene["sum"] == 6
    assert scene.kinds("changed") == ["compile add_two"]
    assert "source_add_two.cc" in scene.one("changed")["reason"]


@pytest.mark.tells("flashinfer", "compile", "reason")
def test_a_prebuild_tells_what_it_builds(stage: Stage) -> None:
    body = """
from flashinfer.jit import build_jit_specs

def build(text):
    specs = [gen_jit_spec(name, [source("source_" + name, text, ".cc")]) for name in ("one", "two")]
    build_jit_specs(specs)

build("int f() { return 3; }"); say("first")
build("int f() { return 3; }"); say("again")
time.sleep(0.05)
build("int f() { return 4; }"); say("changed")
"""
    scene = play(stage, body)
    assert scene.kinds("first") == scene.kinds("changed") == ["compile one and 1 more"]
    assert scene["again"] == []
    assert scene.one("changed")["reason"] == f"{stage.folder / 'source_one.cc'} is newer than one.so"


@pytest.mark.tells("flashinfer", "failed")
def test_a_build_that_fails_is_a_failed_compile(stage: Stage) -> None:
    scene = play(stage, "told['raised'] = raised(lambda: add('bad', 'int f() { return y; }')); say('all')")
    assert scene["raised"] == "RuntimeError"
    assert scene.kinds("all") == ["compile bad failed"]


@pytest.mark.tells("flashinfer", "threads", "lock_wait")
def test_three_threads_are_one_build_and_two_waits(stage: Stage) -> None:
    scene = play(stage, "file = source('source_add_two', ''); together(add); say('all')")
    assert scene.kinds("all") == ["compile add_two", "lock_wait add_two", "lock_wait add_two"]


@pytest.mark.tells("flashinfer", "refuse")
def test_its_own_switch_refuses_and_is_put_back(stage: Stage) -> None:
    body = """
monitor.refuse(True)
told["raised"] = raised(lambda: add("cold")); say("refused")
monitor.refuse(False)
add("cold"); say("allowed")
"""
    scene = play(stage, body)
    assert scene["raised"] == "MissingJITCacheError"
    assert scene.kinds("refused") == ["compile cold failed"]
    assert scene.one("refused")["reason"].startswith("refused because of --jitguard-deny=flashinfer")
    assert scene.kinds("allowed") == ["compile cold"]


@pytest.mark.tells("flashinfer", "blind", "uninstall", "children")
class TestContract(MonitorContract):
    monitor = MONITOR
    requires = ("torch", "flashinfer")
    threads = 2
    hits = 200
    not_there: ClassVar[Mapping[str, str]] = {
        "reset": "FlashInfer has no reset",
        "hide": "nothing but its functions is hooked",
        "alias": "what is hooked is no name that others take: methods, and a function of its own module",
    }

    def environment(self, folder: Path) -> Mapping[str, str]:
        return environment(folder)

    def compile_new(self) -> str:
        name = f"module_{self.number()}"
        self.getter = _getter(self._source("int f() { return 3; }\n"))
        self.getter(name)
        self.last = name
        return name

    def repeat(self) -> None:
        """Ask for a module as FlashInfer's operators do: by a memoised getter."""
        self.getter(self.last)

    def fail(self) -> None:
        _getter(self._source("int f() { return y; }\n"))(f"broken_{self.number()}")

    def load_from_disk(self) -> None:
        file = self.folder / "shared.cc"
        if not file.exists():
            file.write_text("int f() { return 3; }\n")
        _getter(file)("shared")

    def sneak_in(self) -> None:
        import ctypes

        from flashinfer.jit import gen_jit_spec

        spec: Any = gen_jit_spec(f"sneaked_{self.number()}", [self._source("int f() { return 3; }\n")])
        spec.build_dir.mkdir(parents=True)
        subprocess.run(["c++", "-shared", "-fPIC", spec.sources[0], "-o", spec.jit_library_path], check=True)
        ctypes.CDLL(str(spec.jit_library_path))

    def _source(self, text: str) -> Path:
        file = self.folder / f"source_{os.getpid()}_{len(text)}.cc"
        file.write_text(text)
        return file


def _getter(file: Path) -> Callable[[str], Any]:
    from flashinfer.jit import gen_jit_spec

    return functools.cache(lambda name: gen_jit_spec(name, [file]).build_and_load())
