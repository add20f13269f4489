"""The monitor of FlashInfer, with a stand-in for the package whose builds are real: ninja and a C compiler."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from scenes import FAKES, Stage, waits

from pytest_jitguard.contract import MonitorContract

MONITOR = "pytest_jitguard.monitors.flashinfer:FlashInferMonitor"

pytestmark = pytest.mark.skipif(not shutil.which("ninja"), reason="FlashInfer builds with ninja")

BUILD = """
import flashinfer.jit as jit

def spec(name, text=""):
    return jit.gen_jit_spec(name, [source("source_" + name, text)])
"""

CUTE = """
import flashinfer.jit as jit

def cute(name="kernel_64", sha="1", compiled=lambda: b"object"):
    return jit.JitSpecCuteDsl("rmsnorm", name, compiled, sha)
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(MONITOR, tmp_path, {"FLASHINFER_WORKSPACE_BASE": str(tmp_path), "FAKES": "1"})


def cached_ops(stage: Stage) -> Path:
    return stage.folder / ".cache" / "flashinfer" / "0.7.2" / "90a" / "cached_ops"


@pytest.mark.tells("flashinfer", "compile", "hit", "name", "seconds", "reason", "key", "no_frames")
def test_a_missing_module_is_one_compile_that_says_why_it_was_missing(stage: Stage) -> None:
    scene = stage.play(
        BUILD
        + """
file = source("decode")
started = time.monotonic()
jit.get_module("decode_head_dim_64", file)
told["call"] = time.monotonic() - started
say("cold")
jit.gen_jit_spec("decode_head_dim_64", [file]).build_and_load(); say("asked again")
counted = 0
def count(frame, what, argument):
    global counted
    counted += what == "call" and "/pytest_jitguard/" in frame.f_code.co_filename
sys.setprofile(count)
for _ in range(10_000):
    jit.get_module("decode_head_dim_64", file).f()
sys.setprofile(None)
told["frames"] = counted
jit.get_module("decode_head_dim_128", file); say("variant")
"""
    )
    event = scene.one("cold")
    assert (event["kind"], event["kernel"], event["key"]) == ("compile", "decode_head_dim_64", ["decode_head_dim=64"])
    assert event["reason"] == (
        f"there was no decode_head_dim_64.so in {cached_ops(stage) / 'decode_head_dim_64'} for sm_90a, and "
        "flashinfer-jit-cache, which has prebuilt ones, is not installed"
    )
    assert 0 < event["seconds"] <= scene["call"]
    assert scene["asked again"] == []
    assert scene["frames"] == 0
    assert scene.one("variant")["reason"].startswith("decode_head_dim: 64 → 128 against the nearest module")
    assert scene["state"] == ["armed", ""]


@pytest.mark.tells("flashinfer", "cache_load")
def test_ninja_with_nothing_to_do_is_a_load_in_a_fresh_process_and_nothing_in_the_same(stage: Stage) -> None:
    body = BUILD + "spec('decode').build_and_load(); say('first'); spec('decode').build_and_load(); say('again')"
    built, loaded = stage.play(body), stage.play(body)
    assert (built.kinds("first"), loaded.kinds("first")) == (["compile decode"], ["cache_load decode"])
    assert built.one("first")["hash"] == loaded.one("first")["hash"]
    assert built["again"] == loaded["again"] == []


@pytest.mark.tells("flashinfer", "cache_load")
def test_a_prebuilt_module_is_a_load_and_never_asks_ninja(stage: Stage) -> None:
    stage.play(BUILD + "spec('decode').build_and_load()")
    prebuilt = stage.folder / ".cache" / "flashinfer" / "aot" / "decode" / "decode.so"
    prebuilt.parent.mkdir(parents=True)
    shutil.copy(cached_ops(stage) / "decode" / "decode.so", prebuilt)
    scene = stage.play(BUILD + "for _ in '12': spec('decode').build_and_load()\nsay('all')")
    assert scene.kinds("all") == ["cache_load decode"]


@pytest.mark.tells("flashinfer", "failed")
def test_a_build_that_fails_is_a_failed_compile(stage: Stage) -> None:
    body = "told['raised'] = raised(spec('bad', 'int f(void) { return y; }').build_and_load); say('all')"
    scene = stage.play(BUILD + body)
    assert scene["raised"] == "RuntimeError"
    assert scene.kinds("all") == ["compile bad failed"]
    assert scene.one("all")["detail"] == "RuntimeError: Ninja build failed. Ninja output:"


@pytest.mark.tells("flashinfer", "threads", "lock_wait")
def test_three_threads_are_one_build_and_two_waits(stage: Stage) -> None:
    scene = stage.play(
        BUILD
        + """
file = source("decode", "#include <stdio.h>\\n" * 2000 + "int f(void) { return 3; }")
together(lambda: jit.gen_jit_spec("decode", [file]).build_and_load()); say("all")
"""
    )
    assert scene.kinds("all") == ["compile decode", "lock_wait decode", "lock_wait decode"]


@pytest.mark.tells("flashinfer", "lock_wait")
def test_a_wait_for_another_process_is_seen_while_it_lasts(stage: Stage) -> None:
    import fcntl

    stage.play(BUILD + "spec('decode').build_and_load()")
    lock = cached_ops(stage) / "tmp" / "decode.lock"
    lock.touch()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = stage.start_until(waits, BUILD + "spec('decode').build_and_load(); say('all')")
    scene = stage.finish(process)
    assert scene.kinds("all") == ["cache_load decode", "lock_wait decode"]


@pytest.mark.tells("flashinfer", "compile")
def test_a_prebuild_of_many_is_one_event(stage: Stage) -> None:
    body = (
        BUILD + "jit.build_jit_specs([spec('one'), spec('two')]); say('many'); spec('one').build_and_load(); say('one')"
    )
    scene = stage.play(body)
    assert scene.kinds("many") == ["compile one and 1 more"]
    # Another folder, another log: ninja builds what is there, as FlashInfer's own does.
    assert scene.kinds("one") == ["compile one"]
    assert "ninja built it again although" in scene.one("one")["reason"]


@pytest.mark.tells("flashinfer", "compile", "reason", "failed")
def test_a_prebuild_tells_what_it_builds_again(stage: Stage) -> None:
    scene = stage.play(
        BUILD
        + """
def build(text=""):
    return jit.build_jit_specs([spec("one", text), spec("two")])
build(); say("first")
build(); say("nothing to do")
time.sleep(0.05)
build("int f(void) { return 4; }"); say("changed")
for log in folder.rglob(".ninja_log"):
    log.unlink()
build("int f(void) { return 4; }"); say("log lost")
told["raised"] = raised(lambda: build("int f(void) { return y; }")); say("broken")
"""
    )
    assert scene.kinds("first") == ["compile one and 1 more"]
    assert scene["nothing to do"] == []
    assert scene.kinds("changed") == ["compile one"]
    assert scene.one("changed")["reason"] == f"{stage.folder / 'source_one.c'} is newer than one.so"
    assert scene.kinds("log lost") == ["compile one", "compile two"]
    assert scene["raised"] == "RuntimeError"
    assert scene.kinds("broken") == ["compile one failed"]


@pytest.mark.tells("flashinfer", "compile", "cache_load", "reason", "failed")
def test_cute_kernels_are_told_as_compiles_and_loads(stage: Stage) -> None:
    body = CUTE + "told['got'] = cute().build_and_load().decode(); say('first'); cute().build_and_load(); say('again')"
    built, loaded = stage.play(body), stage.play(body)
    name = "rmsnorm_sm90a_cute_dsl/kernel_64"
    assert (built.kinds("first"), loaded.kinds("first")) == ([f"compile {name}"], [f"cache_load {name}"])
    assert built["again"] == loaded["again"] == []
    assert built["got"] == "object"
    assert built.one("first")["reason"] == f"there was no rmsnorm_sm90a_cute_dsl in {cached_ops(stage)}"
    other = stage.play(
        CUTE
        + """
cute(sha="2").build_and_load(); say("other sources")
told["raised"] = raised(cute("broken", "2", lambda: 1 / 0).build_and_load); say("broken")
cute("ahead", "2").compile_and_persist(); say("ahead")
"""
    )
    assert other.kinds("other sources") == [f"compile {name}"]
    assert other.one("other sources")["reason"].endswith("for other sources, another CuTe DSL, or another GPU")
    assert other.kinds("broken") == ["compile rmsnorm_sm90a_cute_dsl/broken failed"]
    assert other.kinds("ahead") == ["compile rmsnorm_sm90a_cute_dsl/ahead"]


@pytest.mark.tells("flashinfer", "parts")
def test_what_a_cute_kernel_compiles_is_a_part_of_it(stage: Stage) -> None:
    scene = stage.play(
        CUTE
        + """
def compiled():
    recorder.end(recorder.begin("cute_dsl", "kernel", ""))
    return b"object"
cute("outer", "1", compiled).build_and_load(); say("all")
"""
    )
    outer, inner = scene["all"]
    assert (outer["system"], inner["system"], inner["parent"]) == ("flashinfer", "cute_dsl", outer["id"])


@pytest.mark.tells("flashinfer", "download", "failed")
def test_a_cubin_that_is_not_there_is_a_download(stage: Stage) -> None:
    served = stage.folder / "served"
    (served / "gen").mkdir(parents=True)
    (served / "gen" / "fmha.cubin").write_bytes(b"cubin")
    scene = stage.play(
        f"""
        import flashinfer.jit as jit
        repository = "file://{served}"
        told["got"] = jit.cubin_loader.get_artifact(repository, "gen/fmha.cubin").decode(); say("first")
        jit.cubin_loader.get_artifact(repository, "gen/fmha.cubin"); say("again")
        told["none"] = jit.cubin_loader.get_artifact(repository, "gen/none.cubin").decode(); say("gone")
        """
    )
    event = scene.one("first")
    assert (event["kind"], event["kernel"], scene["got"]) == ("download", "fmha.cubin", "cubin")
    assert event["key"] == [f"source=file://{served}/gen/fmha.cubin"]
    assert scene["again"] == []
    assert (scene.kinds("gone"), scene["none"]) == (["download none.cubin failed"], "")
    assert scene.one("gone")["detail"] == f"gave up fetching file://{served}/gen/none.cubin"


@pytest.mark.tells("flashinfer", "refuse")
def test_its_own_switch_refuses_and_is_put_back(stage: Stage) -> None:
    scene = stage.play(
        BUILD
        + """
spec("warm").build_and_load(); say("warm")
monitor.refuse(True)
told["raised"] = [raised(spec(name).build_and_load) for name in ("cold", "warm")]
say("refused")
monitor.refuse(False)
told["variable"] = os.environ.get("FLASHINFER_DISABLE_JIT")
spec("cold").build_and_load(); say("allowed")
"""
    )
    # A module that is built and up to date is refused as well: FlashInfer would ask ninja whether it is.
    assert scene["raised"] == ["MissingJITCacheError"] * 2
    assert scene.kinds("refused") == ["compile cold failed", "compile warm failed"]
    why = "refused because of --jitguard-deny=flashinfer, which sets FLASHINFER_DISABLE_JIT; "
    assert all(event["reason"].startswith(why) for event in scene["refused"])
    assert scene["variable"] is None
    assert scene.kinds("allowed") == ["compile cold"]


def test_the_switch_that_a_user_had_set_stays(stage: Stage) -> None:
    scene = stage.play(
        BUILD
        + """
monitor.refuse(True); monitor.refuse(False)
told["variable"] = os.environ["FLASHINFER_DISABLE_JIT"]
raised(spec("cold").build_and_load); say("refused")
""",
        FLASHINFER_DISABLE_JIT="yes",
    )
    assert scene["variable"] == "yes"
    assert scene.one("refused")["reason"].startswith("refused because of FLASHINFER_DISABLE_JIT, which is set; ")


@pytest.mark.tells("flashinfer", "blind")
def test_a_module_that_was_mapped_before_the_guard_is_no_blindness(stage: Stage) -> None:
    stage.play(BUILD + "spec('decode').build_and_load()")
    library = cached_ops(stage) / "decode" / "decode.so"
    load = f"import ctypes; ctypes.CDLL('{library}')\n"
    assert stage.play(load + BUILD)["state"] == ["armed", ""]
    state, detail = stage.play(BUILD + load)["state"]
    assert (state, detail) == ("blind", f"{library} was loaded, and no event announced it")


@pytest.mark.tells("flashinfer", "blind", "uninstall", "children")
class TestContract(MonitorContract):
    monitor = MONITOR
    threads = 2
    not_there: ClassVar[Mapping[str, str]] = {
        "reset": "FlashInfer has no reset",
        "hide": "nothing but its functions is hooked",
    }

    def environment(self, folder: Path) -> Mapping[str, str]:
        return {"FLASHINFER_WORKSPACE_BASE": str(folder)}

    def library(self) -> Any:
        sys.path.insert(0, str(FAKES))
        return super().library()

    def _source(self, text: str) -> Path:
        file = self.folder / f"source_{os.getpid()}_{len(text)}.c"
        file.write_text(text)
        return file

    def _load(self, name: str, text: str = "int f(void) { return 3; }\n") -> None:
        import flashinfer.jit as jit

        self.last = name, self._source(text)
        jit.get_module(*self.last)

    def compile_new(self) -> str:
        name = f"module_{self.number()}"
        self._load(name)
        return name

    def repeat(self) -> None:
        import flashinfer.jit as jit

        jit.get_module(*self.last).f()

    def fail(self) -> None:
        self._load(f"broken_{self.number()}", "int f(void) { return y; }\n")

    def load_from_disk(self) -> None:
        import flashinfer.jit as jit

        file = self.folder / "shared.c"
        if not file.exists():
            file.write_text("int f(void) { return 3; }\n")
        jit.get_module("shared", file)

    def alias(self) -> Any:
        from flashinfer.jit import get_module

        return lambda: get_module(f"alias_{self.number()}", self._source("int f(void) { return 3; }\n"))

    def sneak_in(self) -> None:
        import ctypes

        import flashinfer.jit as jit

        spec = jit.gen_jit_spec(f"sneaked_{self.number()}", [self._source("int f(void) { return 3; }\n")])
        spec.build_dir.mkdir(parents=True)
        os.system(f"cc -shared -fPIC {spec.sources[0]} -o {spec.jit_library_path}")
        ctypes.CDLL(str(spec.jit_library_path))
