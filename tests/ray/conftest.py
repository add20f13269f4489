"""A real Ray cluster on one machine: a head and two nodes, with file systems, processes and clocks of their own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
OFFSETS = {"one": 5, "two": -5}
"""Seconds by which the nodes' monotonic clocks are ahead of the head's."""

PRIVATE = 'for it in "$1" "$2"; do mount -t tmpfs -o mode=0700 none "$it"; done; hostname "$3"; shift 3; exec "$@"'
NAMESPACES = ("--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")


def unshare(*flags: str) -> list[str]:
    mapped = () if os.geteuid() == 0 else ("--map-root-user",)
    return ["unshare", *mapped, *NAMESPACES, *flags]


def is_permitted(*flags: str) -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*unshare(*flags), "true"], capture_output=True, timeout=30).returncode == 0


@dataclass
class Cluster:
    """The processes of a cluster; `private` is another folder on each node, `clocks` tells whether theirs differ."""

    private: Path
    port: int
    clocks: bool
    environment: dict[str, str]
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, name: str, *prefix: str, **variables: str) -> None:
        where = [f"--address={self.address}"] if self.nodes else ["--head", f"--port={self.port}"]
        where += [] if self.nodes else ["--include-dashboard=false"]
        main = "from ray.scripts.scripts import main; main()"
        options = ["--block", "--node-ip-address=127.0.0.1", "--num-cpus=1", "--object-store-memory=80000000"]
        options += [f"--node-name={name}", f'--resources={{"{name}": 1}}', "--disable-usage-stats"]
        with (Path(self.environment["RAY_TMPDIR"]) / f"{name}.log").open("wb") as log:
            self.nodes[name] = subprocess.Popen(
                [*prefix, sys.executable, "-c", main, "start", *where, *options],
                env={**self.environment, **variables},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_apart(self, name: str, **variables: str) -> None:
        clock = (f"--time --monotonic={OFFSETS[name]} --boottime={OFFSETS[name]}").split() if self.clocks else []
        own = [str(self.private), self.environment["RAY_TMPDIR"], f"host-{name}"]
        self.start(name, *unshare(*clock), "sh", "-ec", PRIVATE, "sh", *own, **variables)

    def head_server(self) -> int:
        for pid in _offspring(self.nodes["head"].pid):
            if "gcs_server" in Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]:
                return pid
        raise LookupError("the head has no gcs_server")

    def stop(self) -> None:
        pids = [pid for process in self.nodes.values() for pid in (process.pid, *_offspring(process.pid))]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.nodes.values():
            process.wait(30)


def _offspring(pid: int) -> Iterator[int]:
    for task in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(task.read_text().rpartition(")")[2].split()[1]) == pid:
                yield int(task.parent.name)
                yield from _offspring(int(task.parent.name))


def _wait_for(address: str) -> None:
    host, port = address.split(":")
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"no Ray head at {address}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ray_variables(folder: Path) -> dict[str, str]:
    """An environment for Ray that neither reads nor leaves anything outside of a folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "JITGUARD", "PYTEST", "VLLM"))}
    paths = [str(ROOT), str(ROOT / "tests" / "fakejit"), os.environ.get("PYTHONPATH", "")]
    return {
        **kept,
        "HOME": str(folder),
        "PYTHONPATH": os.pathsep.join(paths),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


@pytest.fixture(scope="session")
def ray_folder() -> Iterator[Path]:
    """A folder with a short path: Ray keeps sockets in it."""
    folder = Path(tempfile.mkdtemp(prefix="rj", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(ray_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose nodes may be killed; node one has our start-up file, the others have the hook alone."""
    yield from made(ray_folder, tmp_path_factory)


@pytest.fixture(scope="module")
def cluster_of_module(ray_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Another one, for tests that need it whole."""
    yield from made(ray_folder, tmp_path_factory)


def made(ray_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="ray is not installed")
    if not is_permitted():
        pytest.skip("namespaces are not permitted here (unshare), so a node cannot have a folder of its own")
    private = tmp_path_factory.mktemp("private")
    clocks = is_permitted("--time", "--monotonic=5")
    cluster = Cluster(private, _free_port(), clocks, ray_variables(ray_folder))
    try:
        cluster.start("head")
        _wait_for(cluster.address)
        cluster.start_apart("one", PYTHONPATH=_with_start_up_file(tmp_path_factory, cluster.environment))
        cluster.start_apart("two")
        yield cluster
    finally:
        cluster.stop()


def _with_start_up_file(factory: pytest.TempPathFactory, environment: dict[str, str]) -> str:
    """Return a PYTHONPATH with which an interpreter reads our start-up file, as it does where we are installed."""
    site = factory.mktemp("site")
    shutil.copy(ROOT / "pytest_jitguard.pth", site)
    (site / "sitecustomize.py").write_text(f"import site\nsite.addsitedir({str(site)!r})\n")
    return os.pathsep.join([str(site), environment["PYTHONPATH"]])


@dataclass(frozen=True)
class Run:
    """What the driver in `ray_jobs.py` saw, and the run's folder as it left it."""

    cluster: Cluster
    folder: Path
    facts: dict[str, Any]


@pytest.fixture(scope="session")
def run(cluster: Cluster) -> Run:
    folder = cluster.private / "run"
    folder.mkdir(mode=0o700)
    facts = cluster.private / "facts.json"
    script = Path(__file__).parent / "ray_jobs.py"
    all_joined(cluster)
    command = [sys.executable, str(script), cluster.address, str(folder), str(facts)]
    command += [str(cluster.nodes["two"].pid), str(cluster.head_server())]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-5000:]
    return Run(cluster, folder, json.loads(facts.read_text()))


def all_joined(cluster: Cluster) -> None:
    code = (
        "import ray, sys, time\n"
        "ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
        "until = time.monotonic() + 60\n"
        "while sum(node['Alive'] for node in ray.nodes()) < 3:\n"
        "    assert time.monotonic() < until, 'nodes did not join'\n"
        "    time.sleep(0.1)\n"
    )
    subprocess.run([sys.executable, "-c", code, cluster.address], env=cluster.environment, check=True, timeout=120)
