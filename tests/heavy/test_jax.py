"""JAX on the CPU, for real: XLA's compiles and the persistent compilation cache."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pytest_jitguard.contract import MonitorContract, module_with
from tests.heavy.process import in_process

JAX = "pytest_jitguard.monitors.jax:JaxMonitor"

pytestmark = pytest.mark.heavy


@pytest.mark.tells(
    "jax",
    "compile",
    "hit",
    "cache_load",
    "name",
    "seconds",
    "key",
    "failed",
    "threads",
    "uninstall",
    "blind",
    "no_frames",
)
class TestContract(MonitorContract):
    monitor = JAX
    requires = ("jax",)
    isolation = "spawn"
    """XLA has threads, which a fork does not take along."""
    not_there: ClassVar[Mapping[str, str]] = {
        "fork": "a process that has used XLA must not be forked",
        "reload": "the module defines options, which it cannot do twice",
        "sneak_in": "what JAX keeps of compiled functions is not looked through",
    }

    def environment(self, folder: Path) -> Mapping[str, str]:
        return {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}

    def prepare(self) -> None:
        import jax
        import numpy

        self.ones = jax.device_put(numpy.ones(8, numpy.float32))

    def bring(self) -> None:
        self.library()
        self.prepare()

    def compile_new(self) -> str:
        import jax
        import numpy

        number = self.number()
        namespace: dict[str, Any] = {}
        exec(f"def kernel_{number}(x):\n    return x + {number}.5\n", namespace)
        self.last = jax.jit(namespace[f"kernel_{number}"])
        self.argument = jax.device_put(numpy.ones(8, numpy.float32))
        self.last(self.argument).block_until_ready()
        return f"kernel_{number}"

    def repeat(self) -> None:
        self.last(self.argument)

    def fail(self) -> None:
        import jax
        import numpy

        options = {"xla_no_such_option": True}
        jax.jit(lambda x: x + 1, compiler_options=options)(numpy.ones(3, numpy.float32))

    def load_from_disk(self) -> None:
        import jax
        import numpy

        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", f"{self.folder}/cache")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        jax.jit(stored)(jax.device_put(numpy.ones(8, numpy.float32)))

    def alias(self) -> Any:
        from jax._src.interpreters import pxla

        caller = module_with("from jax._src.compiler import *")

        def compile_by_alias() -> None:
            pxla.compiler = caller
            self.compile_new()

        return compile_by_alias

    def reset(self) -> None:
        import jax

        jax.clear_caches()

    def hide(self) -> None:
        import jax
        from jax._src import compiler

        jax.monitoring.clear_event_listeners()
        compiler.compile_or_get_cached = compiler.compile_or_get_cached.__wrapped__


def stored(x: Any) -> Any:
    return x * 3


@pytest.fixture(autouse=True)
def jax_is_there() -> None:
    pytest.importorskip("jax")


@pytest.mark.tells("jax", "key", "name", "reason")
def test_arguments_are_told_by_name_type_and_shape(tmp_path: Path) -> None:
    told = in_process(
        """
        import jax, numpy
        from pytest_jitguard.core.keys import diff

        @jax.jit
        def scale(x, factor):
            return x * factor

        with armed(MONITOR) as watch:
            scale(numpy.ones((4, 2), numpy.float32), 2)
            (first,) = watch.news()
            scale(numpy.ones((4, 3), numpy.float32), 2)
            (second,) = watch.news()
            print(first.kernel, *map(str, first.key), sep="|")
            print(*diff(first.key, second.key), sep="|")
            print(first.stack[0].partition(":")[0])
        """,
        JAX,
        tmp_path,
        JAX_PLATFORMS="cpu",
    )
    assert told[0] == "scale|f32[4,2]|i32[]|cpu"
    assert told[1] == "x: f32[4,2] → f32[4,3]"
    assert told[2] == str(tmp_path / "program.py")


@pytest.mark.tells("jax", "key", "reason")
def test_static_arguments_are_told_and_where_they_are_not_known_that_is_said(tmp_path: Path) -> None:
    told = in_process(
        """
        import functools, jax, numpy
        from pytest_jitguard.core.explain import Background, explain

        @functools.partial(jax.jit, static_argnums=(1,), static_argnames=("mode",))
        def scale(x, factor, mode="up"):
            return x * factor if mode == "up" else x / factor

        def cause(served, *warmed):
            print(explain(served, Background(warmed=warmed)).cause)

        ones = jax.device_put(numpy.ones(8, numpy.float32))
        with armed(MONITOR) as watch:
            scale(ones, 2)
            scale(ones, 3)
            scale(ones, 2, mode="down")
            first, number, mode = watch.news()
            print(*first.key, sep="|")
            cause(number, first)
            cause(mode, first)
            scale.lower(ones, 4).compile()
            scale.lower(ones, 5).compile()
            lowered, again = watch.news()
            cause(again, lowered)
            jax.jit(lambda x: x + scale(x, 7))(ones)
            (outer,) = watch.news()
            print(outer.kernel, *outer.key)
            scale(ones, 2)
            print(len(watch.news()))

            @functools.partial(jax.jit, static_argnums=(1,))
            def prepares(x, factor):
                inner.compile()
                return x * factor

            inner = jax.jit(lambda x: x - 1).lower(ones)
            prepares(ones, 6)
            print(*(f"{event.kernel} {[part.name for part in event.key]}" for event in watch.all_news()))
        """,
        JAX,
        tmp_path,
        JAX_PLATFORMS="cpu",
    )
    assert told[0] == "f32[8]|2|cpu"
    assert told[1] == "factor 2 → 3"
    assert told[2] == "mode absent → 'down'"
    assert told[3].startswith("it was compiled here before for the same key")
    assert told[4] == "_lambda f32[8] cpu"
    assert told[5] == "0"
    assert told[6] == "_lambda ['x', 'platform'] prepares ['x', 'factor', 'platform']"


@pytest.mark.tells("jax", "cache_load", "blind")
def test_loads_are_told_from_compiles_though_somebody_threw_out_all_listeners(tmp_path: Path) -> None:
    program = """
        import jax, numpy

        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        ones = jax.device_put(numpy.ones(8, numpy.float32))
        with armed(MONITOR) as watch:
            jax.monitoring.clear_event_listeners()
            jax.jit(lambda x: x * 3)(ones)
            (event,) = watch.news()
            print(event.kind, event.detail)
            print(watch.monitor.state)
        """
    for kind in ("compile the persistent cache did not have it", "cache_load "):
        told = in_process(
            program, JAX, tmp_path, JAX_PLATFORMS="cpu", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache")
        )
        assert told == [kind, "unproven"]


def test_a_compile_past_the_function_is_seen_by_its_duration(tmp_path: Path) -> None:
    told = in_process(
        """
        import jax, numpy
        from jax._src import compiler

        ones = jax.device_put(numpy.ones(8, numpy.float32))
        def sneaky(x):
            return x - 1
        with armed(MONITOR) as watch:
            ours, compiler.compile_or_get_cached = (
                compiler.compile_or_get_cached, compiler.compile_or_get_cached.__wrapped__
            )
            jax.jit(sneaky)(ones)
            compiler.compile_or_get_cached = ours
            (event,) = watch.news()
            print(event.kernel, event.kind, 0 < event.seconds < 60, event.detail.partition(":")[0])
            jax.jit(lambda x: x - 2)(ones)
            print(len(watch.news()), watch.monitor.state)
        """,
        JAX,
        tmp_path,
        JAX_PLATFORMS="cpu",
    )
    assert told == ["sneaky compile True seen when it was over", "1 unproven"]


@pytest.mark.tells("jax", "blind")
def test_a_compile_by_a_name_that_was_taken_before_the_guard_begins_before_it_ends(tmp_path: Path) -> None:
    told = in_process(
        """
        import jax, numpy, sys, types
        from jax._src import compiler
        from jax._src.interpreters import pxla

        pxla.compiler = sys.modules["taken"] = types.ModuleType("taken")
        vars(pxla.compiler).update({**vars(compiler), "__name__": "taken"})
        ones = jax.device_put(numpy.ones(8, numpy.float32))
        with armed(MONITOR) as watch:
            jax.jit(lambda x: x + 1)(ones)
            (event,) = watch.news()
            print(event.detail, *event.key)
        print(pxla.compiler.compile_or_get_cached is compiler.compile_or_get_cached)
        """,
        JAX,
        tmp_path,
        JAX_PLATFORMS="cpu",
    )
    assert told == [" f32[8] cpu", "True"]


@pytest.mark.tells("jax", "refuse")
def test_jax_refuses_to_trace_while_it_is_told_to(tmp_path: Path) -> None:
    told = in_process(
        """
        import jax, numpy, threading

        ones = jax.device_put(numpy.ones(8, numpy.float32))
        known = jax.jit(lambda x: x + 1)
        known(ones)

        def attempt():
            try:
                known(ones)
                jax.jit(lambda x: x + 2)(ones)
                print("compiled")
            except RuntimeError as error:
                print("no_tracing" in str(error))

        with armed(MONITOR) as watch:
            watch.monitors.refuse(["jax"], True)
            attempt()
            thread = threading.Thread(target=attempt)
            thread.start()
            thread.join()
            watch.monitors.refuse(["jax"], False)
            attempt()
            watch.monitors.refuse(["jax"], True)
        attempt()
        """,
        JAX,
        tmp_path,
        JAX_PLATFORMS="cpu",
    )
    assert told == ["True", "True", "compiled", "compiled"]


@pytest.mark.tells("jax", "uninstall")
def test_no_listener_is_left(tmp_path: Path) -> None:
    told = in_process(
        """
        import jax
        from jax._src import compiler, monitoring

        def standing():
            listeners = monitoring.get_event_listeners(), monitoring.get_event_duration_listeners()
            return compiler.compile_or_get_cached, *listeners

        before = standing()
        with armed(MONITOR) as watch:
            print(len(monitoring.get_event_listeners()) - len(before[1]))
        print(before == standing())
        """,
        JAX,
        tmp_path,
        JAX_PLATFORMS="cpu",
    )
    assert told == ["1", "True"]
    assert os.environ.get("JAX_COMPILATION_CACHE_DIR") is None
