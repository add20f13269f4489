"""Blind means no longer reached, not replaced; and whatever was there before is there afterwards."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from forks import Watch, before_the_assembler, in_fork, tensor


class Other:
    """Another plugin's listener."""

    def __init__(self, previous: Any = None, *, true: bool = True, error: Exception | None = None) -> None:
        self.previous, self.true, self.error = previous, true, error
        self.heard: list[bool] = []

    def __bool__(self) -> bool:
        return self.true

    def __call__(self, **compiled: Any) -> None:
        self.heard.append(compiled["cache_hit"])
        if self.previous:
            self.previous(**compiled)
        if self.error:
            raise self.error


def launch(n: int = 100, block: int = 64) -> None:
    from triton_kernels import copy

    copy[(1,)](tensor(), tensor(), n, BLOCK=block)


def slots() -> Any:
    import triton

    return triton.knobs.compilation


def launch_unseen(block: int = 64) -> None:
    """Launch, and lose the listener between our look at the slot and the compile; put back before anybody looks."""
    import triton

    def lose(**_: Any) -> None:
        slots().listener = None

    ours = slots().listener
    triton.knobs.runtime.jit_cache_hook = lose
    launch(block=block)
    triton.knobs.runtime.jit_cache_hook = None
    assert slots().listener is None
    slots().listener = ours


@in_fork
def test_the_canary_arms_and_leaves_nothing(watch: Watch) -> None:
    import tempfile

    import torch
    import triton

    registry = getattr(triton.runtime.jit, "_triton_jit_function_registry", {})
    before = (set(sys.modules), dict(os.environ), dict(vars(triton.knobs.cache)), dict(registry), warnings.filters[:])
    compiled: list[str] = []
    original = triton.compiler.compiler.CompiledKernel.__init__

    def made(self: Any, src: Any, group: Any, hash: str) -> None:
        compiled.extend(str(path) for path in group.values())
        original(self, src, group, hash)

    triton.compiler.compiler.CompiledKernel.__init__ = made
    watch.monitors.prove()
    triton.compiler.compiler.CompiledKernel.__init__ = original
    assert watch.state == ("armed", "")
    after = (set(sys.modules), dict(os.environ), dict(vars(triton.knobs.cache)), dict(registry), warnings.filters[:])
    assert after[1:] == before[1:]
    assert not {name.partition(".")[0] for name in after[0] - before[0]} & {"torch", "triton", "numpy"}
    assert not torch.cuda.is_initialized() or watch._offline is not None
    assert compiled
    assert all(path.startswith(tempfile.gettempdir()) for path in compiled)
    assert not any(Path(path).parent.exists() for path in compiled)
    assert not (watch.folder / "cache").exists()
    assert watch.events == []
    assert watch.told() == []
    watch.monitors.prove()
    assert len({Path(path).parent for path in compiled}) == 1  # what is proven is not asked again


@in_fork(armed=False)
def test_the_canary_needs_no_driver_and_makes_no_context(watch: Watch) -> None:
    import torch
    import triton

    watch._offline.uninstall()
    watch.arm()
    watch.monitors.prove()
    assert watch.state == ("armed", "")
    assert not torch.cuda.is_initialized()
    assert triton.runtime.driver._active is None


@in_fork
def test_the_canary_under_w_error(watch: Watch) -> None:
    os.environ.pop("TRITON_DEFAULT_FP_FUSION")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.monitors.prove()
        assert watch.state == ("armed", "")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        launch()
    assert watch.told() == ["compile copy"]
    # Triton 3.9 warns once in a process; that one is the user's.
    import triton

    expected = hasattr(triton._utils, "FP_FUSION_DEFAULT_WARNING")
    assert any("FP_FUSION" in str(w.message) for w in caught) == expected


@in_fork
def test_another_threads_compile_during_the_canary_goes_where_it_always_goes(watch: Watch) -> None:
    import threading

    from pytest_jitguard.monitors._triton_canary import throw_away_cache

    with throw_away_cache():
        thread = threading.Thread(target=launch)
        thread.start()
        thread.join()
    assert list((watch.folder / "cache").rglob("copy.cubin"))
    assert watch.told() == ["compile copy"]


@in_fork
def test_a_canary_that_cannot_fly_is_tried_a_few_times(watch: Watch) -> None:
    import triton

    tries = []

    def broken(*_: Any) -> Any:
        tries.append(1)
        raise OSError("no compiler here")

    triton.compiler.compiler.make_backend = broken
    for _ in range(10):
        watch.monitors.prove()
    assert watch.state == ("unproven", "the canary could not be compiled: OSError: no compiler here")
    assert len(tries) == 3


@in_fork(armed=False)
def test_a_listener_that_was_there_is_kept_called_and_restored(watch: Watch) -> None:
    other = Other()
    slots().listener = other
    watch.arm()
    assert slots().listener is not other
    watch.monitors.prove()
    launch()
    assert watch.told() == ["compile copy"]
    assert other.heard == [False, False]  # the canary, and the launch
    watch.monitors.disarm()
    assert slots().listener is other


@in_fork
def test_a_listener_chained_on_top_still_hands_on(watch: Watch) -> None:
    watch.monitors.prove()
    ours = slots().listener
    slots().listener = other = Other(ours)
    launch()
    watch.settle()
    watch.monitors.prove()
    assert watch.state == ("armed", "")
    (event,) = watch.news()
    assert (event.kind, event.status, event.launch.path) == ("compile", "ok", "triton_kernels:copy")
    assert event.stack[0].startswith(__file__)
    assert event.seconds > 0.01
    watch.monitors.disarm()
    assert slots().listener is other
    launch(block=128)
    assert watch.events == [event]
    assert other.heard == [False, False, False]


@in_fork
def test_a_listener_on_top_that_asks_ours_at_the_end(watch: Watch) -> None:
    class Asking(Other):
        def __call__(self, **compiled: Any) -> None:
            if self.previous:
                self.previous(**compiled)

    slots().listener = Asking(slots().listener)
    launch()
    (event,) = watch.news()
    assert event.seconds > 0.01


@in_fork
def test_a_listener_on_top_that_asks_ours_at_once(watch: Watch) -> None:
    class Asking(Other):
        def __bool__(self) -> bool:
            return bool(self.previous)

    slots().listener = Asking(slots().listener)
    with pytest.raises(Exception, match="too small"):
        from triton_kernels import wrong

        wrong[(1,)](tensor(), C=1)
    assert watch.told() == ["compile wrong failed"]


@in_fork
def test_a_replaced_listener_is_found_by_the_canary(watch: Watch) -> None:
    watch.monitors.prove()
    slots().listener = Other()
    watch.settle()
    watch.monitors.prove()
    assert watch.state == ("blind", "a canary through triton.compile was not seen")


@pytest.mark.parametrize("cold", [True, False])
@in_fork
def test_a_replaced_listener_is_found_by_what_is_resident(watch: Watch, cold: bool) -> None:
    watch.monitors.prove()
    if not cold:
        from triton_kernels import copy

        launch()
        watch.settle()
        copy.device_caches.clear()
    launch_unseen()
    watch.settle()
    assert watch.state == ("blind", "a resident variant of triton_kernels.copy was announced by no event")


@in_fork
def test_a_replaced_variant_among_others_is_found(watch: Watch) -> None:
    from triton_kernels import copy

    for block in (32, 64, 128):
        launch(block=block)
    watch.settle()
    (lookup,) = (entry[0] for entry in copy.device_caches.values())
    key = list(lookup)[1]
    kept = lookup.pop(key)  # alive, so that nobody hears of its death
    launch_unseen(block=64)
    moved = lookup.pop(key)
    rest = {name: lookup.pop(name) for name in list(lookup)[1:]}
    lookup[key] = moved  # the same keys in the same order
    lookup.update(rest)
    watch.settle()
    assert watch.state[0] == "blind"
    assert kept is not moved


@in_fork
def test_a_replaced_benchmark_is_found(watch: Watch) -> None:
    from triton.runtime.autotuner import Autotuner

    watch.monitors.prove()
    Autotuner._bench = lambda self, *args, config, **meta: [1.0, 1.0, 1.0]
    watch.monitors.prove()
    assert watch.state == ("blind", "a canary through Autotuner._bench was not seen")


@in_fork(armed=False)
def test_a_false_listener_is_not_called_as_without_us(watch: Watch) -> None:
    slots().listener = other = Other(true=False)
    watch.arm()
    launch()
    assert other.heard == []
    assert watch.told() == ["compile copy"]
    other.true = True
    launch(block=128)
    assert other.heard == [False]


@in_fork(armed=False)
def test_what_another_listener_raises_passes(watch: Watch) -> None:
    slots().listener = other = Other(error=RuntimeError("theirs"))
    watch.arm()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="theirs"):
            launch()
    assert watch.told() == ["compile copy", "cache_load copy"]
    assert other.heard == [False, True]
    other.error = None
    launch()
    assert watch.told() == ["cache_load copy"]
    assert watch.state == ("unproven", "")


@in_fork
def test_the_mode_that_raises_at_the_compile(watch: Watch) -> None:
    def complain(event: Any) -> None:
        raise LookupError(event.kernel)

    watch.recorder.on_finished = complain
    with pytest.raises(LookupError, match="copy"):
        launch()
    assert watch.told() == ["compile copy"]
    watch.recorder.on_finished = None
    launch()
    assert watch.told() == ["cache_load copy"]
    assert watch.state == ("unproven", "")


@in_fork(armed=False)
def test_what_was_resident_before_arming_needs_no_event(watch: Watch) -> None:
    from triton_kernels import copy

    launch()
    watch.arm()
    watch.settle()
    assert watch.state == ("unproven", "")
    assert list(watch.monitor.resident().values()) == ["triton_kernels.copy"]
    launch()
    assert watch.told() == []
    copy.device_caches.clear()
    watch.settle()
    assert watch.monitor.resident() == {}


@pytest.mark.parametrize("first_out", ["inner", "outer"])
@pytest.mark.parametrize("stranger", ["none", "between", "top"])
@in_fork(armed=False)
def test_two_guards_leave_no_trace_in_any_order(watch: Watch, first_out: str, stranger: str) -> None:
    from triton_kernels import tuned

    before = touched()
    inner = Watch(watch.folder)
    watch.arm()
    if stranger == "between":
        slots().listener = Other(slots().listener)
    inner.arm()
    top = slots().listener
    if stranger == "top":
        slots().listener = top = Other(slots().listener)
    watch.monitors.prove()
    inner.monitors.prove()
    assert (watch.state, inner.state) == (("armed", ""), ("armed", ""))
    tuned[(1,)](tensor(), tensor(), 100)
    assert watch.told() == inner.told() == ["autotune tuned", "compile tuned", "compile tuned"]
    one, other = (inner, watch) if first_out == "inner" else (watch, inner)
    one.monitors.disarm()
    tuned[(1,)](tensor(), tensor(), 101)
    launch()
    assert other.told() == ["autotune tuned", "compile copy"]
    assert len(one.events) == 3
    other.monitors.disarm()
    launch(block=128)
    assert len(other.events) == 5
    after = touched()
    if stranger == "none":
        assert after == before
    else:
        assert {name for name in before if before[name] != after[name]} <= {"listener"}
        assert slots().listener is top if stranger == "top" else isinstance(slots().listener, Other)


def touched() -> dict[str, Any]:
    import triton
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.jit import JITFunction
    from triton_kernels import copy, tuned

    owners = {"JITFunction": JITFunction, "Autotuner": Autotuner, "async": triton.AsyncCompileMode}
    found = {f"{title}.{name}": value for title, owner in owners.items() for name, value in vars(owner).items()}
    runtime = triton.knobs.runtime
    for name in ("kernel_load_start_hook", "kernel_load_end_hook", "launch_enter_hook", "launch_exit_hook"):
        found[name] = list(getattr(runtime, name).calls)
    found["hooks"] = (runtime.jit_cache_hook, runtime.jit_post_compile_hook, triton.knobs.autotuning.print)
    found["listener"] = vars(triton.knobs.compilation).get("listener", "absent")
    # Triton itself caches properties on its objects.
    found["kernels"] = [name for each in (copy, tuned, tuned.fn) for name in vars(each) if "jitguard" in name]
    found["compile"] = (triton.compile, triton.compiler.compiler.make_backend)
    return found


@in_fork(armed=False)
def test_uninstalling_leaves_everything_as_it_was(watch: Watch) -> None:
    from triton_kernels import tuned

    launch()
    before = touched()
    watch.arm()
    watch.monitors.prove()
    launch(block=128)
    tuned[(1,)](tensor(), tensor(), 100)
    tokens = set(watch.monitor.resident())
    watch.monitor.forget(tokens)
    watch.monitors.disarm()
    assert touched() == before
    events = len(watch.events)
    launch(block=128)
    tuned[(1,)](tensor(), tensor(), 100)
    assert len(watch.events) == events


@in_fork
def test_forgotten_variants_stay_alive_and_come_back(watch: Watch) -> None:
    import gc
    import weakref

    from triton_kernels import copy

    launch()
    (kernel,) = (kernel for entry in copy.device_caches.values() for kernel in entry[0].values())
    alive = weakref.ref(kernel)
    del kernel
    tokens = list(watch.monitor.resident())
    watch.monitor.forget(tokens)
    gc.collect()
    assert alive() is not None
    assert watch.monitor.resident() == {}
    launch()
    assert watch.told() == ["compile copy", "cache_load copy"]
    assert list(watch.monitor.resident()) == tokens
    watch.monitor.recall(tokens)  # the lookup has a newer one
    assert watch.monitor.resident().keys() == set(tokens)
    watch.monitor.forget(tokens)
    watch.monitor.recall(tokens)
    launch()
    assert watch.told() == []
    assert alive() is not None
    assert watch.state == ("unproven", "")


@in_fork
def test_a_phase_boundary_is_cheap_with_two_thousand_variants(watch: Watch) -> None:
    import time

    from triton_kernels import copy

    launch()
    watch.monitors.prove()
    (lookup,) = (entry[0] for entry in copy.device_caches.values())
    (kernel,) = lookup.values()
    for n in range(2_000):
        twin = kernel.__class__.__new__(kernel.__class__)
        vars(twin).update(vars(kernel), module=None)
        lookup[f"key {n}"] = twin
        watch.monitor._lookups.announce(kernel.hash)
    watch.settle()
    assert len(watch.monitor.resident()) == 2_001
    assert watch.monitor.resident() is watch.monitor.resident()

    def boundary() -> float:
        started = time.perf_counter()
        watch.settle()
        watch.monitors.prove()
        watch.monitor.resident()
        return time.perf_counter() - started

    best = min(boundary() for _ in range(20))
    assert best < 2e-3, best  # 0.36 ms on two busy cores; a walk over everything takes ten times that
    assert watch.state == ("armed", "")


def chained(how: str = "chained") -> Any:
    """Put a stranger into the slot that tells nobody what it is asked; `replaced` does not call ours either."""
    previous = slots().listener
    heard: list[bool] = []

    def stranger(**compiled: Any) -> None:
        heard.append(compiled["cache_hit"])
        if how == "chained" and previous:
            previous(**compiled)

    slots().listener = stranger
    return heard


@pytest.mark.parametrize("how", ["chained", "replaced"])
@in_fork
def test_under_a_stranger_a_compile_that_raises_is_seen(watch: Watch, how: str) -> None:
    from triton_kernels import wrong

    watch.monitors.prove()
    chained(how)
    with pytest.raises(Exception, match="too small"):
        wrong[(1,)](tensor(), C=1)
    assert watch.told() == ["compile wrong failed"]
    assert watch.state == ("armed", "")


@pytest.mark.parametrize("how", ["chained", "replaced"])
@in_fork
def test_under_a_stranger_a_compile_that_still_runs_is_seen(watch: Watch, how: str) -> None:
    import threading

    watch.monitors.prove()
    before_the_assembler(watch, f"touch {watch.folder}/begun; sleep 1")
    heard = chained(how)
    thread = threading.Thread(target=launch)
    thread.start()
    while not (watch.folder / "begun").exists():
        pass
    (event,) = watch.news()
    assert (event.kernel, event.status, event.ended) == ("copy", "running", None)
    assert event.stack[0].startswith(__file__)
    thread.join()
    watch.settle()
    assert watch.events == [event]
    assert (event.status, heard) == ("ok", [False])


@pytest.mark.parametrize("how", ["chained", "replaced"])
@in_fork(armed=False)
def test_a_stranger_goes_below_ours_and_all_are_called_once(watch: Watch, how: str) -> None:
    slots().listener = first = Other()
    watch.arm()
    before = slots().listener
    heard = [chained(how), chained("chained")]
    for block in (32, 64, 128):
        launch(block=block)
        top = slots().listener
    assert watch.told() == ["compile copy"] * 3
    assert heard == [[False] * 3] * 2
    assert first.heard == ([False] * 3 if how == "chained" else [])
    launch(block=256)
    assert slots().listener is top  # nothing piles up
    slots().listener = before  # a stranger goes, and puts back what it found
    launch(block=512)
    assert watch.told() == ["compile copy"] * 2
    assert slots().listener is before
    assert watch.state == ("unproven", "")
    watch.monitors.disarm()
    assert slots().listener is first


@in_fork
def test_a_stranger_that_comes_twice_runs_in_no_circle(watch: Watch) -> None:
    stranger = Other()
    for block in (32, 64):
        if slots().listener is not stranger:
            stranger.previous = slots().listener
            slots().listener = stranger
        launch(block=block)
    assert watch.told() == ["compile copy"] * 2
    assert stranger.heard == [False] * 2
    watch.monitors.disarm()
    launch(block=128)
    assert len(watch.events) == 2
    assert stranger.heard == [False] * 3


@in_fork(armed=False)
def test_below_a_stranger_that_comes_twice_the_first_listener_is_still_called(watch: Watch) -> None:
    slots().listener = first = Other()
    watch.arm()
    stranger = Other()
    for block in (32, 64):
        stranger.previous, slots().listener = slots().listener, stranger
        launch(block=block)
    assert watch.told() == ["compile copy"] * 2
    assert first.heard == stranger.heard == [False] * 2


@in_fork
def test_the_canary_gets_the_truth_test_back_from_a_stranger(watch: Watch) -> None:
    import triton
    from triton.compiler import ASTSource
    from triton_kernels import broken

    from pytest_jitguard.monitors._triton_canary import _any_target

    watch.monitors.prove()
    heard = chained()
    watch.monitors.prove()
    assert watch.state == ("armed", "")
    assert heard == [False, False]  # the canary, and the one that proves the cure
    with pytest.raises(Exception, match="no_such_name"):
        triton.compile(ASTSource(broken, {"x": "*fp32"}, {}, {}), target=_any_target())
    assert watch.told() == ["compile broken failed"]
    watch.monitors.prove()
    assert len(heard) == 2


@in_fork
def test_a_direct_compile_below_a_stranger_is_told_at_its_end(watch: Watch) -> None:
    import triton
    from triton.compiler import ASTSource
    from triton_kernels import broken, loose

    from pytest_jitguard.monitors._triton_canary import _any_target

    chained()
    with pytest.raises(Exception, match="no_such_name"):  # not seen: this one comes through no miss of a launch
        triton.compile(ASTSource(broken, {"x": "*fp32"}, {}, {}), target=_any_target())
    triton.compile(ASTSource(loose, {"x": "*i32", "n": "i32"}, {}, {}), target=_any_target())
    assert watch.told() == ["compile loose"]
    assert watch.events[0].seconds > 0.01


@in_fork
def test_what_raises_in_the_mode_raise_below_a_stranger_is_told_once(watch: Watch) -> None:
    raised = []

    def complain(event: Any) -> None:
        raised.append(event.kernel)
        raise LookupError(event.kernel)

    heard = chained()
    watch.recorder.on_finished = complain
    with pytest.raises(LookupError, match="copy"):
        launch()
    assert watch.told() == ["compile copy"]
    assert (raised, heard) == (["copy"], [False])


INTERPRETED = "a kernel (triton_kernels.copy) was made under TRITON_INTERPRET=1: interpreted kernels compile nothing"


def make_interpreted() -> Any:
    from triton_kernels import make_copy

    os.environ["TRITON_INTERPRET"] = "1"
    try:
        return make_copy()
    finally:
        del os.environ["TRITON_INTERPRET"]


@in_fork
def test_an_interpreted_kernel_makes_blind(watch: Watch) -> None:
    watch.monitors.prove()
    assert "triton.runtime.interpreter" not in sys.modules
    kernel = make_interpreted()
    assert type(kernel).__name__ == "InterpretedFunction"
    assert watch.state == ("blind", INTERPRETED)


@in_fork(armed=False)
def test_an_interpreted_kernel_from_before_arming_makes_blind(watch: Watch) -> None:
    kernel = make_interpreted()
    watch.monitors.arm()
    assert watch.state == ("blind", INTERPRETED)
    del kernel


@in_fork(armed=False)
def test_an_interpreted_kernel_is_waived(watch: Watch) -> None:
    watch.monitor.waived = frozenset({"interpret"})
    before = make_interpreted()
    watch.arm()
    after = make_interpreted()
    watch.monitors.prove()
    assert watch.state == ("armed", "")
    del before, after


@pytest.mark.parametrize("imported", [True, False])
@in_fork
def test_after_uninstalling_interpreted_kernels_are_nobodys_business(watch: Watch, imported: bool) -> None:
    import importlib

    if imported:
        importlib.import_module("triton.runtime.interpreter")
    watch.monitors.disarm()
    make_interpreted()
    interpreter = importlib.import_module("triton.runtime.interpreter")
    assert watch.state == ("unproven", "")
    assert not hasattr(interpreter.InterpretedFunction.__init__, "__wrapped__")


@in_fork
def test_a_set_of_monitors_tells_them_what_is_waived(watch: Watch) -> None:
    from pytest_jitguard.monitors import MonitorSet

    assert [m.waived for m in watch.monitors.monitors] == [frozenset()]
    waiving = MonitorSet(["triton"], watch.recorder, frozenset({"interpret"}))
    assert [m.waived for m in waiving.monitors] == [frozenset({"interpret"})]
