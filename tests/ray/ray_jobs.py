"""Runs as the driver of a Ray job: compiles on the nodes of a cluster, and writes down what it saw of it.

Arguments: the address of the cluster, the run's folder, a file for the facts, the pids of what holds node two
and of the server at the head.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pytest_jitguard.processes.inherit import Inherited
from pytest_jitguard.processes.ray_door import RayDoor
from pytest_jitguard.processes.ray_nodes import RayNodes

GUARD = "cafe0001"
MONITORS = ("fakejit_monitor:FakeMonitor",)
PLACES = ("head", "one", "two")


class Driver:
    """A guard's stand-in: it has the door open and fetches when a guard would."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address = address
        self.folder = folder
        self.said: list[str] = []
        self.facts: dict[str, Any] = {"windows": {}, "said": self.said}
        inherited = Inherited(folder, GUARD, monitors=MONITORS)
        self.nodes = RayNodes(folder, GUARD, self.said.append)
        self.door = RayDoor(inherited, self.said.append, variables={"OURS": "ours"}, leaving=self.nodes.leave)

    def join(self) -> None:
        import ray

        ray.init(self.address, runtime_env={"env_vars": {"THEIRS": "theirs"}}, log_to_driver=False, namespace="tests")
        self.nodes.connect()

    def window(self, kernel: str, call: Any) -> Any:
        import ray

        started = time.monotonic()
        result = ray.get(call(), timeout=60)
        self.facts["windows"][kernel] = (started, time.monotonic())
        return result

    def until_seen(self, text: str) -> bool:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            self.nodes.fetch()
            if any(text in path.read_text() for path in self.folder.glob("*.jsonl")):
                return True
            time.sleep(0.05)
        return False


def on(place: str, **options: Any) -> dict[str, Any]:
    return {"num_cpus": 0, "resources": {place: 0.01}, **options}


def readers() -> list[int]:
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if line.read_text().startswith("ray::Reader"):
                found.append(int(line.parent.name))
    return found


def run_task(kernel: str) -> None:
    import fakejit

    fakejit.launch(kernel)


def classes() -> tuple[Any, Any]:
    import ray

    task = ray.remote(run_task)

    @ray.remote
    class Worker:
        def __init__(self) -> None:
            import fakejit

            self.jit = fakejit

        def launch(self, kernel: str, **arguments: Any) -> None:
            self.jit.launch(kernel, **arguments)

        def nested(self, kernel: str, place: str) -> None:
            ray.get(task.options(**on(place)).remote(kernel))

        def look(self, folder: str) -> dict[str, Any]:
            names = ("OURS", "THEIRS", "ITS_OWN")
            return {
                "folder": sorted(path.name for path in Path(folder).iterdir()) if Path(folder).exists() else None,
                "mode": Path(folder).stat().st_mode & 0o777 if Path(folder).exists() else None,
                "start_up_file": "_jitguard_start" in sys.modules,
                "variables": {name: os.environ.get(name) for name in names},
                "host": os.uname().nodename,
                "readers": readers(),
            }

    return Worker, task


def compile_everywhere(driver: Driver) -> None:
    import ray

    worker, task = classes()
    workers = {place: worker.options(**on(place)).remote() for place in PLACES}
    looks = driver.facts["looks"] = {}
    for place in PLACES:
        looks[place] = ray.get(workers[place].look.remote(str(driver.folder)), timeout=60)
    for place in PLACES:
        driver.window(f"actor_{place}", lambda place=place: workers[place].launch.remote(f"actor_{place}"))
    driver.nodes.fetch()
    driver.window("task_one", lambda: task.options(**on("one")).remote("task_one"))
    driver.window("nested_two", lambda: workers["one"].nested.remote("nested_two", "two"))
    for number in range(50):
        workers["two"].launch.remote(f"many_{number}")
        if number % 10 == 9:
            driver.nodes.fetch()
    driver.window("after_many", lambda: workers["two"].launch.remote("after_many"))
    driver.nodes.fetch()


def be_killed(driver: Driver) -> None:
    import ray

    worker, _ = classes()
    victim = worker.options(**on("one")).remote()
    victim.launch.remote("killed", seconds=600)
    driver.facts["killed_seen"] = driver.until_seen('"kernel":"killed"')
    ray.kill(victim)
    driver.nodes.fetch()


def outlive(driver: Driver) -> None:
    """A detached actor with an environment of its own, which a second job of the same guard finds again."""
    import ray

    worker, _ = classes()
    own = {"env_vars": {"ITS_OWN": "its own"}}
    made = worker.options(**on("one", name="kept", lifetime="detached", runtime_env=own)).remote()
    driver.facts["looks"]["detached"] = ray.get(made.look.remote(str(driver.folder)), timeout=60)
    driver.window("detached", lambda: made.launch.remote("detached"))
    ray.shutdown()
    driver.facts["seen_before_shutdown"] = any(
        '"kernel":"detached"' in path.read_text() for path in driver.folder.glob("*.jsonl")
    )
    driver.join()
    kept = ray.get_actor("kept")
    driver.window("detached_again", lambda: kept.launch.remote("detached_again"))
    driver.nodes.fetch()
    ray.kill(kept)


def signal_readers(number: int) -> None:
    for pid in readers():
        os.kill(pid, number)


def stall(driver: Driver) -> None:
    """Readers that do not answer, then readers that die."""
    import ray

    worker, _ = classes()
    made = worker.options(**on("one")).remote()
    ray.get(made.launch.remote("before_stall"))
    driver.nodes.fetch()
    signal_readers(signal.SIGSTOP)
    ray.get(made.launch.remote("stalled"))
    started = time.monotonic()
    driver.nodes.fetch(wait=1)
    driver.facts["stalled_fetch"] = time.monotonic() - started
    signal_readers(signal.SIGCONT)
    driver.facts["stalled_seen"] = driver.until_seen('"kernel":"stalled"')
    signal_readers(signal.SIGKILL)
    ray.get(made.launch.remote("readers_killed"))
    driver.facts["readers_killed_seen"] = driver.until_seen('"kernel":"readers_killed"')


def join_by_itself(driver: Driver) -> None:
    """Ray calls `ray.init` itself where nobody did."""
    import ray

    ray.shutdown()
    os.environ["RAY_ADDRESS"] = driver.address
    _, task = classes()
    driver.window("by_itself", lambda: task.options(**on("one")).remote("by_itself"))
    driver.nodes.fetch()
    del os.environ["RAY_ADDRESS"]


def be_refused(driver: Driver) -> None:
    """A job that sets our variable itself, and one that began before the guard."""
    import ray

    ray.shutdown()
    driver.facts["late"] = [text for text in driver.said if "did not answer in time" in text]
    driver.facts["earlier"] = [text for text in driver.said if "did not answer in time" not in text]
    driver.said.clear()
    ray.init(driver.address, runtime_env={"env_vars": {"JITGUARD_PARENT": "theirs"}}, log_to_driver=False)
    driver.facts["refused"] = list(driver.said)
    driver.said.clear()
    driver.door.close()
    ray.shutdown()
    ray.init(driver.address, log_to_driver=False)
    driver.door.open()
    driver.nodes.fetch()
    driver.facts["too_late"] = list(driver.said)
    driver.said.clear()
    ray.shutdown()


def lose_a_node(driver: Driver, holder: int) -> None:
    import ray

    os.kill(holder, signal.SIGKILL)
    until = time.monotonic() + 60
    while sum(node["Alive"] for node in ray.nodes()) > 2 and time.monotonic() < until:
        driver.nodes.fetch(wait=2)
        time.sleep(0.2)
    started = time.monotonic()
    driver.nodes.fetch()
    driver.facts["lost"] = list(driver.nodes.lost)
    driver.facts["fetch_after_loss"] = time.monotonic() - started


def lose_the_head(driver: Driver, head: int) -> None:
    driver.nodes.fetch()
    os.kill(head, signal.SIGKILL)
    time.sleep(0.5)
    before, started = len(driver.said), time.monotonic()
    driver.nodes.fetch()
    driver.nodes.close(remove=True)
    driver.facts["fetch_without_head"] = time.monotonic() - started
    driver.facts["said_without_head"] = driver.said[before:]
    del driver.said[before:]


def main(address: str, folder: str, facts: str, holder: str, head: str) -> None:
    driver = Driver(address, Path(folder))
    driver.door.open()
    driver.join()
    compile_everywhere(driver)
    be_killed(driver)
    outlive(driver)
    stall(driver)
    join_by_itself(driver)
    be_refused(driver)
    driver.join()
    driver.nodes.fetch()
    lose_a_node(driver, int(holder))
    driver.nodes.close(remove=True)
    driver.door.close()
    import ray

    driver.facts["undone"] = not hasattr(ray.init, "_jitguard_link")
    lose_the_head(driver, int(head))
    Path(facts).write_text(json.dumps(driver.facts))
    os._exit(0)  # Ray's own shutdown would wait for the head


if __name__ == "__main__":
    main(*sys.argv[1:])
