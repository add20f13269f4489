"""Triton's driver without a device: real keys, real compilation, a launch that does nothing but count.

Triton's JIT asks its driver for the device, the stream, the target, a launcher and `utils` (`runtime/jit.py`,
`compiler/compiler.py`); everything before the launch is Triton's own code and stays untouched.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pytest_jitguard.offline.streams import Event, Stream, StreamContext
from pytest_jitguard.offline.writes import written_arguments
from pytest_jitguard.patching import PatchSet

if TYPE_CHECKING:
    from pytest_jitguard.offline.gpus import GPU

LaunchObserver = Callable[["OfflineLauncher", Sequence[object]], None]
"""Is told the launcher and the arguments at each launch."""


class OfflineUtils:
    """The part of the driver that Triton otherwise compiles from C: device figures and loading binaries."""

    def __init__(self, gpu: GPU) -> None:
        self._gpu = gpu
        self._handles = itertools.count(1)

    def get_device_properties(self, device: int = 0) -> dict[str, Any]:
        """Return the figures under the names of both vendors' drivers; clocks in kHz, sizes in bytes."""
        gpu = self._gpu
        return {
            "max_shared_mem": gpu.max_shared_mem,
            "max_num_regs": gpu.registers,
            "multiprocessor_count": gpu.multiprocessors,
            "warpSize": gpu.warp_size,
            "sm_clock_rate": gpu.clock_khz,
            "mem_clock_rate": gpu.memory_clock_khz,
            "mem_bus_width": gpu.memory_bus_bits,
            "arch": str(gpu.arch),
            "max_threads_per_sm": gpu.max_threads_per_multiprocessor,
        }

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        """Return handles of a module and a function, registers, spills and the most threads a block may have.

        The handles are made up and never 0, which Triton reads as "not loaded". Registers and spills are unknown (0).
        """
        handle = next(self._handles)
        return handle, handle, 0, 0, self._gpu.max_threads_per_block

    def unload_module(self, module: int) -> None:
        """Do nothing: nothing was loaded (Triton 3.8 and newer unload)."""

    def get_current_device(self) -> int:
        """Return 0, the only device."""
        return 0

    def set_current_device(self, device: int) -> None:
        """Do nothing: there is one device."""

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        """Return (major, minor)."""
        return self._gpu.capability

    def is_stream_capturing(self, stream: int) -> bool:
        """Return False: nothing is captured offline."""
        return False


class OfflineLauncher:
    """Takes a launch like the vendor's C launcher: scratch, hooks, count; the kernel itself does not run."""

    __slots__ = ("_driver", "_launches", "_metadata", "_scratch", "_src", "_writes", "kernel")

    def __init__(self, driver: OfflineDriver, src: object, metadata: object) -> None:
        self._driver = driver
        self._launches = driver.launches
        self._scratch = _scratch_needs(metadata)
        self._src = src
        self._metadata = metadata
        self._writes: frozenset[int] | None = None
        self.kernel = kernel_name(src)

    def __call__(
        self,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        stream: int,
        function: int,
        kernel_metadata: object,
        launch_metadata: object,
        enter_hook: Callable[[object], object] | None,
        exit_hook: Callable[[object], object] | None,
        *args: object,
    ) -> None:
        """Take one launch; the arguments are those of Triton's own launchers."""
        if not self._driver.installed:
            raise RuntimeError(
                f"{self.kernel} was compiled for the offline target {self._driver.gpu.target}, which is gone"
            )
        blocks = grid_x * grid_y * grid_z
        if self._scratch is not None:
            self._allocate_scratch(blocks, stream)
        if enter_hook is not None:
            enter_hook(launch_metadata)
        if blocks > 0:  # the C launchers skip an empty grid too
            self._launches[self.kernel] += 1
            if self._driver.observer is not None:
                self._driver.observer(self, args)
        if exit_hook is not None:
            exit_hook(launch_metadata)

    def may_write(self, index: int) -> bool:
        """Return whether the kernel may write through argument `index`; True where its code does not tell."""
        if self._writes is None:
            self._writes = written_arguments(self._src, self._metadata)
        return index in self._writes

    def _allocate_scratch(self, blocks: int, stream: int) -> None:
        # A kernel that makes TMA descriptors on the device fails on a GPU unless triton.set_allocator() was called;
        # it has to fail here too.
        from triton.runtime import _allocation

        assert self._scratch is not None
        size, alignment = self._scratch
        if blocks > 0:
            _allocation._allocator.get()(blocks * size, alignment, stream)


def _scratch_needs(metadata: object) -> tuple[int, int] | None:
    """Return bytes per block and alignment of the kernel's global scratch, None if it needs none."""
    size = getattr(metadata, "global_scratch_size", 0) or 0
    ctas = getattr(metadata, "num_ctas", 1) or 1
    return (size * ctas, getattr(metadata, "global_scratch_align", 1)) if size else None


def kernel_name(src: object) -> str:
    """Return `module.qualname` of the function a compiled source came from, else the source's own name."""
    jitted: Any = getattr(src, "fn", None)
    function: Any = getattr(jitted, "fn", jitted)
    if hasattr(function, "__qualname__"):
        return f"{function.__module__}.{function.__qualname__}"
    return str(getattr(src, "name", "unknown"))


class OfflineDriver:
    """Stands in for Triton's driver (duck-typed: `triton.runtime.driver.set_active` takes any object)."""

    def __init__(self, gpu: GPU) -> None:
        self.gpu = gpu
        self.utils = OfflineUtils(gpu)
        self.launches: Counter[str] = Counter()
        """Launches by `module.qualname` of the kernel's function."""
        self.observer: LaunchObserver | None = None
        """Told of each launch, so that a read of what a kernel should have written can be noticed."""
        self.installed = True
        self._benchmarked = itertools.count()

    def launch_counts(self) -> dict[str, int]:
        """Return a copy of the launches so far."""
        return dict(self.launches)

    def launcher_cls(self, src: object, metadata: object) -> OfflineLauncher:
        """Return the launcher of one compiled kernel (Triton calls this once per kernel)."""
        return OfflineLauncher(self, src, metadata)

    def is_active(self) -> bool:
        """Return whether this driver is installed."""
        return self.installed

    def get_current_device(self) -> int:
        """Return 0, the only device."""
        return 0

    def set_current_device(self, device: int) -> None:
        """Do nothing: there is one device."""

    def get_current_stream(self, device: int = 0) -> int:
        """Return the default stream's handle."""
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        """Return (major, minor)."""
        return self.gpu.capability

    def get_current_target(self) -> Any:
        """Return Triton's GPUTarget."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget(self.gpu.backend, self.gpu.arch, self.gpu.warp_size)

    def get_active_torch_device(self) -> Any:
        """Return what code uses as `device=`: "cuda" where torch is taught it (torch_cuda.py), else the CPU."""
        import torch

        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

    def get_device_interface(self) -> Any:
        """Return `torch.cuda` where torch is taught the target, else the few names that Triton's testing asks for."""
        import torch

        return torch.cuda if torch.cuda.is_available() else _bare_interface()

    def get_benchmarker(self) -> Callable[..., Any]:
        """Return the function `@triton.autotune` times each configuration with."""
        return self._benchmark

    def _benchmark(self, kernel_call: Callable[[], object], *, quantiles: Any = None, **_: object) -> Any:
        """Launch once, so that the configuration is compiled, and return made-up milliseconds.

        Each benchmark is slower than the one before: the first configuration that fits the GPU always wins.
        """
        kernel_call()
        milliseconds = 1.0 + next(self._benchmarked) * 1e-6
        return milliseconds if quantiles is None else [milliseconds] * len(quantiles)

    def get_empty_cache_for_benchmark(self) -> Any:
        """Return the buffer that `do_bench` would clear to empty the L2 cache; nothing here needs its size."""
        import torch

        return torch.empty(1, dtype=torch.int, device="cpu")

    def clear_cache(self, cache: object) -> None:
        """Do nothing: there is no L2 cache to empty."""

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Return the C++ type of a Triton type as the target's own driver says (used for ahead-of-time code)."""
        import importlib

        backend = {"cuda": "nvidia", "hip": "amd"}.get(self.gpu.backend, self.gpu.backend)
        return str(importlib.import_module(f"triton.backends.{backend}.driver").ty_to_cpp(ty))

    def assemble_tensormap_to_arg(self, tensormaps_info: object, args: Any) -> Any:
        """Return the arguments unchanged (Triton's GPUDriver keeps this for old callers)."""
        return args

    def allocate_default_profile_scratch(self, size: int, alignment: int, stream: object) -> Any:
        """Return memory for Triton's profiler (Triton 3.9)."""
        import torch

        return torch.zeros(size, dtype=torch.int8, device="cpu")


def _bare_interface() -> SimpleNamespace:
    return SimpleNamespace(
        Event=Event,
        Stream=Stream,
        stream=StreamContext,
        current_device=lambda: 0,
        current_stream=lambda device=None: Stream(),
        synchronize=lambda device=None: None,
    )


def install_driver(gpu: GPU) -> tuple[OfflineDriver, Callable[[], None]]:
    """Make an offline driver Triton's active, default and only active one; return it and what undoes that."""
    from triton.runtime.driver import driver as config

    driver, patches = OfflineDriver(gpu), PatchSet()
    # Not reset_active(): without a GPU it raises in every Triton since 3.5, because it asks for the default driver.
    for name in ("_active", "_default"):
        patches.replace(config, name, driver)
    # vLLM asks every `triton.backends.backends[...].driver.is_active()` itself and goes without Triton unless exactly
    # one says yes.
    for driver_class, active in _backend_drivers(gpu.backend):
        patches.replace(driver_class, "is_active", staticmethod(functools.partial(bool, active)))
    _forget_shared_memory_limit()

    def restore() -> None:
        if not driver.installed:
            return
        driver.installed = False
        _unload_kernels()
        patches.undo()
        _forget_shared_memory_limit()

    return driver, restore


def _unload_kernels() -> None:
    """Make kernels that are loaded offline unloaded again.

    Since Triton 3.8 a kernel's finaliser unloads its module through the driver of that moment: a real one must never
    be given our made-up handles.
    """
    import gc

    from triton.compiler import CompiledKernel

    for kernel in gc.get_objects():
        # type(), not isinstance(): that would ask lazy proxies for their class.
        if type(kernel) is CompiledKernel and isinstance(vars(kernel).get("_run"), OfflineLauncher):
            kernel.module = kernel.function = kernel._run = None


def _backend_drivers(backend: str) -> Iterator[tuple[type, bool]]:
    """Yield the driver of every installed backend, and whether it is the target's."""
    from triton.backends import backends

    for name, entry in backends.items():
        if entry.driver is not None:
            yield entry.driver, name == {"cuda": "nvidia", "hip": "amd"}.get(backend, backend)


def _forget_shared_memory_limit() -> None:
    # compiler.max_shared_mem() is an lru_cache over the device index: the other driver's answer would stay.
    from triton.compiler import compiler

    clear = getattr(getattr(compiler, "max_shared_mem", None), "cache_clear", None)
    if clear is not None:
        clear()
