"""A GPU architecture without the GPU: real keys, real compilation, a launch that does nothing.

The owner installs the two parts when the libraries have been imported, in either order, and takes them out at the end:

    target = OfflineTarget(parse_target("cuda:90"), "cpu")
    when_imported("triton", target.install_triton)
    when_imported("torch", target.install_torch)
    ...
    target.uninstall()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_jitguard.offline.gpus import DEFAULT_GPUS, GPU, GPUS
from pytest_jitguard.offline.marks import OfflineResultWarning, forget_warnings
from pytest_jitguard.offline.target import gpu_from_mapping, parse_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_jitguard.offline.driver import OfflineDriver
    from pytest_jitguard.offline.torch_cuda import TorchPart
    from pytest_jitguard.offline.torch_mode import Placement

__all__ = [
    "DEFAULT_GPUS",
    "GPU",
    "GPUS",
    "OfflineResultWarning",
    "OfflineTarget",
    "gpu_from_mapping",
    "parse_target",
]


class OfflineTarget:
    """One offline GPU for this process. Imports neither Triton nor torch before it is told that they are there."""

    def __init__(self, gpu: GPU, placement: Placement = "cpu") -> None:
        if placement not in ("cpu", "meta"):
            raise ValueError(f"unknown placement {placement!r} of offline tensors; accepted: cpu, meta")
        self.gpu = gpu
        self.placement = placement
        self._driver: OfflineDriver | None = None
        self._torch: TorchPart | None = None
        self._undo: list[Callable[[], None]] = []

    def install_triton(self, module: object = None) -> None:
        """Install the driver; `triton` must have been imported. A second call does nothing."""
        if self._driver is not None:
            return
        from pytest_jitguard.offline.driver import install_driver

        self._driver, undo = install_driver(self.gpu)
        self._undo.append(undo)
        self._connect()

    def install_torch(self, module: object = None) -> None:
        """Install the torch part; `torch` must have been imported. A second call does nothing."""
        if self._torch is not None:
            return
        from pytest_jitguard.offline.torch_cuda import install_torch

        self._torch, undo = install_torch(self.gpu, self.placement)
        self._undo.append(undo)
        self._connect()

    def _connect(self) -> None:
        if self._driver is not None and self._torch is not None:
            self._driver.observer = self._torch.observe

    def launches(self) -> dict[str, int]:
        """Return how often each kernel was launched, by `module.qualname` of its function."""
        return self._driver.launch_counts() if self._driver is not None else {}

    def uninstall(self) -> None:
        """Take everything out again, last installed first; the next target warns anew."""
        while self._undo:
            self._undo.pop()()
        forget_warnings()
        self._driver = None
        self._torch = None
