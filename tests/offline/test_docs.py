from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from pytest_jitguard.offline import DEFAULT_GPUS, GPU, GPUS

TEXT = (Path(__file__).parents[2] / "docs" / "offline.md").read_text(encoding="utf-8")


def test_the_list_of_calls_is_the_table() -> None:
    import pytest

    pytest.importorskip("torch")
    from pytest_jitguard.offline.cuda_table import supported_names

    assert re.findall(r"^- `torch\.cuda\.([\w.]+)`$", TEXT, re.MULTILINE) == supported_names()


def test_the_gpus_are_the_table() -> None:
    rows = re.findall(
        r"^\| `([\w-]+)`( \*)? \| `([\w:]+)` \| ([^|]+) \| (\d+) \| (\d+) KiB \| (\d+) GiB \|", TEXT, re.M
    )
    assert rows == [
        (
            gpu.name,
            " *" if DEFAULT_GPUS.get(gpu.target) == gpu.name else "",
            gpu.target,
            gpu.device_name,
            str(gpu.multiprocessors),
            str(gpu.max_shared_mem // 1024),
            f"{gpu.total_memory / 2**30:.0f}",
        )
        for gpu in GPUS.values()
    ]


def test_the_keys_of_a_gpu_of_ones_own_are_all_named() -> None:
    keys = re.search(r"^Keys: (.*?)\. Sizes", TEXT, re.MULTILINE)
    assert keys is not None
    expected = ["like", *(field.name for field in dataclasses.fields(GPU) if field.name != "name")]
    assert re.findall(r"`(\w+)`", keys[1]) == expected
