"""Compiles that raise are events, closed when they are seen to be over, and nothing of the user's stays alive."""

from __future__ import annotations

import gc
import time
import weakref
from typing import Any

import pytest
from forks import Watch, before_the_assembler, in_fork, tensor


@in_fork
def test_an_error_in_the_source(watch: Watch) -> None:
    from triton.compiler.errors import CompilationError
    from triton_kernels import broken

    before = time.monotonic()
    with pytest.raises(CompilationError):
        broken[(1,)](tensor())
    (event,) = watch.news()
    assert (event.kind, event.status, event.kernel) == ("compile", "failed", "broken")
    assert before <= event.started <= event.ended <= time.monotonic()
    assert event.stack[0].startswith(__file__)
    assert [str(c) for c in event.key if c.name == "x"] == ["*fp32, 16-byte aligned"]
    # As complete as the key of a compile that succeeds, so that a diff does not call every option absent.
    assert {"num_warps", "target", "device"} <= {c.name for c in event.key}
    assert "broken.warmup(" in event.cure
    assert watch.state == ("unproven", "")


@in_fork
def test_a_static_assertion(watch: Watch) -> None:
    from triton.compiler.errors import CompileTimeAssertionFailure
    from triton_kernels import wrong

    with pytest.raises(CompileTimeAssertionFailure):
        wrong[(1,)](tensor(), C=1)
    wrong[(1,)](tensor(), C=11)
    assert watch.told() == ["compile wrong failed", "compile wrong"]
    failed, passed = watch.events
    assert failed.ended <= passed.started
    assert [c for c in failed.key if c.name != "C"] == [c for c in passed.key if c.name != "C"]


@in_fork
def test_an_error_of_the_assembler(watch: Watch) -> None:
    from triton_kernels import put

    before_the_assembler(watch, "exit 255")
    with pytest.raises(Exception, match="ptxas"):
        put[(1,)](tensor(), 5, C=1)
    assert watch.told() == ["compile put failed"]


@in_fork
def test_an_error_whose_traceback_is_kept(watch: Watch) -> None:
    from triton_kernels import wrong

    kept = []
    for _ in range(2):
        try:
            wrong[(1,)](tensor(), C=1)
        except Exception as error:  # noqa: BLE001 - kept with its traceback, whose frames stay alive
            kept.append(error)
    assert [event.status for event in watch.events] == ["failed", "failed"], "known at once, as in a server's process"
    assert watch.told() == ["compile wrong failed", "compile wrong failed"]
    assert all(error.__traceback__ is not None for error in kept)


@in_fork
def test_a_failure_and_a_success_under_one_frame(watch: Watch) -> None:
    from triton_kernels import put, wrong

    def launch_both() -> None:
        try:
            wrong[(1,)](tensor(), C=1)
        except Exception:  # noqa: BLE001 - what Triton raises is not the point
            put[(1,)](tensor(), 5, C=1)

    launch_both()
    assert [(event.kernel, event.status) for event in watch.events] == [("wrong", "failed"), ("put", "ok")]


@pytest.mark.parametrize("inner_fails", [False, True])
@pytest.mark.parametrize("outer_fails", [False, True])
@in_fork
def test_a_compile_inside_a_compile(watch: Watch, inner_fails: bool, outer_fails: bool) -> None:
    import triton
    from triton_kernels import broken, gluon_put, put, wrong

    def launch_another() -> None:
        try:
            (wrong if inner_fails else gluon_put)[(1,)](*([tensor()] if inner_fails else [tensor(), 5]), C=1)
        except triton.compiler.errors.CompileTimeAssertionFailure:
            assert inner_fails

    original = triton.compiler.ASTSource.make_ir
    done: list[bool] = []

    def make_ir(self: Any, *args: Any) -> Any:
        if not done:
            done.append(True)
            launch_another()
        return original(self, *args)

    triton.compiler.ASTSource.make_ir = make_ir
    outer = broken if outer_fails else put
    arguments = [] if outer_fails else [5]
    try:
        outer[(1,)](tensor(), *arguments, **({} if outer_fails else {"C": 1}))
    except triton.compiler.errors.CompilationError:
        assert outer_fails
    inner = "compile wrong failed" if inner_fails else "compile gluon_put"
    assert watch.told() == [f"compile {'broken failed' if outer_fails else 'put'}", inner]
    assert watch.events[1].parent == watch.events[0].id
    assert watch.events[0].ended >= watch.events[1].ended


@in_fork
def test_a_compile_that_is_still_running_is_not_closed(watch: Watch) -> None:
    import threading

    from triton_kernels import copy, put

    reached, go_on = watch.folder / "reached", watch.folder / "go-on"
    before_the_assembler(watch, f"touch {reached}; while [ ! -e {go_on} ]; do sleep 0.02; done")
    thread = threading.Thread(target=lambda: copy[(1,)](tensor(), tensor(), 100, BLOCK=64))
    thread.start()
    while not reached.exists():
        time.sleep(0.01)
    for _ in range(3):
        watch.settle()
    assert [event.status for event in watch.events] == ["running"]
    assert watch.monitor.resident() == {}
    go_on.touch()
    thread.join()
    put[(1,)](tensor(), 5, C=1)
    assert watch.told() == ["compile copy", "compile put"]
    assert watch.events[0].thread == thread.name
    assert watch.state == ("unproven", "")


@in_fork
def test_a_thread_that_died_in_its_compile_though_another_has_its_number_now(watch: Watch) -> None:
    import threading

    from triton_kernels import put, wrong

    def fail() -> None:
        with pytest.raises(Exception, match="too small"):
            wrong[(1,)](tensor(), C=1)

    numbers = set()
    for action in (fail, lambda: put[(1,)](tensor(), 5, C=1)):
        thread = threading.Thread(target=action)
        thread.start()
        numbers.add(thread.ident)
        thread.join()
    assert watch.told() == ["compile wrong failed", "compile put"]
    assert len(watch.monitor._threads) <= 1


@in_fork
def test_nothing_of_the_caller_stays_alive(watch: Watch) -> None:
    from triton_kernels import copy, wrong

    tensors = [tensor(), tensor()]
    alive = [weakref.ref(each) for each in tensors]
    copy[(1,)](*tensors, 100, BLOCK=64)
    try:
        wrong[(1,)](tensors[0], C=1)
    except Exception:  # noqa: BLE001 - what Triton raises is not the point
        pass
    watch.settle()
    del tensors
    gc.collect()
    assert [each() for each in alive] == [None, None]
    assert watch.told() == ["compile copy", "compile wrong failed"]


@in_fork
def test_a_factorys_kernel_dies_as_it_would(watch: Watch) -> None:
    from triton_kernels import make_copy, make_tuned

    kernel, tuner = make_copy(), make_tuned()
    kernel[(1,)](tensor(), tensor(), 100, BLOCK=64)
    tuner[(1,)](tensor(), tensor(), 100)
    watch.settle()
    assert len(watch.monitor.resident()) == 4
    tokens = list(watch.monitor.resident())
    watch.monitor.forget(tokens)
    alive = [weakref.ref(kernel), weakref.ref(tuner), weakref.ref(tuner.fn)]
    del kernel, tuner
    make_copy()  # Triton's own registry holds the last kernel of each name
    gc.collect()
    assert [each() for each in alive] == [None, None, None]
    assert watch.monitor.resident() == {}
    watch.monitor.recall(tokens)
    watch.settle()
    assert watch.state == ("unproven", "")


@pytest.mark.parametrize(
    "constant",
    [
        "Colour.RED",
        "Shape(3)",
        "frozenset([1, 2])",
        "(1, tl.float16)",
        "Verbose(1)",
        "Identity()",
        "helper",
        "tl.float32",
        "float('nan')",
        "'text'",
        "None",
        "Point(1, 2)",
    ],
)
@in_fork
def test_exotic_constants(watch: Watch, constant: str) -> None:
    import triton_kernels

    value = eval(constant, vars(triton_kernels))
    triton_kernels.put[(1,)](tensor(), 5, C=value)
    triton_kernels.put[(1,)](tensor(), 5, C=value)
    assert watch.told() == ["compile put"]
    (event,) = watch.events
    (component,) = [c for c in event.key if c.name == "C"]
    assert component.role == "constexpr"
    assert 0 < len(component.value) <= 120
    assert "put.warmup(" in event.cure
    assert watch.state == ("unproven", "")


@in_fork
def test_constants_that_differ_have_texts_that_differ(watch: Watch) -> None:
    from triton_kernels import Identity, Verbose, make_copy, put

    one, other = make_copy(1), make_copy(2)
    pairs = [(Verbose(1), Verbose(2)), (Identity(), Identity()), (one, other), ((1, one), (1, other))]
    for pair in pairs:
        for value in pair:
            put[(1,)](tensor(), 5, C=value)
        first, second = watch.news()
        texts = [c.value for e in (first, second) for c in e.key if c.name == "C"]
        assert len(set(texts)) == 2, texts


@in_fork
def test_a_constant_that_says_nothing_about_itself(watch: Watch) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton_kernels import Grumpy, put

    # A launch calls its __repr__ before anything else; a direct compile gets a little further.
    with pytest.raises(RuntimeError, match="no"):
        put[(1,)](tensor(), 5, C=Grumpy())
    for _ in range(2):
        source = ASTSource(put, {"x": "*fp32", "value": "i32", "C": "constexpr"}, {(2,): Grumpy()}, {})
        with pytest.raises(RuntimeError, match="no"):
            triton.compile(source, target=GPUTarget("cuda", 80, 32))
    first, second = watch.news()
    assert (first.status, second.status) == ("failed", "failed")
    texts = [c.value for e in (first, second) for c in e.key if c.name == "C"]
    assert texts[0].startswith("<Grumpy #")
    assert texts[0] != texts[1]


@in_fork
def test_our_own_mistakes_do_not_reach_the_user(watch: Watch) -> None:
    from triton_kernels import copy, put, tuned

    def explode(*_: Any, **__: Any) -> Any:
        raise RuntimeError("ours")

    watch.recorder.end = explode  # type: ignore[method-assign]
    copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
    watch.recorder.begin = explode  # type: ignore[method-assign]
    put[(1,)](tensor(), 5, C=1)
    tuned[(1,)](tensor(), tensor(), 100)
    assert watch.state == ("blind", "a compile could not be recorded: RuntimeError: ours")
