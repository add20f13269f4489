"""What can be told of the Ray parts without a cluster: merging, variables, mirrors, clocks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pytest_jitguard.processes.inherit import VARIABLE, Inherited
from pytest_jitguard.processes.ray_door import VLLM_PREFIXES, RayDoor, RayEnvironmentError, merged, ray_environment
from pytest_jitguard.processes.ray_nodes import Clock, RayNodes, _Mirror, better_clock, by_value
from pytest_jitguard.processes.ray_reader import Reader
from pytest_jitguard.processes.tail import FolderTail
from tests.conftest import ROOT

GUARD = "cafe0001"
INHERITED = Inherited(Path("/nowhere/run"), GUARD)
HELLO = b'{"record":"hello","guard":"cafe0001"}\n'


# -- the runtime environment -------------------------------------------------------------------------------------------


def test_the_users_environment_stays_and_ours_is_added() -> None:
    theirs = {"env_vars": {"A": "1"}, "working_dir": "/somewhere"}
    result = merged(theirs, ray_environment(INHERITED))
    assert result["env_vars"] == {"A": "1", **INHERITED.variables()}
    assert result["working_dir"] == "/somewhere"
    assert theirs == {"env_vars": {"A": "1"}, "working_dir": "/somewhere"}


def test_the_users_value_of_a_cache_folder_and_the_users_hook_win() -> None:
    ours = ray_environment(INHERITED, {"TRITON_CACHE_DIR": "/cold", "OTHER": "1"})
    result = merged({"env_vars": {"TRITON_CACHE_DIR": "/theirs"}, "worker_process_setup_hook": "theirs.hook"}, ours)
    assert (result["env_vars"]["TRITON_CACHE_DIR"], result["env_vars"]["OTHER"]) == ("/theirs", "1")
    assert result["worker_process_setup_hook"] == "theirs.hook"


def test_merging_twice_is_merging_once() -> None:
    ours = ray_environment(INHERITED)
    assert merged(merged(None, ours), ours) == merged(None, ours)


@pytest.mark.parametrize(
    ("env_vars", "said"), [({VARIABLE: "{}"}, f"set {VARIABLE} to '{{}}'"), ("A=1", "expected a mapping")]
)
def test_what_cannot_be_merged_is_refused_with_its_value(env_vars: Any, said: str) -> None:
    with pytest.raises(RayEnvironmentError) as caught:
        merged({"env_vars": env_vars}, ray_environment(INHERITED))
    assert said in str(caught.value)


def test_a_runtime_env_object_keeps_its_type() -> None:
    ray_env = pytest.importorskip("ray.runtime_env", reason="ray is not installed")
    theirs = ray_env.RuntimeEnv(env_vars={"A": "1"})
    result = merged(theirs, ray_environment(INHERITED))
    assert isinstance(result, ray_env.RuntimeEnv)
    assert result["env_vars"] == {"A": "1", **INHERITED.variables()}
    assert theirs["env_vars"] == {"A": "1"}


WITHOUT_US = """
import os, pickle, sys
sys.modules["pytest_jitguard"] = None
hook, reader = pickle.load(sys.stdin.buffer), pickle.load(sys.stdin.buffer)
hook()
print(reader().look(sys.argv[1], "marker")["package"], os.path.isdir(sys.argv[2]))
"""


def test_the_hook_and_the_reader_run_on_a_node_without_this_package(tmp_path: Path) -> None:
    cloudpickle = pytest.importorskip("ray.cloudpickle", reason="ray is not installed")
    hook = ray_environment(INHERITED)["worker_process_setup_hook"]
    data = cloudpickle.dumps(hook)
    with by_value():
        data += cloudpickle.dumps(Reader)
    kept = Inherited(tmp_path / "kept", "cafe0001").variables()
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, str(tmp_path / "looked"), str(tmp_path / "kept")],
        input=data,
        env={**os.environ, **kept},
        capture_output=True,
        timeout=60,
    )
    assert done.stdout.split() == [b"False", b"True"], done.stderr.decode()


# -- the door ----------------------------------------------------------------------------------------------------------


class FakeRay(ModuleType):
    """As much of Ray as a door touches; what Ray itself does with it is shown on the cluster."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.calls: list[dict[str, Any]] = []
        self.init: Callable[..., Any] = lambda *args, **kwargs: self.calls.append(kwargs)
        self.shutdown: Callable[[], None] = lambda: self.calls.append({"shutdown": True})
        self.is_initialized: Callable[[], bool] = lambda: False


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    module = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", module)
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", VLLM_PREFIXES):
        monkeypatch.delenv(name, raising=False)
    return module


def _opened(said: list[str], **options: Any) -> RayDoor:
    door = RayDoor(INHERITED, said.append, **options)
    door.open()
    return door


def test_the_environment_of_a_job_configuration_is_kept(ray: FakeRay) -> None:
    door = _opened([])
    config = type("JobConfig", (), {"runtime_env": {"env_vars": {"A": "1"}}})()
    ray.init(job_config=config)
    door.close()
    assert ray.calls[0]["runtime_env"]["env_vars"] == {"A": "1", **INHERITED.variables()}


@pytest.mark.parametrize(
    ("args", "variables"),
    [(("ray://head:10001",), {}), ((), {"RAY_ADDRESS": "ray://head:1"}), ((), {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"})],
)
def test_no_function_is_sent_where_ray_takes_none(
    args: tuple[str, ...], variables: dict[str, str], ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    door = _opened([])
    ray.init(*args)
    door.close()
    assert set(ray.calls[0]["runtime_env"]) == {"env_vars"}


def test_a_closed_door_leaves_nothing_and_opens_again(ray: FakeRay) -> None:
    before = (ray.init, ray.shutdown)
    door = _opened([])
    door.close()
    assert (ray.init, ray.shutdown) == before
    door.open()
    ray.init()
    door.close()
    assert (ray.init, ray.shutdown) == before
    assert "runtime_env" in ray.calls[0]


def test_what_fails_before_a_shutdown_is_told_and_the_shutdown_happens(ray: FakeRay) -> None:
    said: list[str] = []

    def fail() -> None:
        raise OSError("gone")

    door = _opened(said, leaving=fail)
    ray.shutdown()
    door.close()
    assert ray.calls == [{"shutdown": True}]
    assert "gone" in said[0]


AT_EXIT = """
import atexit, sys, types
from pathlib import Path
from pytest_jitguard.processes.inherit import Inherited
from pytest_jitguard.processes.ray_door import RayDoor
sys.modules["ray"] = ray = types.ModuleType("ray")
ray.init = ray.shutdown = ray.is_initialized = lambda: False
atexit.register(print, "ray ends")
door = RayDoor(Inherited(Path("/nowhere"), "cafe0001"), print, leaving=lambda: print("read"))
door.open()
"""


@pytest.mark.parametrize(("after", "said"), [("", ["read", "ray ends"]), ("door.close()", ["ray ends"])])
def test_at_the_exit_of_a_process_nodes_are_read_before_ray_ends(after: str, said: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", AT_EXIT + after], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == said, done.stderr


@pytest.mark.parametrize(
    ("before", "meanwhile"),
    [(None, "JITGUARD_"), ("TPU_, FN_", "TPU_,FN_,JITGUARD_"), ("JITGUARD_,A_", "JITGUARD_,A_")],
)
def test_vllm_is_told_to_copy_our_variables_and_its_setting_is_restored(
    before: str | None, meanwhile: str, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is not None:
        monkeypatch.setenv(VLLM_PREFIXES, before)
    door = _opened([])
    assert os.environ[VLLM_PREFIXES] == meanwhile
    door.close()
    assert os.environ.get(VLLM_PREFIXES) == before


# -- readers and mirrors -----------------------------------------------------------------------------------------------


def _read(folder: Path, taken: dict[str, int], most: int = 1000, *, torn: bool = False) -> tuple[list[Any], bool]:
    return Reader().read(str(folder), GUARD, taken, most, torn=torn)


def test_a_reader_gives_whole_lines_once_and_the_torn_rest_when_asked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(HELLO + b"two\nthr")
    whole = len(HELLO) + 4
    assert _read(tmp_path, {}) == ([("a.jsonl", 0, HELLO + b"two\n")], False)
    assert _read(tmp_path, {"a.jsonl": whole}) == ([], False)
    assert _read(tmp_path, {"a.jsonl": whole}, torn=True) == ([("a.jsonl", whole, b"thr")], False)


def test_a_reader_follows_no_links_and_says_when_there_is_more(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(HELLO)
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "elsewhere")
    for name in ("b", "c"):
        (tmp_path / f"{name}.jsonl").write_bytes(HELLO)
    assert _read(tmp_path, {}, 3) == ([("b.jsonl", 0, HELLO)], True)


def test_a_journal_that_cannot_be_read_does_not_keep_the_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(HELLO)
    entries = sorted(os.scandir(tmp_path), key=lambda entry: entry.name)
    (tmp_path / "a.jsonl").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", lambda path: entries)
        assert _read(tmp_path, {}) == ([("b.jsonl", 0, HELLO)], False)


def test_a_long_journal_comes_in_parts_of_whole_lines(tmp_path: Path) -> None:
    content = HELLO + b"".join(b"%d\n" % number for number in range(200)) + b"torn"
    (tmp_path / "a.jsonl").write_bytes(content)
    got, more, parts = b"", True, 0
    while more:
        chunks, more = _read(tmp_path, {"a.jsonl": len(got)} if got else {}, 100, torn=True)
        got += b"".join(data for _, _, data in chunks)
        parts += 1
        assert got.endswith(b"\n") or not more
    assert got == content
    assert parts > 3


@pytest.mark.parametrize("first", [HELLO.replace(b"0001", b"0002"), b"[]\n", b"torn", b""])
def test_a_reader_leaves_alone_what_is_of_another_guard_or_no_journal(first: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(first)
    assert _read(tmp_path, {}, torn=True) == ([], False)


def test_a_missing_folder_is_made_private_and_reads_as_empty(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert _read(folder, {}) == ([], False)
    found = Reader().look(str(folder), "marker")
    assert (found["same"], found["package"], found["trouble"]) == (False, True, "")
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "marker").touch()
    assert Reader().look(str(folder), "marker")["same"]


@pytest.mark.parametrize("begun", [False, True])
def test_what_a_full_disk_does_not_take_comes_again_whole(
    begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, clock = _Mirror(tmp_path / "m.jsonl", "node"), Clock(1.0, 0.1, 0.0)
    if begun:
        mirror.append(HELLO, clock)
    rest = b'{"record":"bye"}\n' if begun else HELLO + b'{"record":"bye"}\n'
    taken, write = mirror.taken, os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))
    with pytest.raises(OSError, match="No space left"):
        mirror.append(rest, clock)
    monkeypatch.undo()
    assert mirror.taken == taken
    mirror.append(rest, clock)
    assert [json.loads(line)["record"] for line in mirror.path.read_text().splitlines()] == ["hello", "clock", "bye"]


def test_what_another_process_mirrors_is_left_to_it(tmp_path: Path) -> None:
    first = _Mirror(tmp_path / "m.jsonl", "node")
    first.append(HELLO, Clock(1.0, 0.1, 0.0))
    before = first.path.read_bytes()
    with pytest.raises(FileExistsError):
        _Mirror(tmp_path / "m.jsonl", "node").append(HELLO, Clock(1.0, 0.1, 0.0))
    assert first.path.read_bytes() == before


def test_the_clock_follows_the_hello_and_a_better_one_comes_later(tmp_path: Path) -> None:
    mirror = _Mirror(tmp_path / "m.jsonl", "node")
    first, second = Clock(5.0, 0.1, 0.0), Clock(5.05, 0.001, 1.0)
    mirror.append(b'{"record":"hello"}\n{"record":"begin"}\n', first)
    mirror.append(b'{"record":"end"}\n', first)
    mirror.append(b'{"record":"bye"}\n', second)
    told = [json.loads(line) for line in mirror.path.read_text().splitlines()]
    assert [record["record"] for record in told] == ["hello", "clock", "begin", "end", "clock", "bye"]
    assert [record["offset"] for record in told if record["record"] == "clock"] == [5.0, 5.05]


def test_the_ordinary_tail_reads_a_mirror(tmp_path: Path) -> None:
    mirror = _Mirror(tmp_path / "ray-node-h-1-1-c.jsonl", "node")
    tail = FolderTail(tmp_path, lambda hello: True)
    who = b'"schema":1,"image":"c","host":"h","pid":1,"start":1,"monotonic":1.0,"time":1.0'
    mirror.append(b'{"record":"hello",' + who + b"}\n", Clock(1.0, 0.1, 0.0))
    assert [record["record"] for _, record in tail.poll()] == ["hello", "clock"]
    mirror.append(b'{"record":"begin"}\n', Clock(1.0, 0.1, 0.0))
    assert [record["record"] for _, record in tail.poll()] == ["begin"]


def test_the_more_exact_clock_counts_until_it_is_too_old() -> None:
    exact, rough = Clock(1.0, 0.001, 0.0), Clock(2.0, 0.01, 30.0)
    assert better_clock(None, rough) is rough
    assert better_clock(exact, rough) is exact
    assert better_clock(rough, exact._replace(measured=31.0)).offset == 1.0
    assert better_clock(exact, rough._replace(measured=1000.0)).offset == 2.0


def test_without_ray_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    said: list[str] = []
    nodes = RayNodes(tmp_path, GUARD, said.append)
    nodes.connect()
    nodes.fetch()
    nodes.close(remove=True)
    assert said == []
    assert list(tmp_path.iterdir()) == []
    assert "ray" not in sys.modules


def test_a_ray_that_fails_is_told_and_not_raised(tmp_path: Path, ray: FakeRay) -> None:
    def fail() -> bool:
        raise RuntimeError("half dead")

    ray.is_initialized = fail
    said: list[str] = []
    RayNodes(tmp_path, GUARD, said.append).fetch()
    assert "half dead" in said[0]
