"""A guarded run that drives a Ray cluster: what an actor compiles is judged in the test that called it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GuardedRun
from tests.processes.conftest import reporting_python  # noqa: F401 - a fixture
from tests.ray.conftest import Cluster, all_joined

pytestmark = pytest.mark.ray

SUITE = """
    import ray

    @ray.remote(num_cpus=0)
    class Rank:
        def launch(self, name):
            import fakejit
            return fakejit.launch(name)

    @pytest.fixture(scope="session")
    def ranks():
        ray.init(ADDRESS, log_to_driver=False)
        ranks = [Rank.options(resources={place: 0.1}).remote() for place in ("one", "two")]
        ray.get([rank.launch.remote("warm") for rank in ranks])
        yield ranks
        ray.shutdown()

    @pytest.mark.jitguard
    def test_clean(ranks): ray.get([rank.launch.remote("warm") for rank in ranks])

    @pytest.mark.jitguard
    def test_one(ranks): ray.get(ranks[0].launch.remote("cold"))

    @pytest.mark.jitguard
    def test_two(ranks): ray.get(ranks[1].launch.remote("cold"))

    @pytest.mark.jitguard
    def test_clean_again(ranks): ray.get([rank.launch.remote("cold") for rank in ranks])

    @pytest.mark.jitguard
    def test_killed(ranks):
        victim = Rank.options(resources={"one": 0.1}).remote()
        ray.get(victim.launch.remote("before"))
        ray.kill(victim)
"""


def test_actors_on_nodes_that_share_neither_files_nor_clocks_are_judged(
    guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch, cluster_of_module: Cluster
) -> None:
    cluster = cluster_of_module
    all_joined(cluster)
    for name, value in cluster.environment.items():
        if name.startswith(("RAY_", "HOME", "PYTHONPATH")):
            monkeypatch.setenv(name, value)
    guarded.suite(SUITE.replace("ADDRESS", repr(cluster.address)))
    journals = f"--jitguard-journal={cluster.private / 'journals'}"
    result = guarded.run(journals, "-W", "ignore", timeout=110)
    assert guarded.verdicts() == {
        "test_clean": "clean",
        "test_one": "violated",
        "test_two": "violated",
        "test_clean_again": "clean",
        "test_killed": "violated",
    }, result.stdout.str()
    events = {(e["kernel"], e["host"], e["phase"], (e["test"] or "").rpartition("::")[2]) for e in _events(guarded)}
    assert events == {
        ("warm", "host-one", "fixture", ""),
        ("warm", "host-two", "fixture", ""),
        ("cold", "host-one", "serving", "test_one"),
        ("cold", "host-two", "serving", "test_two"),
        ("before", "host-one", "serving", "test_killed"),
    }
    assert {event["role"] for event in _events(guarded)} == {"ray Rank"}
    assert guarded.report["findings"] == []


def _events(guarded: GuardedRun) -> Any:
    return guarded.report["events"]


DRIVER_IN_A_CHILD = """
    import subprocess, sys

    @pytest.mark.jitguard
    def test_child_drives():
        code = '''
    import ray
    ray.init(ADDRESS, log_to_driver=False)

    @ray.remote(num_cpus=0, resources={"one": 0.1})
    def task():
        import fakejit
        fakejit.launch("by_a_child")

    ray.get(task.remote())
    ray.shutdown()
    '''
        import textwrap
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
"""


def test_a_job_that_a_child_drives_is_judged_too(
    guarded: GuardedRun,
    monkeypatch: pytest.MonkeyPatch,
    cluster_of_module: Cluster,
    reporting_python: Path,  # noqa: F811
) -> None:
    cluster = cluster_of_module
    all_joined(cluster)
    for name, value in cluster.environment.items():
        if name.startswith(("RAY_", "HOME", "PYTHONPATH")):
            monkeypatch.setenv(name, value)
    guarded.python = str(reporting_python)
    guarded.suite(DRIVER_IN_A_CHILD.replace("ADDRESS", repr(cluster.address)))
    result = guarded.run(f"--jitguard-journal={cluster.private / 'children'}", "-W", "ignore", timeout=110)
    assert guarded.verdicts() == {"test_child_drives": "violated"}, result.stdout.str()
    assert [v["kernel"] for v in guarded.violations("test_child_drives")] == ["by_a_child"]
