"""What counts as a compile, a load and a hit: real Triton, offline."""

from __future__ import annotations

from typing import Any

import pytest
from forks import Watch, before_the_assembler, in_fork, tensor


@in_fork
def test_cold_compile_disk_load_and_hit(watch: Watch) -> None:
    from triton_kernels import copy

    x, y = tensor(), tensor()
    copy[(1,)](x, y, 100, BLOCK=64)
    (event,) = watch.news()
    assert (event.kind, event.kernel, event.module, event.status) == ("compile", "copy", "triton_kernels", "ok")
    assert event.artifact_hash
    assert event.launch.path == "triton_kernels:copy"
    assert {"ttir", "ttgir", "llir", "ptx", "cubin"} <= set(event.stages)
    assert 0 < sum(event.stages.values()) <= event.seconds + 0.01
    assert event.stack[0].rpartition(":")[0].startswith(__file__)
    assert event.parent is None
    copy[(1,)](x, y, 101, BLOCK=64)
    assert watch.told(loads=True) == []
    copy.device_caches.clear()
    copy[(1,)](x, y, 101, BLOCK=64)
    (again,) = watch.news()
    assert (again.kind, again.artifact_hash) == ("cache_load", event.artifact_hash)
    assert again.key == event.key  # lists of a disk hit, tuples of a compile
    assert watch.state == ("unproven", "")


@in_fork
def test_warmup_then_launch_is_a_hit_and_loads_late(watch: Watch) -> None:
    import torch
    import triton
    from triton_kernels import copy

    mock = triton.MockTensor(torch.float32)
    copy.warmup(mock, mock, 100, BLOCK=64, grid=(1,))
    assert watch.told(loads=True) == ["compile copy"]
    copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
    (late,) = watch.news()
    assert (late.kind, late.kernel, late.module) == ("device_load", "copy", "triton_kernels")
    copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
    assert watch.told(loads=True) == []


@in_fork
def test_a_load_that_follows_its_compile_is_part_of_it(watch: Watch) -> None:
    from triton_kernels import copy

    copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
    assert watch.told(loads=True) == ["compile copy"]


@in_fork
def test_preload(watch: Watch) -> None:
    import triton
    from triton_kernels import copy

    data: list[str] = []
    triton.knobs.runtime.jit_post_compile_hook = lambda **told: data.append(told["compile"]["specialization_data"])
    copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
    triton.knobs.runtime.jit_post_compile_hook = None
    copy.device_caches.clear()
    assert watch.told() == ["compile copy"]
    copy.preload(data[0])
    (event,) = watch.news()
    assert (event.kind, event.key) == ("cache_load", watch.events[0].key)
    copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
    assert watch.told() == []
    assert ".warmup(" in event.cure


@in_fork
def test_direct_compiles_of_source_and_of_ir(watch: Watch) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton_kernels import put

    target = GPUTarget("cuda", 80, 32)
    source = ASTSource(put, {"x": "*fp32", "value": "i32", "C": "constexpr"}, {(2,): 1}, {})
    compiled = triton.compile(source, target=target)
    (event,) = watch.news()
    assert (event.kind, event.kernel, event.launch) == ("compile", "put", None)
    assert "direct call of triton.compile" in event.cure
    assert event.stack[0].startswith(__file__)
    path = watch.folder / "taken.ttir"
    path.write_text(compiled.asm["ttir"])
    triton.compile(str(path), target=target)
    (event,) = watch.news()
    assert (event.kind, event.kernel, event.module, event.cure) == ("compile", "taken", "", "")
    triton.compile(str(path), target=target)
    assert [event.kind for event in watch.news()] == ["cache_load"]
    assert watch.state == ("unproven", "")


@in_fork
def test_gluon(watch: Watch) -> None:
    from triton_kernels import gluon_put

    gluon_put[(1,)](tensor(), 5, C=1)
    gluon_put[(1,)](tensor(), 7, C=1)
    assert watch.told() == ["compile gluon_put"]
    gluon_put[(1,)](tensor(), 5, C=2)
    assert watch.told() == ["compile gluon_put"]
    assert watch.events[0].module == "triton_kernels"


@in_fork
def test_heuristics(watch: Watch) -> None:
    from triton_kernels import guessed

    for n in (64, 128, 65, 67):
        guessed[(1,)](tensor(), tensor(), n)
    assert watch.told() == ["compile guessed", "compile guessed"]
    assert [c.value for c in watch.events[1].key if c.name == "BLOCK"] == ["32"]


@in_fork
def test_kernels_of_a_factory_share_their_name_and_nothing_else(watch: Watch) -> None:
    from triton_kernels import make_copy

    one, other = make_copy(), make_copy()
    one[(1,)](tensor(), tensor(), 100, BLOCK=64)
    other[(1,)](tensor(), tensor(), 100, BLOCK=64)
    assert watch.told() == ["compile copy", "cache_load copy"]
    assert watch.events[0].artifact_hash == watch.events[1].artifact_hash
    assert len(watch.monitor.resident()) == 2
    assert "cannot be imported" in watch.events[0].cure
    make_copy(3)[(1,)](tensor(), tensor(), 100, BLOCK=64)
    assert watch.told() == ["compile copy"]


@in_fork
def test_async_compile_mode(watch: Watch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import triton
    from triton_kernels import copy

    with ThreadPoolExecutor(2, "worker") as pool, triton.AsyncCompileMode(pool):
        copy.warmup(tensor(), tensor(), 100, BLOCK=64, num_warps=8, grid=(1,))
        copy.warmup(tensor(), tensor(), 112, BLOCK=64, num_warps=8, grid=(1,))
        watch.settle()
    first, second = watch.news()
    assert first.thread.startswith("worker")
    assert second.thread.startswith("worker")
    assert [first.kind, first.status, second.kind, second.status] == ["compile", "ok", "compile", "ok"]
    # The worker knows nothing of the launch; it is taken where the compile was asked for.
    assert first.stack[0].startswith(__file__)
    assert first.launch.options == (("num_warps", "8"),)
    assert {first.launch.values["n"], second.launch.values["n"]} == {"100", "112"}
    assert {c.value for e in (first, second) for c in e.key if c.name == "n"} == {
        "divisible by 16",
        "not divisible by 16",
    }
    begin = next(n for n, r in enumerate(watch.records) if r["record"] == "begin" and r["event"] == first.id)
    end = next(n for n, r in enumerate(watch.records) if r["record"] == "end" and r["event"] == first.id)
    assert begin < end
    copy[(1,)](tensor(), tensor(), 100, BLOCK=64, num_warps=8)
    assert watch.told() == []
    assert watch.state == ("unproven", "")


@in_fork
def test_a_pending_async_compile_is_resident_and_can_be_forgotten(watch: Watch) -> None:
    import threading
    from concurrent.futures import ThreadPoolExecutor

    import triton
    from triton_kernels import copy

    gate = threading.Event()
    pool = ThreadPoolExecutor(1)
    pool.submit(gate.wait)
    with triton.AsyncCompileMode(pool):
        copy.warmup(tensor(), tensor(), 100, BLOCK=64, grid=(1,))
        watch.settle()
        pending = watch.monitor.resident()  # up to 3.6 the slot stays empty until the compile is finished
        watch.monitor.forget(pending)
        assert watch.monitor.resident() == {}
        gate.set()
    watch.settle()
    assert watch.told() == ["compile copy"]
    watch.monitor.forget(watch.monitor.resident())
    copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
    assert watch.told() == ["cache_load copy"]
    assert watch.state == ("unproven", "")


@in_fork
def test_threads_that_compile_one_key_and_several(watch: Watch) -> None:
    import threading
    from collections import Counter

    from triton_kernels import copy, make_copy

    start = threading.Barrier(4)
    kernels = [make_copy(n) for n in range(3)]

    def work(kernel: Any, n: int) -> None:
        start.wait()
        copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
        kernel[(1,)](tensor(), tensor(), n, BLOCK=64)
        watch.settle()

    threads = [threading.Thread(target=work, args=(kernels[n % 3], 100 + n // 3)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = watch.news()
    assert {(event.status, event.kernel) for event in told} == {("ok", "copy")}
    assert 4 <= len(told) <= 8
    assert max(Counter(event.artifact_hash for event in told).values()) >= 1
    assert all(event.seconds > 0 and event.parent is None for event in told)
    assert watch.state == ("unproven", "")


@in_fork
def test_a_fork_after_arming_writes_nothing_into_the_parents_journal(watch: Watch) -> None:
    from forks import fork
    from triton_kernels import copy

    from pytest_jitguard.processes.journal import Journal, read_journal

    journal = _journal(Journal, watch)

    def child() -> list[str]:
        copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
        return watch.told()

    assert fork(child) == ["compile copy"]
    copy[(1,)](tensor(), tensor(), 100, BLOCK=128)
    assert watch.told() == ["compile copy"]
    journal.close()
    text = read_journal(journal.path)
    assert [record["record"] for record in text.records] == ["hello", "begin", "end", "bye"]
    assert text.rejected == []


def _journal(journal_class: Any, watch: Watch) -> Any:
    folder = watch.folder / "journals"
    folder.mkdir()
    journal = journal_class(folder, "test")
    watch.recorder._sink = journal.write
    return journal


@in_fork
def test_a_kill_in_the_middle_leaves_the_beginning_in_the_journal(watch: Watch) -> None:
    import os
    import signal
    import time
    import traceback

    from triton_kernels import copy

    from pytest_jitguard.processes.journal import Journal, read_journal

    reached = watch.folder / "reached"
    before_the_assembler(watch, f"touch {reached}; sleep 60")
    child = os.fork()
    if not child:
        try:
            _journal(Journal, watch)
            copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
        except BaseException:  # noqa: BLE001 - nothing may leave the forked child
            traceback.print_exc()
        os._exit(1)
    deadline = time.monotonic() + 20
    while not reached.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    (path,) = (watch.folder / "journals").iterdir()
    records = read_journal(path).records
    assert [(r["record"], r.get("kernel")) for r in records] == [("hello", None), ("begin", "copy")]
    assert records[1]["launch"]["values"]["n"] == "100"
    assert records[1]["stack"][0].startswith(__file__)


@in_fork
def test_ten_thousand_hits_pass_through_no_line_of_ours(watch: Watch) -> None:
    import sys

    from triton_kernels import copy, guessed, tuned, tuned_guess

    import pytest_jitguard

    home = pytest_jitguard.__file__.rpartition("/")[0]
    x, y = tensor(), tensor()

    def launch() -> None:
        copy[(1,)](x, y, 100, BLOCK=64)
        guessed[(1,)](x, y, 100)
        tuned[(1,)](x, y, 100)
        tuned_guess[(1,)](x, y, 100)

    launch()
    watch.monitors.prove()
    watch.settle()
    ours: dict[str, int] = {}
    frames = 0

    def count(frame: Any, what: str, _: Any) -> None:
        nonlocal frames
        frames += what == "call"
        name = frame.f_code.co_filename
        if what == "call" and name.startswith(home) and f"{home}/offline/" not in name:
            ours[frame.f_code.co_name] = ours.get(frame.f_code.co_name, 0) + 1

    sys.setprofile(count)
    try:
        for _ in range(2_500):
            launch()
    finally:
        sys.setprofile(None)
    assert ours == {}
    assert frames > 30_000
    assert watch.news() == watch.events
    import triton

    hooks = triton.knobs.runtime
    assert not hooks.launch_enter_hook.calls
    assert not hooks.launch_exit_hook.calls
    assert hooks.jit_cache_hook is None
    assert hooks.jit_post_compile_hook is None
    assert copy.pre_run_hooks == []


@in_fork
def test_a_kernel_that_is_always_compiled(watch: Watch) -> None:
    import triton
    from triton_kernels import copy

    triton.knobs.compilation.always_compile = True
    watch.monitors.prove()
    assert watch.state == ("armed", "")
    copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
    copy.device_caches.clear()
    copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
    assert watch.told() == ["compile copy", "compile copy"]


@pytest.mark.parametrize("target", ["cuda:80", "cuda:100", "hip:gfx942"])
@in_fork
def test_other_targets(watch: Watch, target: str) -> None:
    from triton_kernels import put

    watch.on(target)
    put[(1,)](tensor(), 5, C=1)
    assert watch.told() == ["compile put"]
    (component,) = [c for c in watch.events[0].key if c.role == "target"]
    assert component.value == target
