"""The monitor of `torch.utils.cpp_extension`, with real builds: a source without torch's headers takes 0.1 s."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from scenes import Stage, waits

from pytest_jitguard.contract import MonitorContract

MONITOR = "pytest_jitguard.monitors.cpp_extension:CppExtensionMonitor"

pytestmark = pytest.mark.skipif(not shutil.which("ninja"), reason="torch builds extensions with ninja")

LOAD = """
import torch.utils.cpp_extension as extension

def load(name, text=""):
    return extension.load(name, [str(source(name, text, ".cpp"))], is_python_module=False)
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    pytest.importorskip("torch")
    return Stage(MONITOR, tmp_path, {"TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")})


@pytest.mark.tells("cpp_extension", "compile", "hit", "name", "seconds", "reason", "uninstall", "no_frames")
def test_a_build_is_one_compile_and_loading_it_again_is_nothing(stage: Stage) -> None:
    scene = stage.play(
        LOAD
        + """
started = time.monotonic()
load("tiny")
told["call"] = time.monotonic() - started
say("cold")
load("tiny")
say("again")
counted = 0
def count(frame, what, argument):
    global counted
    counted += what == "call" and "/pytest_jitguard/" in frame.f_code.co_filename
import ctypes
function = ctypes.CDLL(str(folder / "cache/tiny/tiny.so")).f
sys.setprofile(count)
for _ in range(10_000):
    function()
load("tiny")
sys.setprofile(None)
told["frames"] = counted
"""
    )
    event = scene.one("cold")
    assert (event["kind"], event["kernel"], event["system"]) == ("compile", "tiny", "cpp_extension")
    assert event["reason"] == f"there was no tiny.so in {stage.folder / 'cache' / 'tiny'}"
    assert 0 < event["seconds"] <= scene["call"]
    assert scene["again"] == []
    assert scene["frames"] == 0, "neither the library's function nor another load() of it runs any of ours"
    assert scene["state"] == ["armed", ""]


def test_what_was_loaded_before_the_guard_came_is_no_load_later(stage: Stage) -> None:
    scene = stage.play(
        """
monitors.disarm()
"""
        + LOAD
        + """
load("tiny")
monitors = MonitorSet([os.environ["SCENE_MONITOR"]], recorder)
monitors.arm()
monitor = monitors.monitors[0]
load("tiny"); say("all")
"""
    )
    assert scene["all"] == []
    assert scene["state"] == ["armed", ""]


@pytest.mark.tells("cpp_extension", "cache_load")
def test_what_another_process_built_is_loaded(stage: Stage) -> None:
    body = LOAD + "load('tiny'); say('all')"
    built, loaded = stage.play(body).one("all"), stage.play(body).one("all")
    assert (built["kind"], loaded["kind"]) == ("compile", "cache_load")
    assert loaded["hash"] == built["hash"]


@pytest.mark.tells("cpp_extension", "reason")
def test_a_changed_source_is_a_version_of_its_own_and_says_so(stage: Stage) -> None:
    scene = stage.play(LOAD + "load('tiny'); say('first'); load('tiny', 'int f(void) { return 4; }'); say('second')")
    event = scene.one("second")
    assert (event["kind"], event["kernel"]) == ("compile", "tiny_v1")
    assert event["reason"].startswith("sources or flags of tiny changed since this process loaded it")


def test_a_source_that_is_newer_than_the_library_is_named(stage: Stage) -> None:
    stage.play(LOAD + "load('tiny')")
    event = stage.play(LOAD + "load('tiny', 'int f(void) { return 4; }'); say('all')").one("all")
    assert event["kind"] == "compile"
    assert event["reason"] == f"{stage.folder / 'tiny.cpp'} is newer than tiny.so"


def test_what_ninja_built_again_for_its_own_reasons_is_put_right_at_the_end(stage: Stage) -> None:
    stage.play(LOAD + "load('tiny')")
    body = LOAD + "extension.load('tiny', [str(folder / 'tiny.cpp')], ['-DX=1'], is_python_module=False); say('all')"
    event = stage.play(body).one("all")
    assert event["kind"] == "compile"
    assert "ninja built it again although" in event["reason"]
    begun = [record for record in stage.journalled() if record["record"] == "begin"]
    assert begun[-1]["kind"] == "cache_load"


@pytest.mark.tells("cpp_extension", "failed")
def test_a_build_that_fails_is_a_failed_compile(stage: Stage) -> None:
    scene = stage.play(LOAD + "told['raised'] = raised(lambda: load('bad', 'int f(void) { return y; }')); say('all')")
    assert scene["raised"] == "RuntimeError"
    assert scene.kinds("all") == ["compile bad failed"]


@pytest.mark.tells("cpp_extension", "threads", "lock_wait")
def test_three_threads_are_one_build_and_two_waits(stage: Stage) -> None:
    scene = stage.play(LOAD + "together(lambda: load('tiny')); say('all')")
    assert scene.kinds("all") == ["compile tiny", "lock_wait tiny", "lock_wait tiny"]


@pytest.mark.tells("cpp_extension", "lock_wait")
def test_a_lock_that_a_dead_process_left_is_a_wait_that_is_seen_while_it_lasts(stage: Stage) -> None:
    stage.play(LOAD + "load('tiny')")
    lock = stage.folder / "cache" / "tiny" / "lock"
    lock.touch()
    process = stage.start_until(waits, LOAD + "load('tiny'); say('all')")
    begun = stage.journalled()[-1]
    assert (begun["record"], begun["kernel"]) == ("begin", "tiny")
    lock.unlink()
    scene = stage.finish(process)
    assert scene.kinds("all") == ["cache_load tiny", "lock_wait tiny"]
    assert "or died over it: the lock is" in scene["all"][0]["reason"]


@pytest.mark.tells("cpp_extension", "uninstall")
def test_it_leaves_the_identical_functions(stage: Stage) -> None:
    scene = stage.play(
        LOAD
        + """
names = ("_write_ninja_file_and_build_library",)
ours = [getattr(extension, name) for name in names]
monitors.disarm()
told["back"] = [ours[n] is not getattr(extension, name) and ours[n].__wrapped__ is getattr(extension, name)
                for n, name in enumerate(names)]
told["method"] = extension.FileBaton.wait.__module__
load("tiny"); say("after")
"""
    )
    assert scene["back"] == [True]
    assert scene["method"] == "torch.utils.file_baton"
    assert scene["after"] == []


@pytest.mark.soak
def test_an_extension_with_torch_headers_is_seen_as_a_python_module(stage: Stage) -> None:
    process = stage.start(
        """
import torch, torch.utils.cpp_extension as extension
code = "at::Tensor twice(at::Tensor x) { return x + x; }"
module = extension.load_inline("twice", code, functions=["twice"])
told["sum"] = float(module.twice(torch.ones(2)).sum()); say("all")
"""
    )
    scene = stage.finish(process, limit=400)  # half a minute on an idle machine
    assert scene["sum"] == 4
    assert scene.kinds("all") == ["compile twice"]


@pytest.mark.tells("cpp_extension", "blind", "children")
@pytest.mark.soak
class TestContract(MonitorContract):
    monitor = MONITOR
    requires = ("torch",)
    threads = 2
    not_there: ClassVar[Mapping[str, str]] = {
        "reset": "torch has no reset of its extensions",
        "hide": "nothing but its functions is hooked",
        "sneak_in": "torch keeps no list of what it loaded",
    }

    def environment(self, folder: Path) -> Mapping[str, str]:
        return {"TORCH_EXTENSIONS_DIR": str(folder / "cache")}

    def _source(self, name: str, text: str = "int f(void) { return 3; }") -> str:
        file = self.folder / f"{name}.cpp"
        if not file.exists():
            file.write_text(f'extern "C" {text}\n')
        return str(file)

    def _load(self, name: str) -> None:
        import ctypes

        from torch.utils import cpp_extension

        library = cpp_extension.load(name, [self._source(name)], is_python_module=False)
        self.function: Any = ctypes.CDLL(str(library)).f

    def compile_new(self) -> str:
        name = f"extension_{self.number()}"
        self._load(name)
        return name

    def repeat(self) -> None:
        self.function()

    def fail(self) -> None:
        name = f"broken_{self.number()}"
        self._source(name, "int f(void) { return y; }")
        self._load(name)

    def load_from_disk(self) -> None:
        self._load("shared")

    def alias(self) -> Any:
        from torch.utils.cpp_extension import load

        def compile_by_alias() -> None:
            name = f"alias_{self.number()}"
            load(name, [self._source(name)], is_python_module=False)

        return compile_by_alias
