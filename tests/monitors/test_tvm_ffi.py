"""The monitor of tvm-ffi's inline modules, with real builds; sources without its headers take 0.1 s."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from scenes import Stage, waits

from pytest_jitguard.contract import MonitorContract

MONITOR = "pytest_jitguard.monitors.tvm_ffi:TvmFfiMonitor"

pytestmark = pytest.mark.skipif(not shutil.which("ninja"), reason="tvm-ffi builds with ninja")

BUILD = """
import tvm_ffi.cpp
from tvm_ffi.cpp import extension

def build(name, text=""):
    return tvm_ffi.cpp.build(name=name, sources=[str(source(name, text))])
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    pytest.importorskip("tvm_ffi")
    return Stage(MONITOR, tmp_path, {"TVM_FFI_CACHE_DIR": str(tmp_path / "cache")})


@pytest.mark.tells("tvm_ffi", "compile", "hit", "cache_load", "name", "seconds", "reason", "no_frames")
def test_load_inline_compiles_once_and_is_a_load_in_a_fresh_process(stage: Stage) -> None:
    body = """
import tvm_ffi.cpp
def load():
    return tvm_ffi.cpp.load_inline("plus", cpp_sources="int add_one(int x) { return x + 1; }", functions="add_one")
started = time.monotonic()
module = load()
told["call"] = time.monotonic() - started
say("first")
load()
say("again")
counted = 0
def count(frame, what, argument):
    global counted
    counted += what == "call" and "/pytest_jitguard/" in frame.f_code.co_filename
sys.setprofile(count)
for _ in range(10_000):
    module.add_one(1)
sys.setprofile(None)
told["frames"], told["result"] = counted, module.add_one(41)
"""
    cold, warm = stage.play(body), stage.play(body)
    compiled, loaded = cold.one("first"), warm.one("first")
    assert (compiled["kind"], compiled["kernel"], loaded["kind"], loaded["kernel"]) == (
        "compile",
        "plus",
        "cache_load",
        "plus",
    )
    assert compiled["reason"].startswith("there was no plus.so in ")
    assert compiled["hash"] == loaded["hash"]
    assert compiled["hash"].startswith("plus_")
    for scene in (cold, warm):
        assert scene.one("first")["seconds"] <= scene["call"]
        assert scene["again"] == []
        assert (scene["frames"], scene["result"], scene["state"]) == (0, 42, ["armed", ""])


@pytest.mark.tells("tvm_ffi", "reason")
def test_a_source_that_changed_is_built_again_in_the_same_process_and_in_another(stage: Stage) -> None:
    scene = stage.play(
        BUILD
        + """
build("plus"); say("first")
build("plus"); say("again")
build("plus", "int f(void) { return 4; }"); say("changed")
extension.build_ninja(str(next(folder.glob("cache/plus_*")))); say("repeated")
"""
    )
    assert scene.kinds("first") == scene.kinds("changed") == ["compile plus"]
    assert scene["again"] == scene["repeated"] == []
    assert scene.one("changed")["reason"] == f"{stage.folder / 'plus.c'} is newer than plus.so"


def test_what_ninja_builds_again_unforeseen_is_a_compile_all_the_same(stage: Stage) -> None:
    scene = stage.play(
        BUILD
        + """
build("plus"); say("first")
(next(folder.glob("cache/plus_*")) / ".ninja_log").unlink()
build("plus"); say("log lost")
"""
    )
    assert scene.kinds("log lost") == ["compile plus"]
    assert "ninja built it again although" in scene.one("log lost")["reason"]


@pytest.mark.tells("tvm_ffi", "failed")
def test_a_build_that_fails_is_a_failed_compile_each_time(stage: Stage) -> None:
    scene = stage.play(
        BUILD + "told['raised'] = [raised(lambda: build('bad', 'int f(void) { return y; }')) for _ in '12']; say('all')"
    )
    assert scene["raised"] == ["RuntimeError"] * 2
    assert scene.kinds("all") == ["compile bad failed"] * 2


@pytest.mark.tells("tvm_ffi", "threads", "lock_wait")
def test_three_threads_are_one_build_and_two_waits(stage: Stage) -> None:
    slow = "#include <stdio.h>\\n" * 2000 + "int f(void) { return 3; }"
    scene = stage.play(
        BUILD + f"source('plus', '''{slow}''')\ntogether(lambda: build('plus', '''{slow}''')); say('all')"
    )
    assert scene.kinds("all") == ["compile plus", "lock_wait plus", "lock_wait plus"]


@pytest.mark.tells("tvm_ffi", "lock_wait")
def test_a_wait_for_another_process_is_seen_while_it_lasts(stage: Stage) -> None:
    import fcntl

    stage.play(BUILD + "build('plus')")
    (lock,) = stage.folder.glob("cache/plus_*/lock")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = stage.start_until(waits, BUILD + "build('plus'); say('all')")
    scene = stage.finish(process)
    assert scene.kinds("all") == ["cache_load plus", "lock_wait plus"]
    assert str(lock) in scene["all"][0]["reason"]


@pytest.mark.tells("tvm_ffi", "blind", "uninstall", "children")
class TestContract(MonitorContract):
    monitor = MONITOR
    requires = ("tvm_ffi",)
    threads = 2
    not_there: ClassVar[Mapping[str, str]] = {
        "reset": "tvm-ffi has no reset",
        "hide": "nothing but its functions is hooked",
        "sneak_in": "tvm-ffi keeps no list of what it loaded",
    }

    def environment(self, folder: Path) -> Mapping[str, str]:
        return {"TVM_FFI_CACHE_DIR": str(folder / "cache")}

    def _build(self, name: str, text: str = "int f(void) { return 3; }\n") -> None:
        import ctypes

        import tvm_ffi.cpp

        file = self.folder / f"{name}.c"
        if not file.exists():
            file.write_text(text)
        self.function: Any = ctypes.CDLL(tvm_ffi.cpp.build(name=name, sources=[str(file)])).f

    def compile_new(self) -> str:
        name = f"module_{self.number()}"
        self._build(name)
        return name

    def repeat(self) -> None:
        self.function()

    def fail(self) -> None:
        self._build(f"broken_{self.number()}", "int f(void) { return y; }\n")

    def load_from_disk(self) -> None:
        self._build("shared")

    def alias(self) -> Any:
        from tvm_ffi.cpp import build

        def compile_by_alias() -> None:
            file = self.folder / f"alias_{self.number()}.c"
            file.write_text("int f(void) { return 3; }\n")
            build(name=file.stem, sources=[str(file)])

        return compile_by_alias
