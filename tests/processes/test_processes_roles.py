"""Roles and ranks from titles, command lines and environments, as engines and launchers set them."""

from __future__ import annotations

import pytest

from pytest_jitguard.processes.roles import Identity, identify, rank_in, titled_rank, titled_role


@pytest.mark.parametrize(
    ("title", "role", "rank"),
    [
        ("VLLM::EngineCore", "vllm engine core", None),
        ("VLLM::EngineCore_DP1", "vllm engine core DP1", 1),
        ("VLLM::Worker", "vllm worker", None),
        ("VLLM::Worker_TP1", "vllm worker TP1", 1),
        ("VLLM::Worker_PP1_TP0", "vllm worker PP1 TP0", None),
        ("VLLM::Worker_DP0_TP1_EP1", "vllm worker DP0 TP1 EP1", 1),
        ("VLLM::Worker_DP1_TP0_EP2", "vllm worker DP1 TP0 EP2", 2),
        ("VLLM::Worker_TP3_DCP1", "vllm worker TP3 DCP1", 3),
        ("VLLM::APIServer_0", "vllm api server 0", None),
        ("mine::Worker_TP1", "mine worker TP1", 1),
        ("sglang::scheduler_TP1", "sglang scheduler TP1", 1),
        ("sglang::scheduler_DP0_PP1_TP2_EP2", "sglang scheduler DP0 PP1 TP2 EP2", None),
        ("sglang::detokenizer", "sglang detokenizer", None),
        ("sglang::data_parallel_controller", "sglang data parallel controller", None),
        ("sglang::tokenizer_worker:4711", "sglang tokenizer worker", None),
        ("ray::IDLE", "ray idle worker", None),
        ("ray::Engine.step", "ray Engine", None),
        ("ray::task_of_mine", "ray task_of_mine", None),
        ("python -m std::thing", "", None),
        ("", "", None),
    ],
)
def test_titles(title: str, role: str, rank: int | None) -> None:
    assert (titled_role(title), titled_rank(title) if role else None) == (role, rank)


POOL = "/site/torch/_inductor/compile_worker/__main__.py"


@pytest.mark.parametrize(
    ("command", "role"),
    [
        (["python", "worker.py"], "child"),
        ([], "child"),
        (["python", "-m"], "child"),
        (["python", POOL, "--pickler=x", "--workers=2"], "compile worker"),
        (["python", "-s", "-c", "from multiprocessing.resource_tracker import main;main(5)"], "resource tracker"),
        (["python", "-c", "from multiprocessing.forkserver import main; main(1, 2, [], **{})"], "forkserver"),
        (["python", "-c", "from multiprocessing.spawn import spawn_main; spawn_main()"], "child"),
        (["python", "/venv/bin/vllm", "serve", "model"], "vllm api server"),
        (["python", "/venv/bin/vllm", "bench"], "child"),
        (["python", "-m", "vllm.entrypoints.openai.api_server", "--port=1"], "vllm api server"),
        (["python", "-m", "sglang.launch_server", "--tp=2"], "sglang server"),
        (["python", "/venv/bin/uvicorn", "app:app"], "api server"),
        (["python3.12", "-u", "-m", "uvicorn", "app:app"], "api server"),
        (["python", "/venv/bin/torchrun", "--nproc=2", "x.py"], "torchrun"),
        (["python", "-m", "torch.distributed.run", "x.py"], "torchrun"),
        (["python", "train.py", "uvicorn"], "child"),
        (["python", "-c", "uvicorn"], "child"),
    ],
)
def test_command_lines(command: list[str], role: str) -> None:
    assert identify(command, {}).role == role


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, (None, None)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (3, 8)),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "8"}, (1, None)),
        ({"RANK": "none of yours", "LOCAL_RANK": "0"}, (0, None)),
        ({"RANK": "-1"}, (None, None)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}, (2, 4)),
        ({"PMI_RANK": "2", "PMI_SIZE": "4"}, (2, 4)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "16"}, (5, 16)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "16", "RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
    ],
)
def test_ranks_of_launchers(environment: dict[str, str], told: tuple[int | None, int | None]) -> None:
    assert rank_in(environment) == told


def test_a_title_knows_more_than_what_a_whole_tree_inherits() -> None:
    inherited = {"RANK": "0", "WORLD_SIZE": "2"}
    command = ["python", "-m", "vllm.entrypoints.openai.api_server"]
    assert identify(command, inherited, "VLLM::Worker_TP1") == Identity("vllm worker TP1", 1, 2)
    assert identify(command, inherited, "VLLM::EngineCore") == Identity("vllm engine core", 0, 2)
    assert identify(command, inherited, "python -m vllm") == Identity("vllm api server", 0, 2)


def test_a_process_of_multiprocessing_is_called_by_its_name_unless_it_has_a_role() -> None:
    assert identify(["python", "x.py"], {}, process_name="Engine-1").role == "Engine-1"
    assert identify(["python", "x.py"], {}, process_name="MainProcess").role == "child"
    assert identify(["python", POOL], {}, process_name="ForkProcess-1").role == "compile worker"
