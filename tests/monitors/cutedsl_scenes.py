"""What is shown of the CuTe DSL's monitor, against the real library (tests/heavy) and against its stand-in."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from scenes import FAKES, Scene, Stage

from pytest_jitguard.contract import MonitorContract

MONITOR = "pytest_jitguard.monitors.cutedsl:CuteDslMonitor"
PROGRAMS = Path(__file__).parent

BEGIN = """
import importlib
sys.path.insert(0, os.environ["PROGRAMS"])
import cutlass
from cutlass import cute
import cute_programs as programs
Int32 = cutlass.Int32
"""


def environment(folder: Path) -> dict[str, str]:
    """Return the variables that the library needs: a cache of its own, and a GPU to compile for."""
    return {"CUTE_DSL_CACHE_DIR": str(folder / "cute"), "CUTE_DSL_ARCH": "sm_90a", "CUDA_VISIBLE_DEVICES": ""}


class CuteDslContract(MonitorContract):
    """The contract; with the stand-in unless a subclass says otherwise."""

    monitor = MONITOR
    fakes: ClassVar[bool] = True
    not_there: ClassVar[Mapping[str, str]] = {
        "threads": "the DSL compiles on one thread at a time: its state is one object",
        "hide": "its hooks are functions: replaced and put_back lose them",
    }

    def environment(self, folder: Path) -> Mapping[str, str]:
        path = [str(PROGRAMS), *([str(FAKES)] if self.fakes else [])]
        return {**environment(folder), "PYTHONPATH": ":".join(path)}

    def prepare(self) -> None:
        import cute_programs
        from cutlass import Int32, cute

        cute.compile(cute_programs.count, Int32(1))

    def compile_new(self) -> str:
        import cute_programs

        self.last = self.number()
        cute_programs.count(self.last)
        return "cute_programs.count"

    def repeat(self) -> None:
        import cute_programs

        cute_programs.count(self.last)

    def fail(self) -> None:
        import cute_programs
        from cutlass import Int32, cute

        cute.compile(cute_programs.broken, Int32(1))

    def load_from_disk(self) -> None:
        import cute_programs

        cute_programs.count(0)

    def alias(self) -> Any:
        import cute_programs
        from cutlass import Int32
        from cutlass.cute import compile

        return lambda: compile(cute_programs.count, Int32(1))

    def reset(self) -> None:
        from cutlass.cutlass_dsl import CuTeDSL

        CuTeDSL.clear_instances()

    def sneak_in(self) -> None:
        from cutlass.cutlass_dsl import CuTeDSL

        CuTeDSL._get_dsl().jit_cache.set("f" * 64, SimpleNamespace(function_name="sneaked_in", capi_func=None))


class CuteDslScenes:
    """Scenes, each in a process of its own."""

    fakes: ClassVar[bool] = True

    @pytest.fixture
    def stage(self, tmp_path: Path) -> Stage:
        variables = {**environment(tmp_path), "PROGRAMS": str(PROGRAMS), "FAKES": "1" if self.fakes else ""}
        return Stage(MONITOR, tmp_path, variables)

    def play(self, stage: Stage, body: str) -> Scene:
        return stage.play(BEGIN + textwrap.dedent(body))

    @pytest.mark.tells("cutedsl", "compile", "hit", "cache_load", "name", "seconds", "key")
    def test_a_direct_call_is_compiled_found_in_memory_and_loaded_by_another_process(self, stage: Stage) -> None:
        body = """
        told["fake"] = "fakes" in cutlass.__file__
        began = time.monotonic()
        programs.count(7)
        told["took"] = time.monotonic() - began
        say("first")
        programs.count(7)
        say("again")
        """
        cold, warm = self.play(stage, body), self.play(stage, body)
        assert cold["fake"] == self.fakes
        assert cold.kinds("first") == ["compile count"]
        assert warm.kinds("first") == ["cache_load count"]
        assert cold["again"] == warm["again"] == []
        assert 0 < cold.one("first")["seconds"] <= cold["took"]
        assert {"n=int 7", "arch=sm_90a"} <= set(cold.one("first")["key"])
        assert cold.one("first")["hash"] == warm.one("first")["hash"] is not None
        assert cold["state"] == warm["state"] == ["armed", ""]

    @pytest.mark.tells("cutedsl", "key", "reason")
    def test_a_plain_int_compiles_for_every_value_and_the_library_s_own_does_not(self, stage: Stage) -> None:
        told = self.play(
            stage,
            """
            from pytest_jitguard.core.explain import Background, explain
            def explained(label):
                found = explain(recorder.events[-1], Background(warmed=seen, advice=lambda system: monitor.advice))
                seen.append(recorder.events[-1])
                told[label + "?"] = [found.cause, found.advice, found.cure]
                say(label)
            seen = []
            programs.count(7); explained("7")
            programs.count(8); explained("8")
            programs.count(Int32(7)); explained("Int32(7)")
            programs.count(Int32(8)); say("Int32(8)")
            """,
        )
        assert told.kinds("7") == told.kinds("8") == told.kinds("Int32(7)") == ["compile count"]
        assert told["Int32(8)"] == []
        cause, advice, cure = told["8?"]
        assert cause == "n int 7 → int 8"
        assert advice == "a plain Python int compiles for every value; pass cutlass.Int32(n), which compiles once"
        assert cure == "from cute_programs import count\ncount(8)"
        told_again = self.play(stage, f"exec({cure!r}); say('warmup'); programs.count(8); say('served')")
        assert told_again.kinds("warmup") == ["cache_load count"]
        assert told_again["served"] == []
        assert told["Int32(7)?"] == ["n int 8 → Int32", "", "import cutlass\n" + cure.replace("8", "cutlass.Int32(7)")]

    @pytest.mark.tells("cutedsl", "compile", "reason", "seconds")
    def test_cute_compile_keeps_nothing_and_says_so(self, stage: Stage) -> None:
        told = self.play(
            stage,
            """
            for label in ("one", "two"):
                began = time.monotonic()
                cute.compile(programs.count, Int32(7))
                told[label + " took"] = time.monotonic() - began
                say(label)
            programs.count(Int32(7))
            say("direct")
            cute.experimental.compile(programs.scale, Int32(7), 3, cutlass.Float32(1.0))
            say("experimental")
            """,
        )
        assert told.kinds("one") == told.kinds("two") == told.kinds("direct") == ["compile count"]
        assert told.one("one")["reason"] == told.one("direct")["reason"] == ""
        assert told.one("two")["reason"].startswith("cute.compile caches nothing, and its arguments look the same")
        assert told.one("two")["seconds"] <= told["two took"]
        assert told.kinds("experimental") == ["compile scale"]
        assert {"n=", "factor=3", "offset="} <= set(told.one("experimental")["key"])

    @pytest.mark.tells("cutedsl", "name", "key")
    def test_a_kernel_object_is_known_by_its_class_and_attributes(self, stage: Stage) -> None:
        told = self.play(stage, "cute.compile(programs.Tile(64), Int32(1)); say('tile')")
        assert told.kinds("tile") == ["compile Tile"]
        assert "self.rows=64" in told.one("tile")["key"]

    @pytest.mark.tells("cutedsl", "reason")
    def test_a_global_that_changed_is_told_where_the_arguments_did_not(self, stage: Stage) -> None:
        told = self.play(
            stage,
            """
            programs.reads_a_global(Int32(1)); say("before")
            programs.STEP = 2
            programs.reads_a_global(Int32(1)); say("after")
            """,
        )
        assert told.one("before")["reason"] == ""
        assert "the traced program is another one" in told.one("after")["reason"]

    @pytest.mark.tells("cutedsl", "failed")
    def test_what_fails_in_tracing_and_in_the_compiler_is_an_event(self, stage: Stage) -> None:
        told = self.play(
            stage,
            """
            told["tracing error"] = raised(lambda: cute.compile(programs.broken, Int32(1))); say("tracing")
            told["compiler error"] = raised(lambda: programs.count(Int32(1), pipeline="nonsense")); say("compiler")
            programs.count(Int32(1)); say("after")
            """,
        )
        assert told.kinds("tracing") == ["compile broken failed"]
        assert told.kinds("compiler") == ["compile count failed"]
        assert told["tracing error"]
        assert told["tracing error"] in told.one("tracing")["detail"]
        assert told["compiler error"]
        assert told.kinds("after") == ["compile count"]
        assert told["state"] == ["armed", ""]

    @pytest.mark.tells("cutedsl", "cache_load", "name")
    def test_an_object_file_is_a_load_and_one_that_is_broken_a_failed_one(self, stage: Stage) -> None:
        told = self.play(
            stage,
            """
            (folder / "gemm_64.o").write_bytes(b"no object file")
            told["error"] = raised(lambda: cute.runtime.load_module(str(folder / "gemm_64.o"), enable_tvm_ffi=True))
            say("broken")
            """,
        )
        assert told.kinds("broken") == ["cache_load gemm_64 failed"]
        assert told["error"]

    @pytest.mark.tells("cutedsl", "hit", "no_frames")
    def test_what_is_forgotten_is_loaded_again_and_what_is_recalled_is_not(self, stage: Stage) -> None:
        told = self.play(
            stage,
            """
            programs.count(7); programs.count(8); say("warm")
            told["names"] = sorted(monitor.resident().values())
            tokens = list(monitor.resident())
            monitor.forget(tokens)
            told["left"] = list(monitor.resident())
            programs.count(7); say("forgotten")
            monitor.recall(tokens)
            programs.count(7); programs.count(8); say("recalled")
            """,
        )
        assert told["names"] == ["cute_programs.count"] * 2
        assert told["left"] == []
        assert told.kinds("forgotten") == ["cache_load count"]
        assert told["recalled"] == []

    @pytest.mark.tells("cutedsl", "name")
    def test_a_rival_s_replacement_of_cute_compile_changes_nothing(self, stage: Stage) -> None:
        told = self.play(
            stage,
            """
            class Monitored:
                def __init__(self, inner): self.inner = inner
                def __call__(self, *args, **kwargs): return self.inner(*args, **kwargs)
                def __getitem__(self, options): return self.inner[options]
            cute.compile = Monitored(cute.compile)
            cute.compile(programs.count, Int32(1)); say("replaced")
            """,
        )
        assert told.kinds("replaced") == ["compile count"]
        assert told["state"] == ["armed", ""]

    def test_there_is_nothing_to_refuse_with(self, stage: Stage) -> None:
        told = self.play(stage, "monitor.refuse(True); programs.count(1); say('refused'); monitor.refuse(False)")
        assert told.kinds("refused") == ["compile count"]
