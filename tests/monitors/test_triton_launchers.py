"""Triton up to 3.6 compiles a launcher in C for each signature, when it is launched first: with the real C compiler."""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import subprocess
from typing import Any

import pytest
from forks import Watch, in_fork, tensor

ASKED_FOR = (
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuPointerGetAttribute",
)
"""What a launcher calls in the driver."""


def real_launchers(watch: Watch) -> None:
    """Have the offline GPU use Triton's own launchers, linked with a driver that does nothing; they launch nothing."""
    import triton

    driver: Any = importlib.import_module("triton.backends.nvidia.driver")
    if not hasattr(driver, "make_launcher"):
        return
    source, library = watch.folder / "driver.c", watch.folder / "libcuda.so.1"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in ASKED_FOR))
    subprocess.run(["gcc", "-shared", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(source)], check=True)
    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    os.environ["TRITON_LIBCUDA_PATH"] = str(watch.folder)
    driver.CudaLauncher.__call__ = lambda *_: None
    type(triton.runtime.driver.active).launcher_cls = staticmethod(driver.CudaLauncher)


def with_the_net(watch: Watch) -> None:
    from pytest_jitguard.monitors import MonitorSet

    nets = MonitorSet(["toolchain"], watch.recorder)
    nets.arm()
    settle = watch.settle

    def settle_all() -> None:
        settle()
        nets.settle()
        nets.account()

    watch.settle = settle_all  # type: ignore[method-assign]


pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="needs a C compiler")


@in_fork
def test_a_launcher_is_a_part_of_the_compile_that_it_follows(watch: Watch) -> None:
    from triton_kernels import copy

    real_launchers(watch)
    with_the_net(watch)
    copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
    assert watch.told() == ["compile copy"]
    copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
    assert watch.told(loads=True) == []


@in_fork
def test_what_was_only_compiled_compiles_its_launcher_at_its_first_launch(watch: Watch) -> None:
    import torch
    import triton
    from triton_kernels import copy

    real_launchers(watch)
    with_the_net(watch)
    mock = triton.MockTensor(torch.float32)
    copy.warmup(mock, mock, 100, BLOCK=64, grid=(1,))
    (compiled,) = watch.news()
    copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
    served = [event for event in watch.news() if event.kind != "device_load"]
    if ".run" not in compiled.cure:
        assert served == [], "one launcher serves all kernels"
        return
    (launcher,) = served
    assert (launcher.system, launcher.kind, launcher.kernel, launcher.status) == ("triton", "compile", "copy", "ok")
    assert launcher.reason.startswith("its launcher, in C")
    assert launcher.witnesses == ("toolchain",)
    assert launcher.cure == compiled.cure
    assert launcher.stack[0].startswith(__file__)


@in_fork
def test_the_entry_compiles_the_launcher_as_well(watch: Watch) -> None:
    from forks import fork
    from triton_kernels import copy

    def cold() -> str:
        copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
        (event,) = watch.news()
        return str(event.cure)

    real_launchers(watch)
    entry = str(fork(cold))
    with_the_net(watch)
    with watch.cache("fresh"):
        exec(entry, {})
        assert watch.told() == ["compile copy"] * (2 if ").run" in entry else 1)
        copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
        assert watch.told(loads=True) == (["device_load copy"] if ").run" not in entry else [])


@in_fork
def test_a_launcher_that_cannot_be_compiled_is_a_failed_compile(watch: Watch) -> None:
    import torch
    import triton
    from triton_kernels import copy

    real_launchers(watch)
    mock = triton.MockTensor(torch.float32)
    copy.warmup(mock, mock, 100, BLOCK=64, grid=(1,))
    (compiled,) = watch.news()
    if ".run" not in compiled.cure:
        return
    os.environ["CC"] = "false"
    with pytest.raises(subprocess.CalledProcessError):
        copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
    assert watch.told() == ["compile copy failed"]
