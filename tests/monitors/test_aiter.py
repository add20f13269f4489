"""The monitor of AITER, with a stand-in for the package whose builds are real."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from scenes import FAKES, Stage, waits

from pytest_jitguard.contract import MonitorContract

MONITOR = "pytest_jitguard.monitors.aiter:AiterMonitor"

pytestmark = pytest.mark.skipif(not shutil.which("ninja"), reason="AITER builds with ninja")

CALL = """
from aiter.jit import core

def call(name, text=""):
    return core.call(name, str(source("source_" + name, text)))
"""

TEMPLATES = """
from aiter.jit import core
import csrc.cpp_itfs.utils as templates

def call(name, text="int {name}(void) {{ return 3; }}"):
    return templates.compile_template_op(text.format(name=name), name)
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    folders = {"AITER_JIT_DIR": str(tmp_path / "jit"), "AITER_ROOT_DIR": str(tmp_path / "root")}
    return Stage(MONITOR, tmp_path, {**folders, "FAKES": "1"})


@pytest.mark.tells("aiter", "compile", "hit", "cache_load", "name", "seconds", "reason", "key", "no_frames")
def test_a_module_is_built_once_and_loaded_in_a_fresh_process(stage: Stage) -> None:
    body = (
        CALL
        + """
started = time.monotonic()
call("module_add_bfloat16_bfloat16")
told["call"] = time.monotonic() - started
say("first"); call("module_add_bfloat16_bfloat16"); say("again")
counted = 0
def count(frame, what, argument):
    global counted
    counted += what == "call" and "/pytest_jitguard/" in frame.f_code.co_filename
file = str(source("source_module_add_bfloat16_bfloat16"))
sys.setprofile(count)
for _ in range(10_000):
    core.call("module_add_bfloat16_bfloat16", file).f()
sys.setprofile(None)
told["frames"] = counted
"""
    )
    cold, warm = stage.play(body), stage.play(body)
    compiled, loaded = cold.one("first"), warm.one("first")
    assert (compiled["kind"], loaded["kind"]) == ("compile", "cache_load")
    assert compiled["kernel"] == loaded["kernel"] == "module_add_bfloat16_bfloat16"
    assert compiled["key"] == ["module_add=bfloat16", "parameter 2=bfloat16"]
    assert compiled["reason"] == f"there was no module_add_bfloat16_bfloat16.so in {stage.folder / 'jit'}"
    assert compiled["hash"] == loaded["hash"]
    assert compiled["seconds"] <= cold["call"]
    assert cold["again"] == warm["again"] == []
    assert (cold["frames"], warm["frames"], cold["state"]) == (0, 0, ["armed", ""])


@pytest.mark.tells("aiter", "reason")
def test_a_variant_says_in_which_dtype_it_differs(stage: Stage) -> None:
    body = "call('module_add_bfloat16_bfloat16'); say('one'); call('module_add_bfloat16_float32'); say('two')"
    scene = stage.play(CALL + body)
    assert scene.one("two")["reason"].startswith("parameter 2: bfloat16 → float32 against the nearest module")


@pytest.mark.tells("aiter", "reason")
def test_a_library_that_is_built_again_says_so(stage: Stage) -> None:
    stage.play(CALL + "call('module_norm')")
    body = (
        "core.build_module('module_norm', [str(source('source_module_norm', 'int f(void) { return 4; }'))]); say('all')"
    )
    event = stage.play(CALL + body).one("all")
    assert event["kind"] == "compile"
    assert event["reason"].startswith("module_norm.so was there, but for another GPU")


@pytest.mark.tells("aiter", "cache_load")
def test_a_build_in_which_ninja_had_nothing_to_do_is_no_compile(stage: Stage) -> None:
    stage.play(CALL + "call('module_norm')")
    (stage.folder / "jit" / "module_norm.so").unlink()
    event = stage.play(CALL + "call('module_norm'); say('all')").one("all")
    assert (event["kind"], event["kernel"]) == ("cache_load", "module_norm")
    assert event["reason"].startswith("ninja had nothing to do")


@pytest.mark.tells("aiter", "failed")
def test_a_build_that_fails_is_a_failed_compile(stage: Stage) -> None:
    scene = stage.play(CALL + "told['raised'] = raised(lambda: call('bad', 'int f(void) { return y; }')); say('all')")
    assert scene["raised"] == "SystemExit"
    assert scene.kinds("all") == ["compile bad failed"]


@pytest.mark.tells("aiter", "threads", "lock_wait")
def test_three_threads_are_one_build_and_two_waits(stage: Stage) -> None:
    body = """
    file = str(source("source_module_norm", "#include <stdio.h>\\n" * 2000 + "int f(void) { return 3; }"))
    together(lambda: core.build_module("module_norm", [file])); say("all")
    """
    scene = stage.play(CALL + textwrap.dedent(body))
    # AITER takes a lock for its third parties before the module's own: who comes second may wait at both.
    told = [f"{e['kind']} {e['kernel']}" for e in scene["all"] if "lock_3rdparty" not in e["reason"]]
    assert sorted(told) == ["compile module_norm", "lock_wait module_norm", "lock_wait module_norm"]


@pytest.mark.tells("aiter", "lock_wait")
def test_a_lock_that_a_dead_process_left_is_a_wait_that_is_seen_while_it_lasts(stage: Stage) -> None:
    stage.play(CALL)
    lock = stage.folder / "jit" / "build" / "lock_module_norm"
    lock.touch()
    body = "told['raised'] = raised(lambda: call('module_norm')); say('all')"
    process = stage.start_until(waits, CALL + body)
    (begun,) = stage.journalled()
    assert (begun["kind"], begun["kernel"]) == ("lock_wait", "module_norm")
    assert str(lock) in begun["reason"], "whoever looks meanwhile can see what to delete"
    lock.unlink()
    scene = stage.finish(process)
    # Who waited builds nothing, and finds nothing if the other never did.
    assert scene["raised"] == "ModuleNotFoundError"
    assert scene.kinds("all") == ["lock_wait module_norm"]
    assert "or died over it: the lock is" in scene.one("all")["reason"]


@pytest.mark.tells("aiter", "compile", "hit", "failed", "lock_wait")
def test_templates_are_told_like_modules(stage: Stage) -> None:
    scene = stage.play(
        TEMPLATES
        + """
call("pa_64"); say("first"); call("pa_64"); say("again")
told["raised"] = raised(lambda: call("broken", "int {name}(void) {{ return y; }}")); say("broken")
templates.compile_hsaco("decode", b"binary"); say("hsaco")
lock = Path(templates.BUILD_DIR, "held", "lock")
lock.parent.mkdir(); lock.touch()
thread = threading.Thread(target=lambda: raised(lambda: call("held")))
thread.start()
deadline = time.monotonic() + 20
while not any(record["kernel"] == "held" for record in records) and time.monotonic() < deadline:
    time.sleep(0.01)
lock.unlink(); thread.join(); say("waited")
"""
    )
    assert scene.kinds("first") == ["compile pa_64"]
    assert scene.one("first")["reason"] == f"there was no lib.so in {stage.folder / 'root' / 'build' / 'pa_64'}"
    assert scene["again"] == []
    assert (scene["raised"], scene.kinds("broken")) == ("CalledProcessError", ["compile broken failed"])
    assert scene.kinds("hsaco") == ["compile decode"]
    assert scene.kinds("waited") == ["lock_wait held"]


@pytest.mark.tells("aiter", "blind", "uninstall", "children")
@pytest.mark.soak
class TestContract(MonitorContract):
    monitor = MONITOR
    threads = 2
    not_there: ClassVar[Mapping[str, str]] = {
        "reset": "AITER has no reset",
        "hide": "nothing but its functions is hooked",
        "sneak_in": "AITER keeps no list of what it loaded",
    }

    def environment(self, folder: Path) -> Mapping[str, str]:
        return {"AITER_JIT_DIR": str(folder / "jit"), "AITER_ROOT_DIR": str(folder / "root")}

    def library(self) -> Any:
        sys.path.insert(0, str(FAKES))
        return super().library()

    def _call(self, name: str, text: str = "int f(void) { return 3; }\n") -> Any:
        from aiter.jit import core

        file = self.folder / f"{name}.c"
        if not file.exists():
            file.write_text(text)
        self.last = name, str(file)
        return core.call(*self.last)

    def compile_new(self) -> str:
        name = f"module_{self.number()}"
        self._call(name)
        return name

    def repeat(self) -> None:
        from aiter.jit import core

        core.call(*self.last).f()

    def fail(self) -> None:
        try:
            self._call(f"broken_{self.number()}", "int f(void) { return y; }\n")
        except SystemExit as error:
            raise RuntimeError("the check ends with its process else") from error

    def load_from_disk(self) -> None:
        self._call("shared")

    def alias(self) -> Any:
        from aiter.jit.core import call

        def compile_by_alias() -> None:
            file = self.folder / f"alias_{self.number()}.c"
            file.write_text("int f(void) { return 3; }\n")
            call(file.stem, str(file))

        return compile_by_alias
