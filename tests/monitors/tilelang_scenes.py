"""What is shown of TileLang's monitor, against the real library (tests/heavy) and against its stand-in."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from scenes import FAKES, Scene, Stage

from pytest_jitguard.contract import MonitorContract

MONITOR = "pytest_jitguard.monitors.tilelang:TileLangMonitor"
PROGRAMS = Path(__file__).parent

BEGIN = """
import importlib, logging
sys.path.insert(0, os.environ["PROGRAMS"])
import tilelang
import tile_programs as programs
logging.disable(logging.CRITICAL)
compile_program = importlib.import_module("tilelang.jit").compile
"""


def environment(folder: Path) -> dict[str, str]:
    """Return the variables that the library needs: a cache of its own, and no GPU."""
    return {"TILELANG_CACHE_DIR": str(folder / "tilelang"), "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}


class TileLangContract(MonitorContract):
    """The contract; with the stand-in unless a subclass says otherwise."""

    monitor = MONITOR
    fakes: ClassVar[bool] = True
    threads = 2
    not_there: ClassVar[Mapping[str, str]] = {
        "alias": "its compiler is a method of JITKernel, which nobody imports by name",
        "reset": "it has none; clear_cache() only forgets kernels",
        "reload": "reloading the package makes none of its modules anew",
        "hide": "its hooks are functions: replaced and put_back lose them",
    }

    def environment(self, folder: Path) -> Mapping[str, str]:
        path = [str(PROGRAMS), *([str(FAKES)] if self.fakes else [])]
        return {**environment(folder), "PYTHONPATH": ":".join(path)}

    def prepare(self) -> None:
        import logging

        import tile_programs

        logging.disable(logging.CRITICAL)
        tile_programs.add(1, dtype="int64")  # no check compiles that

    def compile_new(self) -> str:
        import tile_programs

        self.last = self.number()
        tile_programs.add(self.last)
        return "tile_programs.add.main"

    def repeat(self) -> None:
        import tile_programs

        tile_programs.add(self.last)

    def fail(self) -> None:
        import tile_programs

        tile_programs.broken(self.number())

    def load_from_disk(self) -> None:
        import tile_programs

        tile_programs.add(7, dtype="int32")

    def sneak_in(self) -> None:
        import importlib

        kernels: Any = importlib.import_module("tilelang.jit.kernel")
        cache: Any = importlib.import_module("tilelang.cache")
        cache._dispatch_map["cython"]._memory_cache["f" * 64] = object.__new__(kernels.JITKernel)


class TileLangScenes:
    """Scenes, each in a process of its own."""

    fakes: ClassVar[bool] = True

    @pytest.fixture
    def stage(self, tmp_path: Path) -> Stage:
        variables = {**environment(tmp_path), "PROGRAMS": str(PROGRAMS), "FAKES": "1" if self.fakes else ""}
        return Stage(MONITOR, tmp_path, variables)

    def play(self, stage: Stage, body: str, **variables: str) -> Scene:
        return stage.play(BEGIN + textwrap.dedent(body), **variables)

    @pytest.mark.tells("tilelang", "compile", "hit", "cache_load", "name", "seconds", "key")
    def test_a_kernel_is_compiled_found_in_memory_and_loaded_by_another_process(self, stage: Stage) -> None:
        body = """
        told["fake"] = "fakes" in tilelang.__file__
        began = time.monotonic()
        programs.add(16)
        told["took"] = time.monotonic() - began
        say("first")
        programs.add(16)
        say("the factory's memory")
        compile_program(programs.add.get_tir(16), out_idx=[-1], target="c")
        say("the cache's memory")
        """
        cold, warm = self.play(stage, body), self.play(stage, body)
        assert cold["fake"] == self.fakes
        assert cold.kinds("first") == ["compile add.main"]
        assert warm.kinds("first") == ["cache_load add.main"]
        for told in (cold, warm):
            assert told["the factory's memory"] == told["the cache's memory"] == []
            assert 0 < told.one("first")["seconds"] <= told["took"]
            assert {"size=16", "dtype=float32", "A=[16]", "out_idx=[2]", "target=c"} <= set(told.one("first")["key"])
            assert told["state"] == ["armed", ""]
        assert cold.one("first")["hash"] == warm.one("first")["hash"] is not None
        assert warm.one("first")["detail"].endswith("kernel_lib.so")

    @pytest.mark.tells("tilelang", "name", "key", "reason")
    def test_it_is_explained_by_the_factory_s_arguments(self, stage: Stage) -> None:
        told = self.play(
            stage,
            """
            from pytest_jitguard.core.explain import Background, explain
            programs.add(16)
            programs.add(24)
            first, second = recorder.events
            found = explain(second, Background(warmed=[first], advice=lambda system: monitor.advice))
            told["why"] = [second.full_name, found.cause, found.cure, found.advice]
            """,
        )
        name, cause, cure, advice = told["why"]
        assert name == "tile_programs.add.main"
        assert cause == "size 16 → 24, A [16] → [24], and 2 more"
        assert cure == "from tile_programs import add\nadd(size=24, dtype='float32')"
        told = self.play(stage, f"exec({cure!r}); say('warmup'); programs.add(24); say('served')")
        assert [event["kernel"] for event in told["warmup"]] == ["add.main"]
        assert told["served"] == []
        assert advice.startswith("a dimension of A and B and C that varies can be T.dynamic(...)")

    @pytest.mark.tells("tilelang", "reason")
    def test_a_kernel_that_the_library_keeps_under_two_hashes_is_explained(self, stage: Stage) -> None:
        told = self.play(stage, "programs.add(16); say('first'); programs.add.compile(16); say('again')")
        assert told.kinds("first") == told.kinds("again") == ["compile add.main"]
        assert told.one("first")["reason"] == ""
        assert told.one("again")["reason"].endswith("its out_idx was [-1] and is [2] now")

    @pytest.mark.tells("tilelang", "failed")
    def test_a_compile_that_fails_is_an_event(self, stage: Stage) -> None:
        told = self.play(stage, "told['error'] = raised(lambda: programs.broken(4)); say('failed')")
        assert told["error"] == "AttributeError"
        assert told.kinds("failed") == ["compile broken.main failed"]
        assert "no.such.config" in told.one("failed")["detail"]
        assert "no.such.config=True" in told.one("failed")["key"]

    @pytest.mark.tells("tilelang", "threads", "reason")
    def test_three_threads_compile_one_kernel_three_times_and_it_is_said(self, stage: Stage) -> None:
        told = self.play(
            stage,
            """
            program = programs.add.get_tir(16)
            together(lambda: compile_program(program, out_idx=[-1], target="c"))
            say("three")
            """,
            FAKE_TILELANG_TOGETHER="3",
        )
        assert told.kinds("three") == ["compile main"] * 3
        reasons = sorted(event["reason"] for event in told["three"])
        assert reasons[0] == ""
        assert all(reason.startswith("another thread was compiling the same kernel") for reason in reasons[1:])

    @pytest.mark.tells("tilelang", "threads")
    def test_its_own_pool_of_threads_is_seen(self, stage: Stage) -> None:
        told = self.play(stage, "programs.add.par_compile([{'size': 5}, {'size': 6}], num_workers=2); say('pool')")
        assert told.kinds("pool") == ["compile main"] * 2

    @pytest.mark.tells("tilelang", "autotune", "parts")
    def test_autotuning_is_one_event_with_the_compiles_of_its_threads_as_parts(self, stage: Stage) -> None:
        told = self.play(stage, "told['error'] = raised(lambda: programs.tuned(9)); say('tuned')")
        assert told["error"] == "RuntimeError"  # there is nothing here that could be measured
        assert told.kinds("tuned") == ["autotune tuned failed", "compile tuned.main", "compile tuned.main"]
        (whole,) = [event for event in told["tuned"] if event["kind"] == "autotune"]
        parts = [event for event in told["tuned"] if event["kind"] == "compile"]
        assert {event["parent"] for event in parts} == {whole["id"]}
        assert whole["detail"] == "2 configurations"
        assert whole["key"] == ["size=9"]

    def test_there_is_nothing_to_refuse_with(self, stage: Stage) -> None:
        told = self.play(stage, "monitor.refuse(True); programs.add(3); say('refused'); monitor.refuse(False)")
        assert told.kinds("refused") == ["compile add.main"]
