from __future__ import annotations

import dataclasses

import pytest

from pytest_jitguard.offline import DEFAULT_GPUS, GPUS, gpu_from_mapping, parse_target
from pytest_jitguard.offline.gpus import KIB


def test_an_architecture_means_its_default_gpu() -> None:
    assert parse_target("cuda:90").device_name == "NVIDIA H100 80GB HBM3"
    assert parse_target("cuda:90").multiprocessors == 132
    assert parse_target("hip:gfx942").device_name == "AMD Instinct MI300X"


@pytest.mark.parametrize("target", DEFAULT_GPUS)
def test_default_gpus_have_the_architecture_they_stand_for(target: str) -> None:
    assert parse_target(target).target == target


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_is_found_by_name(name: str) -> None:
    assert parse_target(name.upper()) == GPUS[name]


def test_named_gpus_of_one_architecture_differ_in_what_launchers_ask() -> None:
    h20, h100 = parse_target("h20"), parse_target("h100")
    assert h20.target == h100.target == "cuda:90"
    assert (h20.multiprocessors, h100.multiprocessors) == (78, 132)
    assert h20.max_shared_mem == h100.max_shared_mem == 227 * KIB


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS.keys())
def test_rows_are_plausible_and_sourced(gpu: object) -> None:
    for field in dataclasses.fields(gpu):  # type: ignore[arg-type]
        value = getattr(gpu, field.name)
        assert value, field.name


@pytest.mark.parametrize(
    ("target", "capability", "warp_size"),
    [
        ("cuda:75", (7, 5), 32),
        ("cuda:120", (12, 0), 32),
        ("hip:gfx90a", (9, 0), 64),
        ("hip:gfx942", (9, 4), 64),
        ("hip:gfx1100", (11, 0), 32),
        ("hip:gfx1250", (12, 5), 32),
    ],
)
def test_capability_and_warp_size(target: str, capability: tuple[int, int], warp_size: int) -> None:
    gpu = parse_target(target)
    assert (gpu.capability, gpu.warp_size) == (capability, warp_size)


def test_an_architecture_without_a_named_gpu_gets_a_generic_one() -> None:
    assert parse_target("cuda:87").max_shared_mem == 163 * KIB
    assert parse_target("someday:tpu-7").target == "someday:tpu-7"


@pytest.mark.parametrize("text", ["cuda:9x", "hip:90", "h1000", "", "cuda", "cuda:", ":90", "cuda:90:1"])
def test_an_unknown_target_is_refused_by_its_value(text: str) -> None:
    with pytest.raises(ValueError, match=r"accepted: a GPU name \(.*a100.*h20.*\) or backend:arch") as caught:
        parse_target(text)
    assert f"unknown offline target {text!r}" in str(caught.value)


def test_a_gpu_of_ones_own_takes_the_rest_from_a_known_one() -> None:
    mine = gpu_from_mapping("lab", {"like": "h100", "multiprocessors": 64, "device_name": "Lab GPU"})
    assert (mine.name, mine.multiprocessors, mine.device_name, mine.arch) == ("lab", 64, "Lab GPU", 90)
    assert mine.l2_cache == parse_target("h100").l2_cache
    assert parse_target("lab", {"lab": mine}) is mine
    with pytest.raises(ValueError, match="a GPU name \\(lab, a100"):
        parse_target("nope", {"lab": mine})


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"like": "h100", "sms": 1}, r"'lab': unknown key 'sms' \(value 1\); accepted: like, backend"),
        ({"like": "h100", "multiprocessors": "64"}, r"'lab': multiprocessors = '64'; accepted: a whole number above 0"),
        ({"like": "h100", "multiprocessors": True}, "accepted: a whole number above 0"),
        ({"like": "h100", "device_name": 7}, "device_name = 7; accepted: a text"),
        ({"like": "h100", "arch": 9.0}, r"arch = 9.0; accepted: 90 or 'gfx942'"),
        ({"like": 5}, "like = 5; accepted: a GPU name"),
        ({"like": "h1000"}, "unknown offline target 'h1000'"),
        ({"backend": "cuda", "arch": 90}, "'lab': missing device_name, multiprocessors"),
    ],
)
def test_a_bad_gpu_table_names_key_value_and_what_is_accepted(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpu_from_mapping("lab", mapping)
