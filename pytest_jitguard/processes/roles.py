"""What a process is, and which of how many: told from its command line, its environment and its title."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pytest_jitguard.core.kinship import COMPILE_WORKER

CHILD = "child"
RESOURCE_TRACKER = "resource tracker"
FORKSERVER = "forkserver"
HELPERS = (RESOURCE_TRACKER, FORKSERVER, COMPILE_WORKER)
"""Roles of processes that serve nobody: whatever they do, another process asked them to."""


class Identity(NamedTuple):
    """Role, rank and number of ranks of a process; None where nobody said."""

    role: str = CHILD
    rank: int | None = None
    world: int | None = None


def identify(argv: Sequence[str], environment: Mapping[str, str], title: str = "", process_name: str = "") -> Identity:
    """Return what is known of a process.

    `title` is what it calls itself in a process list, empty if that is its command line. `process_name` is that of
    `multiprocessing`. A title knows more than a command line, and its rank more than the environment, which a whole
    tree inherits.
    """
    rank, world = rank_in(environment)
    titled = titled_role(title)
    if titled:
        said = titled_rank(title)
        return Identity(titled, rank if said is None else said, world)
    role = commanded_role(argv)
    if role == CHILD and process_name not in ("", "MainProcess"):
        role = process_name
    return Identity(role, rank, world)


# -- ranks -------------------------------------------------------------------------------------------------------------

_RANKS = (
    ("RANK", "WORLD_SIZE"),  # torchrun, and most launchers of one process per GPU
    ("LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
)


def rank_in(environment: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Return rank and number of ranks as a launcher put them into the environment."""
    for rank, world in _RANKS:
        number = _number(environment.get(rank, ""))
        if number is not None:
            return number, _number(environment.get(world, ""))
    return None, None


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


# -- titles ------------------------------------------------------------------------------------------------------------

_TITLE = re.compile(r"(?P<engine>\w[\w-]*)::(?P<rest>[\w.<>-]+)")
_PLACE = re.compile(r"_(DP|PP|PCP|TP|DCP|EP|ATTN_DP|ATTN_CP|ATTN_TP)(\d+)")
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_ ]+")


def titled_role(title: str) -> str:
    """Return the role in the title of a vLLM, SGLang or Ray process: `vllm worker TP1`; empty if it is another's."""
    match = _TITLE.match(title)
    if match is None:
        return ""
    engine, rest = match["engine"].lower(), match["rest"]
    if engine == "ray":
        return "ray idle worker" if rest == "IDLE" else f"ray {rest.partition('.')[0]}"
    name = _WORDS.sub(" ", _PLACE.sub("", rest)).strip().lower()
    places = " ".join(f"{kind}{number}" for kind, number in _PLACE.findall(rest))
    return f"{engine} {name} {places}".rstrip()


def titled_rank(title: str) -> int | None:
    """Return the rank in a title, where it is told apart by one number only.

    Of `DP1_TP0` nobody knows the rank without the sizes; the expert-parallel rank counts through both.
    """
    places = dict(_PLACE.findall(title))
    if "EP" in places and "PP" not in places:
        return int(places["EP"])
    others = [int(number) for kind, number in places.items() if kind in ("DP", "PP", "TP")]
    return others[0] if len(others) == 1 else None


# -- command lines -----------------------------------------------------------------------------------------------------

_COMMANDS = (
    ("torch/_inductor/compile_worker/__main__.py", COMPILE_WORKER),
    ("torch._inductor.compile_worker", COMPILE_WORKER),
    ("from multiprocessing.resource_tracker import", RESOURCE_TRACKER),
    ("from multiprocessing.semaphore_tracker import", RESOURCE_TRACKER),
    ("from multiprocessing.forkserver import", FORKSERVER),
    ("vllm.entrypoints.openai.api_server", "vllm api server"),
    ("vllm.entrypoints.cli.main", "vllm api server"),
    ("sglang.launch_server", "sglang server"),
    ("torch.distributed.run", "torchrun"),
    ("torch.distributed.launch", "torchrun"),
    ("ray/_private/workers/default_worker.py", "ray worker"),
    ("ray/dashboard/", "ray dashboard"),
    ("ray/_private/", "ray service"),
)
"""Part of one of the first arguments to role."""

_PROGRAMS = {
    "torchrun": "torchrun",
    "uvicorn": "api server",
    "gunicorn": "api server",
    "hypercorn": "api server",
    "granian": "api server",
    "pytest": "pytest",
}
"""A program's name, or that of a module run with -m, to role."""


def commanded_role(argv: Sequence[str]) -> str:
    """Return the role that a command line tells, `child` if none."""
    first = [part.replace("\\", "/") for part in argv[:8]]
    for part, role in _COMMANDS:
        if any(part in word for word in first):
            return role
    names = [word.rpartition("/")[2] for word in first]
    program = _program(first, names)
    if program == "vllm" and "serve" in first:
        return "vllm api server"
    return _PROGRAMS.get(program, CHILD)


def _program(words: Sequence[str], names: Sequence[str]) -> str:
    """Return the script or module that Python runs, else the program itself."""
    for at, word in enumerate(words[1:], 1):
        if word == "-m":
            return words[at + 1] if at + 1 < len(words) else ""
        if word == "-c":
            return ""
        if not word.startswith("-"):
            return names[at] if names[0].startswith(("python", "pypy")) else names[0]
    return names[0] if names else ""
