"""The cache folders' net: what is new there and no event explains, whoever compiled it."""

from __future__ import annotations

import os
import pwd
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.places import CACHE_ROOTS, PLACES, Place
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet, _cache_files, _cache_snapshot
from pytest_jitguard.monitors._cache_files import Stamp
from pytest_jitguard.monitors._cache_snapshot import Entry, Snapshot, is_ignored, roots
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
    assert event.seconds is None, "a file tells when it was written, and not since when"
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
        "triton/0123/cuda_utils.cpython-312-x86_64-linux-gnu.so",
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


# -- who may have written it -------------------------------------------------------------------------------------------

UNKNOWN = "no monitor accounts for it: this run or another program wrote it"
OPENS = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
MAPS = """
import mmap, os, sys
mapped = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 0, prot=mmap.PROT_READ)
os.closerange(3, 64)
print("open", flush=True)
sys.stdin.read()
"""


def test_that_another_program_may_have_written_it_is_said(net: Net) -> None:
    net.put("humming/0123/kernel.cubin")
    (event,) = net.seen()
    assert event.reason.endswith(f"0123 appeared in humming's cache folder ({net.root}/humming), and {UNKNOWN}")


def test_that_this_process_uses_it_is_told(net: Net) -> None:
    with net.put("humming/0123/kernel.cubin").open("rb"):
        (event,) = net.seen()
    assert event.reason.endswith("no monitor accounts for it: this process uses it")


@pytest.mark.parametrize("how", [OPENS, MAPS], ids=["opens", "maps"])
@pytest.mark.parametrize("ours", [True, False])
def test_another_process_that_uses_it_is_told_from_one_of_this_run(net: Net, ours: bool, how: str) -> None:
    path = net.put("cupy/0123.cubin")
    words = [sys.executable, "-c", how, str(path)]
    if not ours:  # its parent ends, and whoever adopts it is above us
        words = ["sh", "-c", 'exec 3<&0; "$0" "$@" <&3 & echo $!', *words]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        told = {program.stdout.readline().strip() for _ in range(1 if ours else 2)}
        assert "open" in told
        if not ours:
            program.wait(10)
        pid = program.pid if ours else int((told - {"open"}).pop())
        (event,) = net.seen()
    name = f"pid {pid} of this run uses it" if ours else f"pid {pid} ({sys.executable} -c"
    assert name in event.reason
    assert ("which this run did not start, uses it" in event.reason) is not ours


def test_another_owner_is_told_and_excuses_nothing(net: Net) -> None:
    path = net.put("humming/0123")
    try:
        os.chown(path, 4711, -1)
    except OSError:
        pytest.skip("only root gives files away")
    (event,) = net.seen()
    assert event.reason.endswith(f"no monitor accounts for it: it belongs to user 4711, and this process to {me()}")


def me() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


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


# -- what is easily missed ---------------------------------------------------------------------------------------------


class Reads:
    """Counts which folders are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folders: list[str] = []
        self._scan: Any = os.scandir
        monkeypatch.setattr(os, "scandir", self._scandir)

    def _scandir(self, folder: str) -> Any:
        self.folders.append(folder)
        return self._scan(folder)


SETTLED = 0.1
"""Seconds after which nobody doubts the time of change of a folder."""


def look_into(monkeypatch: pytest.MonkeyPatch, root: Path, *patterns: str) -> Snapshot:
    """Return a snapshot that has settled: looks find nothing, and read nothing."""
    monkeypatch.setenv("SOME_CACHE", str(root))
    snapshot = Snapshot((Place("SOME_CACHE", "some", entries=patterns),))
    snapshot.begin()
    time.sleep(SETTLED)
    assert snapshot.look() == []
    return snapshot


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def names(entries: Sequence[Entry]) -> list[str]:
    return sorted(entry.path.name for entry in entries)


def test_a_look_at_unchanged_folders_reads_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(200):
        put(tmp_path / f"{number:02x}" / f"{number}.so")
    snapshot = look_into(monkeypatch, tmp_path, "??/*.so")
    reads = Reads(monkeypatch)
    assert snapshot.look() == []
    assert reads.folders == []
    put(tmp_path / "07" / "new.so")
    assert names(snapshot.look()) == ["new.so"]
    assert reads.folders == [f"{tmp_path}/07"]


def test_what_comes_in_the_same_tick_as_a_look_is_found_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that gives two changes one stamp: here both times are what they were, as in one tick."""
    snapshot = look_into(monkeypatch, tmp_path, "*.so")
    put(tmp_path / "first.so")
    stamp = _cache_files.stamp(str(tmp_path))
    assert names(snapshot.look()) == ["first.so"]
    put(tmp_path / "second.so")
    monkeypatch.setattr(_cache_snapshot, "stamp_of", lambda path: stamp)
    told = tmp_path.stat()
    monkeypatch.setattr(os, "stat", _pinned(tmp_path, stamp, told))
    assert names(snapshot.look()) == ["second.so"]


def test_a_folder_whose_times_are_whole_seconds_is_read_again_for_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(_cache_snapshot, "monotonic", lambda: now[0])
    monkeypatch.setenv("SOME_CACHE", str(tmp_path))
    second = int(time.time()) * 1_000_000_000
    stamp = Stamp(1, 2, second, second)
    monkeypatch.setattr(_cache_snapshot, "stamp_of", lambda path: stamp)
    told = tmp_path.stat()
    monkeypatch.setattr(os, "stat", _pinned(tmp_path, stamp, told))
    snapshot = Snapshot((Place("SOME_CACHE", "some", entries=("*.so",)),))
    snapshot.begin()
    now[0] += 1.0
    assert snapshot.look() == []
    put(tmp_path / "late.so")  # in the same second
    now[0] += 1.0
    assert names(snapshot.look()) == ["late.so"]
    now[0] += 1.0
    assert snapshot.look() == []
    reads = Reads(monkeypatch)
    assert snapshot.look() == []
    assert reads.folders == []


def _pinned(folder: Path, stamp: Stamp, told: os.stat_result) -> Callable[..., Any]:
    """Return an `os.stat` for which a folder's stamp does not change."""
    stat = os.stat
    pinned = types.SimpleNamespace(
        st_dev=stamp[0], st_ino=stamp[1], st_mtime_ns=stamp[2], st_ctime_ns=stamp[3], st_mode=told.st_mode
    )
    return lambda path, **how: pinned if str(path) == str(folder) else stat(path, **how)


def test_entries_that_come_at_the_moment_of_a_look_are_found_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks without a pause beside a thread that writes without a pause: ticks are shared all the time."""
    snapshot = look_into(monkeypatch, tmp_path, "*/*.so")
    found: list[Entry] = []
    writer = threading.Thread(target=lambda: [put(tmp_path / f"{n % 7}" / f"{n}.so") for n in range(400)])
    writer.start()
    while writer.is_alive():
        found += snapshot.look()
    found += snapshot.look()
    found += snapshot.look()
    assert sorted(int(entry.path.stem) for entry in found) == list(range(400))


@pytest.mark.parametrize("name", ["late.so", "0123"])
def test_a_product_that_is_still_empty_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    snapshot = look_into(monkeypatch, tmp_path, "*")
    file = tmp_path / name if name == "late.so" else tmp_path / name / "kernel.cubin"
    file.parent.mkdir(exist_ok=True)
    file.touch()
    assert snapshot.look() == []
    time.sleep(SETTLED)
    assert snapshot.look() == []
    file.write_bytes(b"x")
    assert names(snapshot.look()) == [name]
    assert snapshot.look() == []


def test_what_is_still_being_written_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = look_into(monkeypatch, tmp_path, "*")
    put(tmp_path / "0123" / "kernel.ttir")
    put(tmp_path / "library.so")
    assert names(snapshot.look()) == ["0123", "library.so"]
    put(tmp_path / "0123" / "kernel.cubin")
    put(tmp_path / "other.so")
    (tmp_path / "library.so").write_bytes(b"xxx")
    assert names(snapshot.look()) == ["other.so"]


def test_levels_that_come_later_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    snapshot = look_into(monkeypatch, tmp_path, "*/*/cached_ops/*/*.so")
    (tmp_path / "a" / "b").mkdir()
    time.sleep(SETTLED)
    assert snapshot.look() == []
    (tmp_path / "a" / "b" / "cached_ops").mkdir()
    time.sleep(SETTLED)
    assert snapshot.look() == []
    put(tmp_path / "a" / "b" / "cached_ops" / "decode" / "decode.so")
    assert names(snapshot.look()) == ["decode.so"]
    put(tmp_path / "c" / "d" / "cached_ops" / "prefill" / "prefill.so")
    assert names(snapshot.look()) == ["prefill.so"]


@pytest.mark.parametrize("steps", [1, 3])
def test_a_root_that_comes_later_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    root = tmp_path.joinpath(*"abc"[:steps])
    snapshot = look_into(monkeypatch, root, "*")
    for folder in [*reversed(root.parents), root]:
        folder.mkdir(exist_ok=True)
        assert snapshot.look() == []
        time.sleep(SETTLED)
        assert snapshot.look() == []
    put(root / "0123" / "kernel.cubin")
    assert names(snapshot.look()) == ["0123"]


def test_roots_that_are_not_there_cost_one_question_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE_CACHE", str(tmp_path / "none" / "one"))
    monkeypatch.setenv("OTHER_CACHE", str(tmp_path / "none" / "other" / "cache"))
    places = [Place(name, "some", entries=("*", "*/*.so")) for name in ("ONE_CACHE", "OTHER_CACHE")]
    snapshot = Snapshot(tuple(places))
    snapshot.begin()
    assert snapshot.look() == []
    asked: list[str] = []

    def access(path: str, mode: int) -> bool:
        asked.append(path)
        return False

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr(os, "stat", lambda path: pytest.fail(f"asked for {path}"))
    assert snapshot.look() == []
    assert asked == [str(tmp_path / "none")]


def test_a_variable_that_is_set_later_counts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = look_into(monkeypatch, tmp_path / "one", "*.so")
    put(tmp_path / "two" / "new.so")
    monkeypatch.setenv("SOME_CACHE", str(tmp_path / "two"))
    assert names(snapshot.look()) == ["new.so"]


def test_a_link_to_nowhere_is_followed_once_it_leads_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").symlink_to(tmp_path / "disk" / "cache")
    snapshot = look_into(monkeypatch, tmp_path / "root", "*")
    put(tmp_path / "disk" / "cache" / "0123" / "kernel.cubin")
    assert names(snapshot.look()) == ["0123"]


def test_links_at_the_root_and_below_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "disk" / "ops" / "old.so")
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "linked").symlink_to(tmp_path / "disk" / "ops")
    (tmp_path / "real" / "round").symlink_to("round")
    (tmp_path / "root").symlink_to(tmp_path / "real")
    snapshot = look_into(monkeypatch, tmp_path / "root", "*/*.so")
    put(tmp_path / "disk" / "ops" / "new.so")
    assert names(snapshot.look()) == ["new.so"]


def test_a_link_that_is_turned_elsewhere_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "one" / "old.so")
    (tmp_path / "two").mkdir()
    moment = (1e9, 1e9)
    for folder in ("one", "two"):
        os.utime(tmp_path / folder, moment)
    (tmp_path / "root").symlink_to(tmp_path / "one")
    snapshot = look_into(monkeypatch, tmp_path / "root", "*.so")
    put(tmp_path / "two" / "new.so")
    os.utime(tmp_path / "two", moment)
    (tmp_path / "turned").symlink_to(tmp_path / "two")
    (tmp_path / "turned").rename(tmp_path / "root")
    assert names(snapshot.look()) == ["new.so"]


def test_who_sets_the_time_of_a_folder_back_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = look_into(monkeypatch, tmp_path, "*.so")
    told = tmp_path.stat()
    put(tmp_path / "new.so")
    os.utime(tmp_path, ns=(told.st_atime_ns, told.st_mtime_ns))
    assert names(snapshot.look()) == ["new.so"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_root_that_is_emptied_and_filled_again_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The same names, and often the same inodes."""
    path, pattern = ("ab/kernel.so", "*/*.so") if kind == "file" else ("0123/kernel.cubin", "*")
    root = tmp_path / "root"
    put(root / path)
    snapshot = look_into(monkeypatch, root, pattern)
    for _ in range(3):
        shutil.rmtree(root)
        put(root / path)
        assert len(snapshot.look()) == 1
        time.sleep(SETTLED)
        assert snapshot.look() == []


def test_a_root_in_whose_place_another_folder_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    put(root / "old.so")
    snapshot = look_into(monkeypatch, root, "*.so")
    put(tmp_path / "next" / "new.so")
    root.rename(tmp_path / "gone")
    (tmp_path / "next").rename(root)
    assert names(snapshot.look()) == ["new.so"]


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
