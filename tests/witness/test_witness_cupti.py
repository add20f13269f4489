"""The witness from end to end, with its real C part and a libcupti that calls back when a test says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.witness.conftest import Child

START = """
ptx, cubin = open(sys.argv[1], "rb").read(), open(sys.argv[2], "rb").read()
driver, fake = libraries()
recorder, monitors, witness = arm()

def show():
    monitors.settle(); monitors.account()
    import json
    events = [[e.kernel, e.kind, e.status, e.thread, e.detail, e.reason, e.seconds, e.witnesses, e.system, e.started]
              for e in recorder.events]
    print(json.dumps({"state": witness.state, "detail": witness.detail, "events": events,
                      "accounted": witness.accounted, "lazy": witness.lazily_loaded}))

def load(image=cubin, call=19, ns=0, result=0, module=cubin):
    fake.fake_load(call, image, result, ns, module, len(module or b""))
"""


@pytest.fixture
def scene(child: Child, fake_cuda: Path, cubin: Path, ptx: str, tmp_path: Path) -> Any:
    """Run a script after a witness was armed; return what it showed."""
    (tmp_path / "k.ptx").write_text(ptx)

    def run(script: str, **variables: str) -> list[Any]:
        done = child(START + script, tmp_path / "k.ptx", cubin, cuda=fake_cuda, **variables)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.mark.tells("cupti", "compile", "name", "seconds")
def test_a_module_that_nobody_accounts_for_is_unattributed(scene: Any, cubin: Path) -> None:
    before, after = scene("show(); began = time.monotonic(); load(ns=30_000_000); show(); show()")[:2]
    assert (before["state"], before["events"]) == ("armed", [])
    (event,) = after["events"]
    kilobytes = cubin.stat().st_size / 1024
    told = f"a module of {kilobytes:.0f} KB (cubin, 2 kernels) was loaded by cuModuleLoadData on thread MainThread"
    assert event[:6] == [
        event[0],
        "compile",
        "ok",
        "MainThread",
        f"{told} (CUPTI)",
        f"{told}, and no monitor accounts for it",
    ]
    assert event[0] in ("add_one", "ns::scale")
    assert 0.03 <= event[6] < 5
    assert event[8] == "unattributed"


def test_each_module_counts_once(scene: Any) -> None:
    told = scene("load(); show(); show(); load(); show()")
    assert [len(shown["events"]) for shown in told] == [1, 1, 2]


def test_what_a_monitor_saw_has_one_witness_more(scene: Any) -> None:
    (told,) = scene("event = recorder.begin('nvrtc', 'add_one', ''); recorder.end(event); load(); show()")
    (event,) = told["events"]
    assert (event[7], event[8], told["accounted"]) == (["cupti"], "nvrtc", 1)


def test_library_code_is_counted_and_no_event(scene: Any) -> None:
    (told,) = scene(
        "load(b'\\xb1\\x43\\x62\\x46' + bytes(16), call=678); fake.fake_module(3, cubin, len(cubin)); show()"
    )
    assert (told["events"], told["lazy"]) == ([], 2)


@pytest.mark.tells("cupti", "threads")
def test_the_thread_is_named(scene: Any) -> None:
    (told,) = scene("""
thread = threading.Thread(target=lambda: (load(), done.wait()), name="hidden-worker")
done = threading.Event(); thread.start()
while not witness._pending: time.sleep(0.01); witness.flush()
done.set(); thread.join(); show()
""")
    assert told["events"][0][3] == "hidden-worker"
    assert "on thread hidden-worker" in told["events"][0][4]


def test_ptx_that_the_driver_compiles_is_told_with_its_time(scene: Any) -> None:
    (told,) = scene("""
began = time.time_ns()
load(ptx, ns=60_000_000)
fake.fake_jit(1, 3, began + 1_000_000, began + 51_000_000, threading.get_native_id())
show()
""")
    (event,) = told["events"]
    assert "(PTX, 2 kernels) was loaded by cuModuleLoadData on thread MainThread" in event[4]
    assert "; the driver's compiler ran (PTX to cubin in 50 ms)" in event[4]


def test_a_compile_without_a_load(scene: Any) -> None:
    (told,) = scene("""
now = time.time_ns()
fake.fake_jit(2, 2, now, now + 50_000_000, threading.get_native_id())
show()
""")
    (event,) = told["events"]
    assert event[:5] == [
        "a kernel without a name",
        "compile",
        "ok",
        "MainThread",
        "the driver's compiler ran (NVVM IR to PTX in 50 ms) on thread MainThread (CUPTI)",
    ]


def test_cuptis_clock_is_translated(scene: Any) -> None:
    (told,) = scene("""
print_at = time.monotonic(); now = time.time_ns()
fake.fake_jit(2, 2, now, now + 50_000_000, threading.get_native_id())
monitors.settle(); monitors.account()
assert abs(recorder.events[0].started - print_at) < 1, (recorder.events[0].started, print_at)
show()
""")
    assert len(told["events"]) == 1


def test_overheads_take_the_place_of_records_that_this_cupti_does_not_have(scene: Any) -> None:
    script = """
now = time.time_ns()
fake.fake_overhead(1, now, now + 40_000_000, threading.get_native_id())
fake.fake_overhead(5 << 16, now, now + 40_000_000, threading.get_native_id())
show()
"""
    (without,) = scene(script, FAKE_CUPTI_WITHOUT_JIT="1")
    assert [event[4] for event in without["events"]] == [
        "the driver's compiler ran (the driver's compiler in 40 ms) on thread MainThread (CUPTI)"
    ]
    (with_records,) = scene(script)
    assert with_records["events"] == []


@pytest.mark.tells("cupti", "failed")
def test_a_load_that_failed(scene: Any) -> None:
    (told,) = scene("load(ptx, result=218, module=None); show()")
    assert told["events"][0][2] == "failed"
    assert "could not be loaded" in told["events"][0][4]


def test_a_file_is_named(scene: Any) -> None:
    (told,) = scene("load(b'/tmp/kernel.cubin', call=18); show()")
    assert "was loaded by cuModuleLoad from /tmp/kernel.cubin on thread" in told["events"][0][4]
    assert told["events"][0][0] in ("add_one", "ns::scale")


def test_many_threads_lose_nothing(scene: Any) -> None:
    (told,) = scene("""
threads = [threading.Thread(target=lambda: [load() for _ in range(500)]) for _ in range(8)]
[thread.start() for thread in threads]
while any(thread.is_alive() for thread in threads): witness.flush()
[thread.join() for thread in threads]
witness.flush(); count = len(witness._pending); witness._pending.clear()
assert count == 4000, count
show()
""")
    assert told["state"] == "armed"


def test_more_than_fits_makes_blind(scene: Any) -> None:
    (told,) = scene(
        "[load(ptx, module=None) for _ in range((1 << 15) + 5)]; witness.flush(); witness._pending.clear(); show()"
    )
    assert (told["state"], told["detail"]) == ("blind", "10 records of CUPTI's came faster than they could be kept")


@pytest.mark.tells("cupti", "blind")
def test_a_subscription_that_was_taken_away_makes_blind(scene: Any) -> None:
    (told,) = scene("fake.fake_finalize(); show()")
    assert told["state"] == "blind"
    assert "CUPTI calls no more" in told["detail"]


@pytest.mark.tells("cupti", "uninstall")
def test_after_leaving_nothing_is_seen_and_another_may_subscribe(scene: Any) -> None:
    (told,) = scene("""
monitors.disarm(); load(); show()
assert witness.library is None
assert cupti.refusal() == ""
""")
    assert told["events"] == []


def test_it_waits_for_an_import_that_uses_the_driver(child: Child, fake_cuda: Path, tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("import ctypes; ctypes.CDLL('libcuda.so.1')")
    script = """
    recorder, monitors, witness = arm()
    print(witness.state)
    sys.path.insert(0, sys.argv[1])
    import cupy
    print(witness.state, witness.library.is_alive())
    """
    done = child(script, tmp_path, cuda=fake_cuda)
    assert done.stdout.splitlines() == ["waiting", "armed True"], done.stderr


def test_one_that_was_disarmed_while_it_waited_stays_away(child: Child, fake_cuda: Path, tmp_path: Path) -> None:
    (tmp_path / "cupy.py").write_text("")
    script = """
    recorder, monitors, witness = arm()
    monitors.disarm()
    sys.path.insert(0, sys.argv[1])
    import cupy
    print(witness.state, witness.library)
    """
    assert child(script, tmp_path, cuda=fake_cuda).stdout == "waiting None\n"


def test_a_drain_in_the_middle_of_a_call_tears_nothing_apart(scene: Any) -> None:
    told = scene("""
def compiled(middle):
    began = time.time_ns()
    fake.fake_jit(1, 3, began, began + 1_000_000, threading.get_native_id())
    time.sleep(0.002)
    middle()
for middle in (witness.flush, lambda: None):
    fake.fake_enter(19, ptx)
    compiled(middle)
    fake.fake_module(7, cubin, len(cubin))
    middle()
    assert not witness._pending, witness._pending
    fake.fake_leave(19, ptx)
    show()
""")
    assert [len(shown["events"]) for shown in told] == [1, 2]
    assert told[-1]["lazy"] == 0
    assert all("the driver's compiler ran (PTX to cubin in 1 ms)" in event[4] for event in told[-1]["events"])


def test_a_call_that_ends_while_cupti_is_flushed_waits_for_what_its_compiler_did(scene: Any) -> None:
    (told,) = scene("""
flush = witness.library.flush
def late_flush():
    flush()
    fake.fake_enter(19, ptx)
    time.sleep(0.001)
    began = time.time_ns()
    fake.fake_jit(1, 3, began, began + 1_000_000, threading.get_native_id())
    time.sleep(0.002)
    fake.fake_leave(19, ptx)
witness.library.flush = late_flush
witness.flush()
assert not witness._pending, witness._pending
witness.library.flush = flush
show()
""")
    (event,) = told["events"]
    assert "the driver's compiler ran (PTX to cubin in 1 ms)" in event[4]


def test_many_threads_compile_and_nothing_is_torn_apart(scene: Any) -> None:
    (told,) = scene("""
buffer = threading.Lock()  # the fake's, which CUPTI guards itself
def work():
    for _ in range(20):
        fake.fake_enter(19, ptx)
        time.sleep(0.001)
        began = time.time_ns()
        time.sleep(0.001)
        with buffer:
            fake.fake_jit(1, 3, began, time.time_ns(), threading.get_native_id())
        time.sleep(0.001)
        fake.fake_leave(19, ptx)
flush = witness.library.flush
def guarded():
    with buffer:
        flush()
witness.library.flush = guarded
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
while any(thread.is_alive() for thread in threads): witness.flush()
show()
""")
    assert len(told["events"]) == 160
    assert all("the driver's compiler ran (PTX to cubin" in event[4] for event in told["events"])


FORK = """
load()
driver.cuInit(0) if used else None
reading, writing = os.pipe()
pid = os.fork()
if not pid:
    recorder.renew("cafe0002", lambda record: None)
    load()
    os.dup2(writing, 1)
    show(); sys.stdout.flush(); os._exit(0)
os.waitpid(pid, 0)
print(os.read(reading, 65536).decode(), end="")
load(); show()
"""


@pytest.mark.tells("cupti", "children")
def test_a_forked_child_sees_modules_and_asks_for_no_records(scene: Any) -> None:
    child, parent = scene("used = False" + FORK)
    seen = "forked: modules are seen, the driver's own compiler is not told of"
    assert (child["state"], child["detail"]) == ("armed", seen)
    assert [event[8] for event in child["events"]] == ["unattributed"], "its own one, and not its parent's"
    assert (parent["state"], parent["detail"], len(parent["events"])) == ("armed", "", 2)


def test_a_fork_of_a_fork_sees_modules_too(scene: Any) -> None:
    told = scene("""
def fork(then):
    pid = os.fork()
    if not pid:
        recorder.renew("cafe0002", lambda record: None)
        then(); sys.stdout.flush(); os._exit(0)
    os.waitpid(pid, 0)
    load(); show()
fork(lambda: fork(lambda: (load(), show())))
""")
    assert [(each["state"], len(each["events"])) for each in told] == [("armed", 1)] * 3


def test_a_forked_child_of_one_that_only_asked_asks_for_no_records(child: Child, fake_cuda: Path) -> None:
    script = """
    assert cupti.refusal() == ""
    recorder, monitors, witness = arm()
    pid = os.fork()
    if not pid:
        libraries(); witness._imported(sys)
        print(witness.state, witness.library.activities, flush=True); os._exit(0)
    os.waitpid(pid, 0)
    """
    done = child(script, cuda=fake_cuda)
    assert done.stdout == "armed 0\n", done.stderr


def test_a_forked_child_that_cannot_use_cuda_is_off(scene: Any) -> None:
    child, parent = scene("used = True" + FORK)
    assert (child["state"], child["events"]) == ("off", [])
    assert (parent["state"], len(parent["events"])) == ("armed", 2)


def test_nothing_is_imported_and_no_thread_is_started(child: Child, fake_cuda: Path) -> None:
    script = """
    libraries()
    recorder, monitors, witness = arm()
    monitors.settle(); monitors.account()
    print(witness.state, threading.active_count(), sorted({"torch", "triton", "numpy"} & set(sys.modules)))
    """
    assert child(script, cuda=fake_cuda).stdout == "armed 1 []\n"


TRITON = """
recorder, monitors, witness = arm("triton")
driver, fake = libraries()
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
sys.path.insert(0, sys.argv[1])
import three_kernels
witness._imported(sys)
assert witness.state == "armed", witness.to_wire()
count = 0
for kernel in (three_kernels.copy, three_kernels.twice, three_kernels.copy):
    count += 1
    signature = {"x": "*fp32", "y": "*fp32", "BLOCK": "constexpr"}
    source = ASTSource(fn=kernel, signature=signature, constexprs={"BLOCK": 64 << count})
    cubin = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
    fake.fake_load(19, cubin, 0, 0, cubin, len(cubin))
fake.fake_load(19, cubin, 0, 0, cubin, len(cubin))  # a second time, which no event announced
monitors.settle(); monitors.account()
print([(event.system, event.kernel, event.witnesses) for event in recorder.events])
"""

KERNELS = """
import triton, triton.language as tl

@triton.jit
def copy(x, y, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at))

@triton.jit
def twice(x, y, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at) * 2)
"""


def test_what_triton_compiles_is_accounted_for_by_its_monitor(child: Child, fake_cuda: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    (tmp_path / "three_kernels.py").write_text(KERNELS)
    done = child(TRITON, tmp_path, cuda=fake_cuda, TRITON_CACHE_DIR=str(tmp_path / "triton"))
    seen = [("triton", name, ("cupti",)) for name in ("copy", "twice", "copy")]
    assert done.stdout == f"{[*seen, ('unattributed', 'copy', ())]}\n", done.stderr
