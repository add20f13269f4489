"""Counts Python frames of this package over 10,000 in-process hits on a real GPU, armed. Exits 1 if there is one."""

from __future__ import annotations

import sys
from types import FrameType

from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet

LAUNCHES = 10_000


def main() -> int:
    monitors = MonitorSet(["triton"], Recorder("frames", lambda record: None))
    monitors.arm()
    import torch

    from tests.soak.kernels import scale, shift, square

    monitors.prove()
    x, y = torch.empty(1024, device="cuda"), torch.empty(1024, device="cuda")

    def launch() -> None:
        scale[(8,)](x, y, 1024, BLOCK=128)
        shift[(8,)](x, y, 1024, BLOCK=128)
        square[(8,)](x, y, 1024)

    launch()
    frames = 0

    def count(frame: FrameType, what: str, argument: object) -> None:
        nonlocal frames
        frames += what == "call" and "/pytest_jitguard/" in frame.f_code.co_filename

    sys.setprofile(count)
    for _ in range(LAUNCHES // 3 + 1):
        launch()
    sys.setprofile(None)
    torch.cuda.synchronize()
    assert [monitor.state for monitor in monitors] == ["armed"]
    print(f"{frames} frames of ours over {LAUNCHES} in-process hits")
    return 1 if frames else 0


if __name__ == "__main__":
    sys.exit(main())
