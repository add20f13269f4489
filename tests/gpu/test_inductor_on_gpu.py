"""Inductor on a real GPU: Triton in process and in workers, tuning when a graph runs, CUDA graphs, C++ wrappers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "monitors"))

from torch_programs import Ran, run_program

pytestmark = pytest.mark.gpu

PROGRAMS = Path(__file__).with_name("torch_programs_on_gpu.py")


def run(name: str, folder: Path, **environment: str) -> Ran:
    return run_program(name, folder, programs=PROGRAMS, **environment)


def kinds(events: list[Any]) -> set[tuple[str, str]]:
    return {(event["system"], event["kind"]) for event in events}


@pytest.mark.tells("inductor", "parts")
@pytest.mark.parametrize("workers", ["1", "4"])
def test_a_recompile_is_one_event_with_its_triton_kernels(tmp_path: Path, workers: str) -> None:
    ran = run("sizes", tmp_path, TORCHINDUCTOR_COMPILE_THREADS=workers)
    for size in ("32", "64", "1"):
        top = ran.tops(size)[0]
        assert (top["system"], top["kind"]) == ("dynamo", "compile")
        assert all(event["system"] == "dynamo" or event["kind"] == "autotune" for event in ran.tops(size))
        kernels = {event["kernel"] for event in ran.events(size) if event["kernel"].startswith("triton_")}
        assert kernels, "no Triton kernel was told"
    assert ran.events("100") == []
    assert "the guard" in ran.tops("1")[0]["reason"]
    assert {state.partition(" ")[0] for state in ran.told["states"].values()} == {"armed"}


def test_what_is_on_disk_is_a_load(tmp_path: Path) -> None:
    run("sizes", tmp_path)
    again = run("sizes", tmp_path)
    for size in ("32", "64", "1"):
        assert again.tops(size)[0]["kind"] == "cache_load"
        assert "compile" not in {event["kind"] for event in again.events(size)}


@pytest.mark.tells("inductor", "autotune", "no_frames")
def test_tuning_when_a_graph_runs_is_told_once(tmp_path: Path) -> None:
    ran = run("tuned", tmp_path)
    tuned = [event for event in ran.events("first") if event["system"] == "inductor" and event["kind"] == "autotune"]
    assert tuned, "nothing was benchmarked"
    assert all(event["kernel"].startswith("triton_") for event in tuned)
    assert all("chose " in event["detail"] for event in tuned)
    assert ran.events("second") == []
    assert ran.told["frames"] == 0
    assert ran.tops("gemm")[0]["system"] == "dynamo"
    assert ran.events("gemm again") == []
    strays = [event for event in ran.tops("gemm") if event["system"] == "triton"]
    assert strays == [], "kernels that max-autotune tried are no part of the compile"


@pytest.mark.tells("inductor", "autotune")
def test_coordinate_descent_is_an_autotune_event_with_the_compiles_that_it_makes(tmp_path: Path) -> None:
    ran = run("descent", tmp_path)
    (descent,) = [event for event in ran.events("first") if "coordinate descent chose" in event["detail"]]
    assert descent["kind"] == "autotune"
    assert kinds(ran.parts("first", descent)) <= {("triton", "compile"), ("triton", "cache_load")}
    assert ran.parts("first", descent)
    assert (ran.events("second"), ran.told["frames"]) == ([], 0)


@pytest.mark.tells("inductor", "graph_capture")
def test_recording_a_cuda_graph_is_told_from_compiling(tmp_path: Path) -> None:
    ran = run("graphs", tmp_path)
    everything = [event for number in range(1, 5) for event in ran.events(f"run {number}")]
    captures = [event for event in everything if event["kind"] == "graph_capture"]
    assert [event["kernel"] for event in captures] == ["total"]
    assert captures[0]["system"] == "inductor"
    assert "compile" not in {event["kind"] for number in (2, 3, 4) for event in ran.events(f"run {number}")}
    assert ran.events("run 4") == []
    assert ran.told["frames"] == 0


def test_a_wrapper_in_cpp_is_part_of_the_compile(tmp_path: Path) -> None:
    ran = run("wrapper", tmp_path)
    assert ran.tops("first")[0]["system"] == "dynamo"
    libraries = [event for event in ran.events("first") if event["kernel"].endswith(".so")]
    assert libraries
    assert all(event["parent"] for event in libraries)
    assert ran.events("second") == []
