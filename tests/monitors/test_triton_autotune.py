"""Autotuning: benchmark runs, stored results, and the compiles inside them."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from forks import Watch, before_the_assembler, in_fork, tensor


@pytest.mark.tells("triton", "autotune", "parts")
@in_fork
def test_a_benchmark_is_an_event_and_the_parent_of_its_compiles(watch: Watch) -> None:
    from triton_kernels import copy, tuned

    tuned[(1,)](tensor(), tensor(), 100)
    assert watch.told() == ["autotune tuned", "compile tuned", "compile tuned"]
    run, first, second = watch.events
    assert first.parent == second.parent == run.id
    assert run.started <= first.started < first.ended <= second.started < second.ended <= run.ended
    assert [str(c) for c in run.key] == ["100", "torch.float32", "torch.float32"]
    assert run.key.components[0].name == "n"
    assert run.detail.startswith("chose BLOCK: 64, num_warps: 4")
    assert run.module == "triton_kernels"
    assert run.stack[0].startswith(__file__)
    copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
    assert watch.events[3].parent is None  # the benchmark is over
    tuned[(1,)](tensor(), tensor(), 100)
    assert watch.told() == ["compile copy"]


@in_fork
def test_a_compile_after_a_benchmark_in_the_same_phase_is_not_its_child(watch: Watch) -> None:
    from triton_kernels import copy, tuned

    tuned[(1,)](tensor(), tensor(), 100)
    copy[(1,)](tensor(), tensor(), 100, BLOCK=64)
    assert [event.parent is None for event in watch.events] == [True, False, False, True]


@in_fork
def test_a_new_tuning_key_without_a_new_specialization(watch: Watch) -> None:
    from triton_kernels import tuned

    tuned[(1,)](tensor(), tensor(), 100)
    watch.news()
    tuned[(1,)](tensor(), tensor(), 101)
    assert watch.told() == ["autotune tuned"]


@in_fork
def test_the_seconds_of_a_benchmark_end_with_it(watch: Watch) -> None:
    from triton_kernels import make_tuned

    def bench(call: Any, quantiles: Any) -> Any:
        call()
        time.sleep(0.05)
        return [1.0, 1.0, 1.0]

    kernel = make_tuned(do_bench=bench)
    kernel.warmup(tensor(), tensor(), 100, grid=(1,))
    assert watch.told() == ["compile copy", "compile copy"]  # a warmup of an autotuned kernel compiles, without tuning
    kernel[(1,)](tensor(), tensor(), 100)
    time.sleep(0.3)
    (event,) = [event for event in watch.news() if event.kind == "autotune"]
    assert 0.1 <= event.seconds < 0.3


@in_fork
def test_one_config_is_not_tuned(watch: Watch) -> None:
    from triton_kernels import CONFIGS, make_tuned

    make_tuned(CONFIGS[:1])[(1,)](tensor(), tensor(), 100)
    assert watch.told() == ["compile copy"]


@in_fork
def test_pruned_to_one_config(watch: Watch) -> None:
    from triton_kernels import make_tuned

    kernel = make_tuned(prune_configs_by={"early_config_prune": lambda configs, *_, **__: configs[:1]})
    kernel[(1,)](tensor(), tensor(), 100)
    # Up to 3.7 the only config that is left is benchmarked.
    assert watch.told() in (["compile copy"], ["autotune copy", "compile copy"])
    assert watch.state == ("unproven", "")


@pytest.mark.parametrize("how", ["argument", "environment"])
@in_fork
def test_a_stored_result_is_a_load(watch: Watch, how: str) -> None:
    from triton_kernels import make_tuned

    if how == "environment":
        os.environ["TRITON_CACHE_AUTOTUNING"] = "1"
    options = {"cache_results": True} if how == "argument" else {}
    make_tuned(**options)[(1,)](tensor(), tensor(), 100)
    assert watch.told() == ["autotune copy", "compile copy", "compile copy"]
    make_tuned(**options)[(1,)](tensor(), tensor(), 100)
    assert watch.told() == ["cache_load copy", "cache_load copy"]
    stored, variant = watch.events[-2:]
    assert stored.detail == "a stored autotune result was read"
    assert stored.key == watch.events[0].key
    assert variant.artifact_hash
    assert variant.parent is None


@in_fork
def test_a_config_that_fails_is_an_event_and_the_rest_goes_on(watch: Watch) -> None:
    import triton
    from triton_kernels import wrong

    kernel = triton.autotune([triton.Config({"C": 1}), triton.Config({"C": 11})], key=[])(wrong)
    kernel[(1,)](tensor())
    assert watch.told() == ["autotune wrong", "compile wrong failed", "compile wrong"]
    assert {event.parent for event in watch.events[1:]} == {watch.events[0].id}


@in_fork
def test_a_config_that_the_assembler_refuses(watch: Watch) -> None:
    from triton_kernels import tuned

    once = watch.folder / "once"
    before_the_assembler(watch, f"[ -e {once} ] || {{ touch {once}; exit 255; }}")
    tuned[(1,)](tensor(), tensor(), 100)
    assert watch.told() == ["autotune tuned", "compile tuned failed", "compile tuned"]


@in_fork
def test_a_benchmark_that_raises_has_failed(watch: Watch) -> None:
    from triton_kernels import make_tuned

    def bench(call: Any, quantiles: Any) -> Any:
        raise RuntimeError("out of luck")

    kernel = make_tuned(do_bench=bench)
    with pytest.raises(RuntimeError, match="out of luck"):
        kernel[(1,)](tensor(), tensor(), 100)
    assert watch.told() == ["autotune copy failed"]
    with pytest.raises(RuntimeError, match="out of luck"):
        kernel[(1,)](tensor(), tensor(), 100)
    assert watch.told() == ["autotune copy failed"]


@in_fork
def test_heuristics_inside(watch: Watch) -> None:
    from triton_kernels import tuned_guess

    tuned_guess[(1,)](tensor(), tensor(), 100)
    tuned_guess[(1,)](tensor(), tensor(), 101)
    assert watch.told() == [
        *("autotune tuned_guess", "compile tuned_guess", "compile tuned_guess"),
        *("autotune tuned_guess", "compile tuned_guess", "compile tuned_guess"),
    ]
    assert watch.events[1].launch.path == "triton_kernels:tuned_guess.fn.fn"


@in_fork
def test_results_are_resident_and_can_be_forgotten(watch: Watch) -> None:
    from triton_kernels import tuned

    tuned[(1,)](tensor(), tensor(), 100)
    warm = dict(watch.monitor.resident())
    assert len(warm) == 3
    assert set(warm.values()) == {"triton_kernels.tuned"}
    tuned[(1,)](tensor(), tensor(), 101)
    watch.news()
    watch.monitor.forget(set(watch.monitor.resident()) - set(warm))
    assert watch.monitor.resident() == warm
    tuned[(1,)](tensor(), tensor(), 101)
    assert watch.told() == ["autotune tuned"]
    watch.monitor.forget(watch.monitor.resident())
    assert watch.monitor.resident() == {}
    tuned[(1,)](tensor(), tensor(), 100)
    assert watch.told() == ["autotune tuned", "cache_load tuned", "cache_load tuned"]


@in_fork(armed=False)
def test_results_from_before_arming_stay_where_they_are(watch: Watch) -> None:
    from triton_kernels import tuned

    tuned[(1,)](tensor(), tensor(), 100)
    watch.arm()
    warm = set(watch.monitor.resident())
    assert len(warm) == 3
    tuned[(1,)](tensor(), tensor(), 101)
    assert watch.told() == ["autotune tuned"]
    watch.monitor.forget(set(watch.monitor.resident()) - warm)
    tuned[(1,)](tensor(), tensor(), 100)
    assert watch.told() == []
    assert watch.state == ("unproven", "")


@in_fork
def test_a_tuning_key_of_nothing(watch: Watch) -> None:
    import triton
    from triton_kernels import put

    configs = [triton.Config({"C": 1}), triton.Config({"C": 2})]
    kernel = triton.autotune(configs, key=[])(put)
    kernel[(1,)](5, 5)
    kernel[(1,)](7, 7)  # no tensor, whose dtype would be in the key
    assert list(kernel.cache) == [()]
    assert watch.told() == ["autotune put", "compile put", "compile put"]
