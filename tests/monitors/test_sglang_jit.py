"""The monitor of SGLang's kernel loader, with a stand-in for the package whose builds are real."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from scenes import FAKES, Stage, waits

from pytest_jitguard.contract import MonitorContract

MONITOR = "pytest_jitguard.monitors.sglang_jit:SglangJitMonitor"

pytestmark = pytest.mark.skipif(not shutil.which("ninja"), reason="SGLang builds with ninja")

LOAD = """
from sglang.kernels.jit.utils.compile import loader

def load(*args, text="", flags=()):
    return loader.load_jit(*args, source=str(source("_".join(args), text)), flags=flags)
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(MONITOR, tmp_path, {"SGLANG_JIT_CACHE_DIR": str(tmp_path / "cache"), "FAKES": "1"})


@pytest.mark.tells("sglang_jit", "compile", "hit", "cache_load", "name", "seconds", "key", "no_frames")
def test_a_build_is_one_compile_and_a_load_in_a_fresh_process(stage: Stage) -> None:
    body = (
        LOAD
        + """
started = time.monotonic()
module = load("norm", "64")
told["call"] = time.monotonic() - started
say("first"); load("norm", "64"); say("again")
counted = 0
def count(frame, what, argument):
    global counted
    counted += what == "call" and "/pytest_jitguard/" in frame.f_code.co_filename
sys.setprofile(count)
for _ in range(10_000):
    module.f()
sys.setprofile(None)
told["frames"] = counted
"""
    )
    cold, warm = stage.play(body), stage.play(body)
    compiled, loaded = cold.one("first"), warm.one("first")
    assert (compiled["kind"], compiled["kernel"]) == ("compile", "sgl_kernel_jit_norm_64")
    assert (loaded["kind"], loaded["kernel"]) == ("cache_load", "sgl_kernel_jit_norm_64")
    assert compiled["key"] == ["argument 1=norm", "argument 2=64"]
    assert compiled["hash"] == loaded["hash"]
    assert compiled["seconds"] <= cold["call"]
    assert cold["again"] == warm["again"] == []
    assert (cold["frames"], warm["frames"], cold["state"]) == (0, 0, ["armed", ""])


@pytest.mark.tells("sglang_jit", "reason")
def test_why_it_was_built_is_read_from_the_cache(stage: Stage) -> None:
    scene = stage.play(
        LOAD
        + """
load("norm", "64"); say("first")
load("norm", "64", text="int f(void) { return 4; }"); say("another source")
load("norm", "64", flags=("-O3",)); say("other flags")
load("norm", "128"); say("variant")
"""
    )
    assert scene.one("first")["reason"].startswith("it was never built in this cache (")
    assert scene.one("another source")["reason"].endswith("was made of has changed since")
    assert scene.one("other flags")["reason"].startswith("the cache has builds of it for other sources, flags")
    assert scene.one("variant")["reason"].startswith("sgl_kernel_jit_norm: 64 → 128 against the nearest module")


@pytest.mark.tells("sglang_jit", "failed")
def test_a_build_that_fails_is_a_failed_compile(stage: Stage) -> None:
    body = "told['raised'] = raised(lambda: load('bad', text='int f(void) { return y; }')); say('all')"
    scene = stage.play(LOAD + body)
    assert scene["raised"] == "RuntimeError"
    assert scene.kinds("all") == ["compile sgl_kernel_jit_bad failed"]


def test_a_library_that_cannot_be_loaded_is_a_failed_load_and_no_hit_afterwards(stage: Stage) -> None:
    stage.play(LOAD + "load('norm')")
    (library,) = stage.folder.glob("cache/sm90a/*/build-*/deps-*/*.so")
    library.write_text("nothing that loads")
    scene = stage.play(LOAD + "told['raised'] = [raised(lambda: load('norm')) for _ in '12']; say('all')")
    assert scene["raised"] == ["OSError"] * 2
    assert scene.kinds("all") == ["cache_load sgl_kernel_jit_norm failed"] * 2


@pytest.mark.tells("sglang_jit", "threads", "lock_wait")
def test_three_threads_are_one_build_and_two_waits(stage: Stage) -> None:
    slow = "#include <stdio.h>\\n" * 2000 + "int f(void) { return 3; }"
    scene = stage.play(
        LOAD + f"source('norm', '''{slow}''')\ntogether(lambda: load('norm', text='''{slow}''')); say('all')"
    )
    name = "sgl_kernel_jit_norm"
    assert scene.kinds("all") == [f"compile {name}", f"lock_wait {name}", f"lock_wait {name}"]


@pytest.mark.tells("sglang_jit", "lock_wait")
def test_a_wait_for_another_process_is_seen_while_it_lasts(stage: Stage) -> None:
    import fcntl

    stage.play(LOAD + "load('norm')")
    (lock,) = stage.folder.glob("cache/sm90a/*/build-*/.lock")
    shutil.rmtree(next(lock.parent.glob("deps-*")))
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = stage.start_until(waits, LOAD + "load('norm'); say('all')")
    scene = stage.finish(process)
    assert scene.kinds("all") == ["compile sgl_kernel_jit_norm", "lock_wait sgl_kernel_jit_norm"]


@pytest.mark.tells("sglang_jit", "refuse")
def test_its_own_switch_refuses_compiles_and_lets_loads_pass(stage: Stage) -> None:
    scene = stage.play(
        LOAD
        + """
load("norm"); say("warm")
monitor.refuse(True)
told["raised"] = [raised(lambda: load("norm")), raised(lambda: load("cold"))]; say("refused")
monitor.refuse(False)
told["variable"] = os.environ.get("SGLANG_CRASH_ON_JIT_COMPILE")
load("cold"); say("allowed")
"""
    )
    assert (scene["raised"], scene["variable"]) == (["", "RuntimeError"], None)
    refused = scene.one("refused")
    assert (refused["kind"], refused["kernel"], refused["status"]) == ("compile", "sgl_kernel_jit_cold", "failed")
    assert refused["reason"].startswith("refused because of --jitguard-deny=sglang_jit, which sets SGLANG_CRASH_ON_JIT")
    assert scene.kinds("allowed") == ["compile sgl_kernel_jit_cold"]


@pytest.mark.tells("sglang_jit", "blind", "uninstall", "children")
@pytest.mark.soak
class TestContract(MonitorContract):
    monitor = MONITOR
    threads = 2
    not_there: ClassVar[Mapping[str, str]] = {
        "reset": "SGLang has no reset of its loader",
        "hide": "nothing but its functions is hooked",
        "sneak_in": "SGLang keeps no list of what it loaded",
    }

    def environment(self, folder: Path) -> Mapping[str, str]:
        return {"SGLANG_JIT_CACHE_DIR": str(folder / "cache")}

    def library(self) -> Any:
        sys.path.insert(0, str(FAKES))
        return super().library()

    def _load(self, name: str, text: str = "int f(void) { return 3; }\n") -> Any:
        from sglang.kernels.jit.utils.compile import loader

        file = self.folder / f"{name}.c"
        if not file.exists():
            file.write_text(text)
        return loader.load_jit(name, source=str(file))

    def compile_new(self) -> str:
        name = f"module_{self.number()}"
        self.function: Any = self._load(name).f
        return name

    def repeat(self) -> None:
        self.function()

    def fail(self) -> None:
        try:
            self._load(f"broken_{self.number()}", "int f(void) { return y; }\n")
        except RuntimeError as error:
            raise RuntimeError("the message has the name of a folder, another one each time") from error

    def load_from_disk(self) -> None:
        self._load("shared")

    def alias(self) -> Any:
        from sglang.kernels.jit.utils.compile.loader import load_jit

        def compile_by_alias() -> None:
            file = self.folder / f"alias_{self.number()}.c"
            file.write_text("int f(void) { return 3; }\n")
            load_jit(file.stem, source=str(file))

        return compile_by_alias
