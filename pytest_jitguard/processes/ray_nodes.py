"""Journals from the nodes of a Ray cluster: fetched into the run's folder, with the offset of each node's clock."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.processes import ray_reader
from pytest_jitguard.processes.inherit import VARIABLE
from pytest_jitguard.processes.ray_reader import Chunk

ROUND_TRIPS = 8
"""Round trips per measurement of a clock; the shortest counts."""

REMEASURE_AFTER = 30.0
"""Seconds after which a clock is measured again."""

DRIFT = 1e-4
"""Seconds by which a clock may run away per second: the uncertainty that an old measurement gains."""

AT_A_TIME = 4 << 20
"""Bytes that one call takes from a node."""

_RESTARTS = 2
_NAME = re.compile(r"[\w.\-]+\.jsonl")


class Clock(NamedTuple):
    """The offset of a node's monotonic clock: add it to the node's times to get ours. `error` bounds it; seconds."""

    offset: float
    error: float
    measured: float

    def error_at(self, moment: float) -> float:
        """Return the error that the measurement has by now."""
        return self.error + DRIFT * max(0.0, moment - self.measured)

    def record(self) -> dict[str, Any]:
        """Return the record that follows the `hello` of a mirrored journal."""
        return {"record": "clock", "offset": self.offset, "error": self.error}


def better_clock(old: Clock | None, new: Clock) -> Clock:
    """Return which of two measurements to go by: the newer one, unless the older is still the more exact."""
    return old if old is not None and old.error_at(new.measured) <= new.error else new


@dataclass
class _Node:
    """One node and its reader. `is_ours`: it sees the very folder of the run, None while nobody knows."""

    id: str
    name: str
    actor: Any
    looked: Any
    clock: Clock | None = None
    is_ours: bool | None = None
    restarts: int = 0
    said_late: bool = False


@dataclass
class _Mirror:
    """The copy of one journal in the run's folder: from which node, how many of its bytes, and its clock by now."""

    path: Path
    node: str
    taken: int = 0
    clock: Clock | None = None

    def append(self, data: bytes, clock: Clock) -> None:
        """Add bytes; the clock goes after the first line, and again where it has been measured better."""
        told = (json.dumps(clock.record()) + "\n").encode()
        lines = [told, data] if self.clock not in (None, clock) else [data]
        if self.clock is None:
            first, newline, rest = data.partition(b"\n")
            lines = [first, newline or b"\n", told, rest]
        _append(self.path, b"".join(lines), new=self.clock is None)
        self.taken += len(data)
        self.clock = clock


def _append(path: Path, data: bytes, *, new: bool) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    file = os.open(path, flags | os.O_CREAT | os.O_EXCL if new else flags, 0o600)
    before = os.fstat(file).st_size
    try:
        if os.write(file, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(file, before)  # the whole chunk comes again
        if new:
            path.unlink()
        raise
    finally:
        os.close(file)


@dataclass
class RayNodes:
    """Mirrors the journals of a guard's processes on a Ray cluster into `folder`, where they cannot be read in place.

    `folder` is the run's, `guard` the image of the guard: xdist workers share a folder, and each mirrors its own.

    Readers run as actors of the job that is connected in this process, one per node, without resources. `say` takes
    what went wrong, as text; nothing is raised, and no call waits longer than it is told to. `lost` names the nodes
    that went away, with what was not fetched yet.
    """

    folder: Path
    guard: str
    say: Callable[[str], None]
    lost: list[str] = field(default_factory=list)
    _nodes: dict[str, _Node] = field(default_factory=dict)
    _given_up: set[str] = field(default_factory=set)
    _mirrors: dict[str, _Mirror] = field(default_factory=dict)
    _marker: str = ""
    _job: str = ""
    _head: str = ""
    _lost_head: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # -- what the guard calls ------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Start a reader on each node that has none, without waiting for it; nothing while Ray is not initialised."""
        with self._lock, self._telling("the nodes of the Ray cluster could not be reached"):
            self._follow()

    def fetch(self, *, wait: float = 10.0, torn: bool = False) -> None:
        """Mirror what is new on each node; `torn` also takes the half line at the end of a dead process's journal."""
        until = monotonic() + wait
        with self._lock, self._telling("journals of the Ray cluster could not be read"):
            if self._follow():
                self._meet(until)
                self._read_all(until, torn=torn)

    def leave(self) -> None:
        """Fetch for the last time before this process leaves the cluster: a later `connect` may join another."""
        self.fetch()
        with self._lock, self._telling("readers on the Ray cluster could not be ended"):
            self._let_go()

    def close(self, *, remove: bool = False) -> None:
        """Fetch all that is left, torn lines too, and end the readers; with `remove`, delete the nodes' folders."""
        self.fetch(torn=True)
        with self._lock, self._telling("readers on the Ray cluster could not be ended"):
            if remove and not self._lost_head:
                refs = [node.actor.remove.remote(str(self.folder)) for node in self._foreign()]
                for ref in refs:
                    self._result(ref, monotonic() + 5.0)
            self._let_go()
            if self._marker:
                (self.folder / self._marker).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a test must not fail because evidence could not be fetched
            self.say(f"{what}: {type(error).__name__}: {_first_line(error)}")

    # -- the cluster ---------------------------------------------------------------------------------------------------

    def _follow(self) -> bool:
        """Bring the readers up to date with the cluster; False if this process is in none."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            self._nodes.clear()
            return False
        if self._head_is_gone(ray):
            return False
        self._follow_job(ray)
        there = {node["NodeID"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}
        for node in [node for node in self._nodes.values() if node.id not in there]:
            self._lose(node, "it left the cluster")
        for id, name in there.items():
            if id not in self._nodes and id not in self._given_up:
                self._nodes[id] = self._start(id, name)
        return True

    def _head_is_gone(self, ray: Any) -> bool:
        """Tell whether the head stopped answering: asked for its nodes, Ray would wait a minute, then end the process.

        A head that was never within reach (behind Ray Client) is not missed.
        """
        address = str(ray.get_runtime_context().gcs_address)
        if _answers(address):
            self._head = address
        elif self._head == address:
            if not self._lost_head:
                self._lost_head = True
                self.say(f"the head of the Ray cluster at {address} was lost; what its nodes wrote since is not known")
            return True
        return False

    def _follow_job(self, ray: Any) -> None:
        context = ray.get_runtime_context()
        if context.get_job_id() == self._job:
            return
        self._job, self._lost_head = context.get_job_id(), False
        self._nodes.clear()
        self._given_up.clear()
        variables = (context.runtime_env or {}).get("env_vars") or {}
        if not variables.get(VARIABLE):
            self.say(
                "the workers of this Ray job do not report, and what they compile is not seen: ray.init() was called "
                "before the guard was on, or without its runtime environment; call it in a fixture or a test"
            )

    def _start(self, id: str, name: str) -> _Node:
        actor = _new_reader(id)
        return _Node(id, name, actor, actor.look.remote(str(self.folder), self._mark()))

    def _mark(self) -> str:
        """Put a file into the run's folder that nobody else knows: who sees it sees the same folder."""
        if not self._marker:
            self._marker = f".jitguard-{secrets.token_hex(8)}"
            (self.folder / self._marker).touch(mode=0o600)
        return self._marker

    def _lose(self, node: _Node, why: str) -> None:
        del self._nodes[node.id]
        if node.is_ours:
            return
        self.lost.append(node.name)
        self.say(f"node {node.name} of the Ray cluster was lost: {why}; what its processes wrote since is not known")

    def _let_go(self) -> None:
        ray = sys.modules.get("ray")
        for node in self._nodes.values():
            if ray is not None and ray.is_initialized() and node.actor is not None and not self._lost_head:
                ray.kill(node.actor)
        self._nodes.clear()
        self._job = ""

    # -- readers -------------------------------------------------------------------------------------------------------

    def _meet(self, until: float) -> None:
        """Ask each new node whether it sees the run's folder; a reader of one that does has nothing to do."""
        for node in [node for node in self._nodes.values() if node.is_ours is None]:
            found = self._answer(node, node.looked, until)
            if found is None:
                continue
            node.is_ours = bool(found["same"])
            self._complain(node, found)
            if node.is_ours:
                sys.modules["ray"].kill(node.actor)
                node.actor = None

    def _complain(self, node: _Node, found: dict[str, Any]) -> None:
        where = f"node {node.name} ({found['host']}) of the Ray cluster"
        if found["trouble"]:
            self.say(f"{where} cannot keep journals, and its processes do not report: {found['trouble']}")
        if not found["package"]:
            self.say(f"processes on {where} do not report: pytest-jitguard is not installed there")

    def _foreign(self) -> list[_Node]:
        return [node for node in self._nodes.values() if node.is_ours is False]

    def _read_all(self, until: float, *, torn: bool) -> None:
        for node in self._foreign():
            self._measure(node, until)
        asked = [node for node in self._foreign() if node.clock is not None]
        while asked:
            refs = [(node, self._ask(node, torn=torn)) for node in asked]
            asked = [node for node, ref in refs if self._take(node, self._answer(node, ref, until))]
            if monotonic() > until:
                return

    def _ask(self, node: _Node, *, torn: bool) -> Any:
        taken = {name: mirror.taken for name, mirror in self._mirrors.items()}
        # What is in the run's folder under its own name was not written elsewhere.
        taken.update((name, sys.maxsize) for name in os.listdir(self.folder) if name not in taken)  # noqa: PTH208
        return node.actor.read.remote(str(self.folder), self.guard, taken, AT_A_TIME, torn=torn)

    def _take(self, node: _Node, answer: tuple[list[Any], bool] | None) -> bool:
        """Mirror what a node sent; return whether it has more."""
        if answer is None or node.clock is None:
            return False
        chunks, more = answer
        for chunk in chunks:
            self._mirror(node, Chunk(*chunk), node.clock)
        return more

    def _mirror(self, node: _Node, chunk: Chunk, clock: Clock) -> None:
        if not _NAME.fullmatch(chunk.name):
            return
        path = self.folder / f"ray-{node.id[:12]}-{chunk.name}"
        mirror = self._mirrors.setdefault(chunk.name, _Mirror(path, node.id))
        if chunk.start == mirror.taken:  # two nodes that share a folder both send it
            try:
                mirror.append(chunk.data, clock)
            except FileExistsError:  # a child that is a driver of its own mirrors it
                mirror.taken = sys.maxsize

    # -- clocks --------------------------------------------------------------------------------------------------------

    def _measure(self, node: _Node, until: float) -> None:
        if node.clock is not None and monotonic() - node.clock.measured < REMEASURE_AFTER:
            return
        found = list(self._round_trips(node, until))
        if found:
            node.clock = better_clock(node.clock, min(found, key=lambda clock: clock.error))

    def _round_trips(self, node: _Node, until: float) -> Iterable[Clock]:
        for _ in range(ROUND_TRIPS):
            asked = monotonic()
            theirs = self._answer(node, node.actor.now.remote(), until)
            if theirs is None:
                return
            back = monotonic()
            yield Clock((asked + back) / 2 - theirs, (back - asked) / 2, back)

    # -- answers -------------------------------------------------------------------------------------------------------

    def _answer(self, node: _Node, ref: Any, until: float) -> Any:
        """Return what a reader answered; None if it is late or gone, which is told and dealt with."""
        ray = sys.modules["ray"]
        if node.id not in self._nodes:
            return None
        try:
            return self._result(ref, until)
        except ray.exceptions.GetTimeoutError:
            if not node.said_late:
                node.said_late = True
                self.say(f"node {node.name} of the Ray cluster did not answer in time; its journals are read later")
        except ray.exceptions.RayError as error:
            self._restart(node, _first_line(error))
        return None

    def _result(self, ref: Any, until: float) -> Any:
        return sys.modules["ray"].get(ref, timeout=max(0.05, until - monotonic()))

    def _restart(self, node: _Node, why: str) -> None:
        """Put a new reader where one died, a few times; a node that is gone is found out by the cluster's list."""
        node.restarts += 1
        if node.restarts <= _RESTARTS:
            again = self._start(node.id, node.name)
            node.actor, node.looked, node.is_ours = again.actor, again.looked, None
        else:
            self._given_up.add(node.id)
            self._lose(node, f"its reader died: {why}")


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0):
            return True
    except (OSError, ValueError):
        return False


def _new_reader(node: str) -> Any:
    """Start a reader on a node, and there only; it takes no resources and does not report itself."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    unmonitored = {"env_vars": {VARIABLE: ""}}
    with by_value():
        reader = ray.remote(ray_reader.Reader).options(
            num_cpus=0, max_restarts=0, scheduling_strategy=strategy, runtime_env=unmonitored
        )
        return reader.remote()


@contextlib.contextmanager
def by_value() -> Iterator[None]:
    """Pickle readers with their code, for nodes that lack this package."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(ray_reader)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(ray_reader)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
