"""Tries configurations of a kernel."""

from __future__ import annotations

from typing import Any


def autotune(*, configs: Any) -> Any:
    from tilelang.autotuner.tuner import AutoTuneImpl

    return lambda jit_impl: AutoTuneImpl(jit_impl, configs)
