"""The cache folders' net: what is new there and no event explains, whoever compiled it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.places import CACHE_ROOTS, PLACES, Place
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet, _cache_snapshot
from pytest_jitguard.monitors._cache_snapshot import Snapshot, is_ignored, roots
from tests.conftest import GuardedRun

NET = "pytest_jitguard.monitors.cache_folders:CacheFolderMonitor"
TOOLCHAIN = "pytest_jitguard.monitors.toolchain:ToolchainMonitor"

needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")


class Net:
    """An armed net over empty caches."""

    def __init__(self, root: Path, *more: str) -> None:
        self.root = root
        self.records: list[Any] = []
        self.recorder = Recorder("feed0001", self.records.append)
        self.monitors = MonitorSet([*more, NET], self.recorder)

    def put(self, path: str, size: int = 8, age: float = 0.0) -> Path:
        """Write a file below the caches, as if some seconds ago."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * size)
        if age:
            moment = time.time() - age
            os.utime(file, (moment, moment))
        return file

    def seen(self) -> list[CompileEvent]:
        self.monitors.settle()
        self.monitors.account()
        assert self.net.state == "armed", self.net.detail
        return self.recorder.events

    @property
    def net(self) -> Any:
        found = self.monitors.named("cache_folders")
        assert found is not None
        return found


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every cache in a folder of its own."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    for variable, name in CACHE_ROOTS.items():
        (tmp_path / "caches" / name).mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv(variable, str(tmp_path / "caches" / name))
    return tmp_path / "caches"


@pytest.fixture
def net(caches: Path) -> Iterator[Net]:
    net = Net(caches)
    net.monitors.arm()
    yield net
    net.monitors.disarm()


ENTRIES = {
    "triton/0123abcd/kernel.cubin": "0123abcd",
    "inductor/ab/cabc.so": "cabc",
    "inductor/triton/0/0123/kernel.cubin": "0123",
    "torch_extensions/mine/mine.so": "mine",
    "vllm/deep_gemm/cache/sm90.0123/kernel.cubin": "sm90",
    "sglang/deep_gemm/cache/sm90.4567/kernel.cubin": "sm90",
    "sglang/jit/sm90/norm/build-1/deps-2/norm.so": "deps-2",
    "deep_gemm/cache/kernel.fp8.0123/kernel.cubin": "kernel",
    "flashinfer/.cache/flashinfer/0.6/90a/cached_ops/decode/decode.so": "decode",
    "cute_dsl/cute_dsl_0123.mlir": "cute_dsl_0123",
    "quack/print/0123.o": "0123",
    "tilelang/0.1.15/linux-x86_64/kernels/0123/kernel.so": "0123",
    "tvm_ffi/mod_0123/mod.so": "mod",
    "aiter/module_norm.so": "module_norm",
    "aiter_root/build/pa_0123/lib.so": "lib",
    "humming/0123/kernel.cubin": "0123",
    "flydsl/gemm_0123/0.pkl": "0",
    "cupy/0123.cubin": "0123",
    "jax/jit_f-0123-cache": "jit_f-0123-cache",
    "cuda/a/b/0123": "0123",
}


@pytest.mark.parametrize("path", ENTRIES)
@pytest.mark.tells("cache_folders", "compile", "name", "hit")
def test_a_new_entry_in_any_cache_is_one_event_and_an_old_one_is_none(net: Net, path: str) -> None:
    net.put(path, size=2048)
    (event,) = net.seen()
    assert (event.system, event.kernel, event.kind, event.status) == ("unattributed", ENTRIES[path], "compile", "ok")
    assert "no monitor accounts for it" in event.reason
    assert "2048 bytes" in event.detail
    assert net.seen() == [event]


@pytest.mark.parametrize("path", ENTRIES)
def test_what_was_there_before_is_no_event(caches: Path, path: str) -> None:
    net = Net(caches)
    net.put(path)
    net.monitors.arm()
    assert net.seen() == []


@pytest.mark.tells("cache_folders", "seconds")
def test_it_lasts_from_its_first_file_to_its_last(net: Net) -> None:
    before = monotonic()
    net.net._snapshot._looked -= 60  # as if the last look had been a minute ago
    net.put("triton/0123/kernel.ttir", age=30)
    net.put("triton/0123/kernel.cubin", age=10)
    (event,) = net.seen()
    assert event.seconds == pytest.approx(20, abs=0.5)
    assert before - 31 < event.started < before - 29


@pytest.mark.parametrize(
    "path",
    [
        "triton/0123/kernel.lock",
        "triton/0123/tmp.pid_7_abc/kernel.cubin",
        "inductor/ab/cabc.so.lock",
        "inductor/ab/cabc.py",
        "deep_gemm/tmp/17-abc/kernel.cubin",
        "deep_gemm/cache/sm90.0123/.committed",
        "flashinfer/.cache/flashinfer/0.6/90a/cached_ops/tmp/decode.lock",
        "flashinfer/.cache/flashinfer/0.6/90a/flashinfer_jit.log",
        "tvm_ffi/mod_0123/lock",
        "jax/jit_f-0123-atime",
        "numba/x/index.nbi",
    ],
)
def test_locks_logs_and_temporary_files_are_none(net: Net, path: str) -> None:
    net.put(path)
    assert net.seen() == []


def test_marks_of_use_eviction_and_what_is_moved_here_are_none(caches: Path, tmp_path: Path) -> None:
    net = Net(caches)
    entry = net.put("deep_gemm/cache/sm90.0123/.committed").parent
    net.put("deep_gemm/cache/sm90.0123/kernel.cubin", age=3600)
    net.put("deep_gemm/cache/sm90.4567/kernel.cubin", age=3600)
    net.monitors.arm()
    os.utime(entry / ".committed")
    shutil.rmtree(caches / "deep_gemm/cache/sm90.4567")
    unpacked = net.put("elsewhere/0123/kernel.cubin", age=3600)
    unpacked.parent.rename(caches / "triton" / "0123")
    old = time.time() - 3600
    os.utime(caches / "triton" / "0123", (old, old))
    assert net.seen() == []


def test_an_entry_counts_when_it_has_a_product(net: Net) -> None:
    net.put("triton/0123/kernel.lock")
    assert net.seen() == []
    net.put("triton/0123/kernel.cubin")
    assert [event.kernel for event in net.seen()] == ["0123"]


def test_a_library_that_is_replaced_is_new(caches: Path) -> None:
    net = Net(caches)
    library = net.put("torch_extensions/mine/mine.so", age=60)
    net.monitors.arm()
    net.put("torch_extensions/mine/tmp.so", size=9).rename(library)
    assert [event.kernel for event in net.seen()] == ["mine"]


def test_a_database_counts_when_it_grows(net: Net) -> None:
    database = net.root / "cutile" / "cache.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE cache (key TEXT PRIMARY KEY, blob BLOB, atime REAL)")
        connection.execute("INSERT INTO cache VALUES ('a', ?, 0.5)", (b"x" * 9000,))
    assert [event.kernel for event in net.seen()] == ["cache"]
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE cache SET atime = 1.5")
    assert len(net.seen()) == 1
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT INTO cache VALUES ('b', ?, 0.5)", (b"x" * 9000,))
    connection.close()
    assert len(net.seen()) == 2


def test_a_cache_that_a_test_moves_is_watched_too(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net.root = tmp_path
    net.put("other/old/kernel.cubin", age=3600)
    os.utime(tmp_path / "other" / "old", (1.0, 1.0))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "other"))
    net.put("other/new/kernel.cubin")
    assert [event.kernel for event in net.seen()] == ["new"]


# -- what explains an entry --------------------------------------------------------------------------------------------


def event_of(net: Net, system: str, image: str = "feed0001") -> CompileEvent:
    event = net.recorder.begin(system, "kernel", "")
    event.id = f"{image}-{event.id.rpartition('-')[2]}"
    return event


@pytest.mark.tells("cache_folders", "parts")
def test_a_monitors_event_explains_it_and_gets_a_witness(net: Net) -> None:
    event = event_of(net, "triton")
    net.put("triton/0123/kernel.cubin")
    net.recorder.end(event)
    assert net.seen() == [event]
    assert event.witnesses == ("cache folders",)
    assert net.records[-1]["witnesses"] == ["cache folders"]


def test_an_outer_systems_event_explains_it_and_an_unrelated_ones_does_not(net: Net) -> None:
    event_of(net, "inductor")
    net.put("triton/0123/kernel.cubin")
    assert len(net.seen()) == 1
    net.put("humming/0123/kernel.cubin")
    assert [event.system for event in net.seen()] == ["inductor", "unattributed"]


def test_a_system_that_the_table_does_not_know_may_write_anywhere(net: Net) -> None:
    event_of(net, "somebodysjit")
    net.put("humming/0123/kernel.cubin")
    assert len(net.seen()) == 1


@pytest.mark.tells("cache_folders", "children")
def test_another_processs_event_explains_it_without_becoming_ours(net: Net) -> None:
    event = event_of(net, "triton", image="beef0002")
    net.put("triton/0123/kernel.cubin")
    assert net.seen() == [event]
    assert event.witnesses == ()


def test_an_event_of_another_moment_explains_nothing(net: Net) -> None:
    now = monotonic()
    event = net.recorder.begin("triton", "kernel", "", started=now - 60)
    net.recorder.end(event, ended=now - 50)
    net.put("triton/0123/kernel.cubin")
    assert [event.system for event in net.seen()] == ["triton", "unattributed"]


def test_two_entries_of_nobodys_are_two_events(net: Net) -> None:
    net.put("flydsl/gemm_1/0.pkl")
    net.put("flydsl/gemm_2/0.pkl")
    assert len(net.seen()) == 2
    net.put("flydsl/gemm_3/0.pkl")
    assert len(net.seen()) == 3


def test_waiting_for_a_lock_explains_nothing(net: Net) -> None:
    net.recorder.begin("aiter", "module", "", kind="lock_wait")
    net.put("aiter/module.so")
    assert len(net.seen()) == 2


# -- which process looks -----------------------------------------------------------------------------------------------


def test_one_of_several_workers_does_not_look(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    net = Net(caches)
    net.monitors.arm()
    assert net.net.state == "off"
    net.put("triton/0123/kernel.cubin")
    net.monitors.account()
    assert net.recorder.events == []


def test_a_forked_child_does_not_look(net: Net) -> None:
    net.put("triton/0123/kernel.cubin")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            net.net.flush()
            status = len(net.recorder.events)
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert len(net.seen()) == 1


# -- the table, and its cost -------------------------------------------------------------------------------------------


def test_places_follow_their_variables_and_have_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    by_variable = {place.variable: place for place in PLACES}
    triton, flashinfer, deep_gemm = (
        by_variable[name] for name in ("TRITON_CACHE_DIR", "FLASHINFER_WORKSPACE_BASE", "DG_JIT_CACHE_DIR")
    )
    assert roots(triton, {}) == [Path("/home/me/.triton/cache")]
    assert roots(triton, {"TRITON_CACHE_DIR": "/c"}) == [Path("/c")]
    assert roots(flashinfer, {"FLASHINFER_WORKSPACE_BASE": "/c"}) == [Path("/c/.cache/flashinfer")]
    assert roots(deep_gemm, {"DG_JIT_CACHE_DIR": "/a:/b"}) == [Path("/a"), Path("/b")]
    assert roots(by_variable["CUDA_TILE_CACHE_DIR"], {"CUDA_TILE_CACHE_DIR": "off"}) == []


@pytest.mark.parametrize("name", ["kernel.lock", "lock", "tmp12", ".committed", "x.tmp", "build.log", "__pycache__"])
def test_what_is_no_product(name: str) -> None:
    assert is_ignored(name)
    assert not is_ignored(f"k{name.strip('.')}x.so")


def test_a_look_at_unchanged_folders_reads_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(200):
        (tmp_path / f"{number:02x}").mkdir(exist_ok=True)
        (tmp_path / f"{number:02x}" / f"{number}.so").write_bytes(b"x")
    time.sleep(0.1)
    monkeypatch.setenv("SOME_CACHE", str(tmp_path))
    snapshot = Snapshot((Place("SOME_CACHE", "some", entries=("??/*.so",)),))
    snapshot.begin()
    read: list[object] = []
    scan = os.scandir

    def scandir(folder: str) -> Any:
        read.append(folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert snapshot.look() == []
    assert read == []
    (tmp_path / "07" / "new.so").write_bytes(b"x")
    assert [entry.path.name for entry in snapshot.look()] == ["new.so"]
    assert read == [f"{tmp_path}/07"]


def test_where_to_look_is_worked_out_once_and_anew_when_a_variable_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked_out: list[str] = []

    def counting(place: Place, environment: Mapping[str, str]) -> list[Path]:
        worked_out.append(place.variable)
        return roots(place, environment)

    monkeypatch.setattr(_cache_snapshot, "roots", counting)
    monkeypatch.setenv("SOME_CACHE", str(tmp_path / "one"))
    snapshot = Snapshot((Place("SOME_CACHE", "some", entries=("*.so", "*.o")),))
    snapshot.begin()
    for _ in range(100):
        assert snapshot.look() == []
    assert worked_out == ["SOME_CACHE"]
    monkeypatch.setenv("SOME_CACHE", str(tmp_path / "two"))
    snapshot.look()
    assert worked_out == ["SOME_CACHE"] * 2


def test_more_folders_than_can_be_looked_into_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caches: Path
) -> None:
    monkeypatch.setattr("pytest_jitguard.monitors._cache_snapshot.MOST_FOLDERS", 3)
    net = Net(caches)
    for number in range(5):
        net.put(f"tvm_ffi/m{number}/m.so")
    net.monitors.arm()
    net.seen()
    assert net.net.detail == f"too many folders to look at in {caches / 'tvm_ffi'}"


# -- systems without a monitor, under pytest, with both nets -----------------------------------------------------------

SYSTEMS = """
    import hashlib, os, pathlib, pickle, sqlite3, subprocess

    HERE = pathlib.Path("k.c").absolute()
    HERE.write_text("int answer(void) { return 42; }")

    def compiler(output):
        subprocess.run(["gcc", "-shared", "-fPIC", str(HERE), "-o", str(output)], check=True, capture_output=True)

    def humming():
        folder = pathlib.Path(os.environ["HUMMING_CACHE_DIR"]) / hashlib.md5(b"humming").hexdigest()
        if not (folder / "kernel.cubin").exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "kernel.cu").write_text("source")
            compiler(folder / "kernel_tmp.cubin")
            (folder / "kernel_tmp.cubin").rename(folder / "kernel.cubin")

    def cutile():
        root = pathlib.Path(os.environ["CUDA_TILE_CACHE_DIR"])
        root.mkdir(parents=True, exist_ok=True)
        with sqlite3.connect(root / "cache.db") as cache:
            cache.execute("CREATE TABLE IF NOT EXISTS cache (key TEXT PRIMARY KEY, blob BLOB)")
            if not cache.execute("SELECT 1 FROM cache").fetchall():
                compiler(root.parent / "tile.cubin")
                blob = (root.parent / "tile.cubin").read_bytes()
                cache.execute("INSERT INTO cache VALUES ('key', ?)", (blob,))
        cache.close()

    def flydsl():
        entry = pathlib.Path(os.environ["FLYDSL_RUNTIME_CACHE_DIR"]) / "gemm_0123" / "0.pkl"
        if not entry.exists():
            entry.parent.mkdir(parents=True)
            entry.write_bytes(pickle.dumps(b"compiled in process"))

    @pytest.mark.jitguard
    @pytest.mark.parametrize("system", [humming, cutile, flydsl])
    @pytest.mark.parametrize("time", [1, 2])
    def test_serves(system, time):
        system()
"""


@needs_gcc
def test_systems_without_a_monitor_are_one_event_each_and_none_when_warm(guarded: GuardedRun, caches: Path) -> None:
    guarded.suite(SYSTEMS)
    guarded.run(f"--jitguard-monitors={NET},{TOOLCHAIN},fakejit_monitor:FakeMonitor", fake=False)
    verdicts = guarded.verdicts()
    for system in ("humming", "cutile", "flydsl"):
        assert verdicts[f"test_serves[1-{system}]"] == "violated"
        assert verdicts[f"test_serves[2-{system}]"] == "clean"
        assert len(guarded.violations(f"test_serves[1-{system}]")) == 1
    events = [event for event in guarded.report["events"] if event["system"] == "unattributed"]
    assert [(event["kernel"], event["witnesses"]) for event in events] == [
        ("kernel_tmp", ["cache folders"]),
        ("tile", ["cache folders"]),
        ("0", []),
    ]


@needs_gcc
def test_what_the_toolchain_saw_is_not_seen_twice(caches: Path) -> None:
    net = Net(caches, TOOLCHAIN)
    net.monitors.arm()
    try:
        (caches / "k.c").write_text("int answer(void) { return 42; }")
        (caches / "humming/0123").mkdir()
        output = caches / "humming/0123/kernel.cubin"
        subprocess.run(["gcc", "-shared", "-fPIC", str(caches / "k.c"), "-o", str(output)], check=True)
        (event,) = net.seen()
        assert (event.kernel, event.witnesses) == ("kernel", ("cache folders",))
    finally:
        net.monitors.disarm()


def test_the_modules_need_neither_pytest_nor_a_library() -> None:
    code = "import sys, pytest_jitguard.monitors.cache_folders, pytest_jitguard.monitors.toolchain; "
    code += "print([name for name in ('pytest', 'torch', 'triton', 'numpy') if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"
