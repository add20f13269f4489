"""DeepGEMM: a fake that keeps to the library's artifacts (tests/fakes/deep_gemm), each scenario in its own process."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pytest_jitguard.contract import MonitorContract
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors.deep_gemm import DeepGemmMonitor
from tests.conftest import ROOT

FAKE = ROOT / "tests" / "fakes" / "deep_gemm"
G2_ROOT, G3_ROOT = ".deep_gemm", ".dj"
ALL = pytest.mark.parametrize("generation", ["G1", "G2", "G3"])


class Place:
    """A home with cache folders, and processes that live there."""

    def __init__(self, folder: Path, generation: str, native: str) -> None:
        self.folder, self.generation, self.native = folder, generation, native
        (folder / "cuda" / "bin").mkdir(parents=True)
        shutil.copy(FAKE / "nvcc", folder / "cuda" / "bin" / "nvcc")
        (folder / "home").mkdir()
        (folder / "tmp").mkdir()

    @property
    def nvcc(self) -> Path:
        return self.folder / "cuda" / "bin" / "nvcc"

    @property
    def cache(self) -> Path:
        return self.folder / "home" / (G3_ROOT if self.generation == "G3" else G2_ROOT) / "cache"

    @property
    def entries(self) -> list[str]:
        return sorted(entry.name for entry in self.cache.iterdir()) if self.cache.exists() else []

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        return {
            **kept,
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            "CUDA_HOME": str(self.folder / "cuda"),
            "PYTHONPATH": os.pathsep.join(map(str, (FAKE, ROOT, ROOT / "tests" / "fakejit"))),
            "FAKE_DEEP_GEMM": self.generation,
            "FAKE_NATIVE": self.native,
            **variables,
        }

    def command(self, script: str) -> list[str]:
        path = self.folder / f"scenario{len(list(self.folder.glob('scenario*')))}.py"
        path.write_text(textwrap.dedent(script))
        return [sys.executable, str(FAKE / "watched.py"), str(path)]

    def run(self, script: str, **variables: str) -> Any:
        done = subprocess.run(
            self.command(script),
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def generation() -> str:
    """What vLLM 0.21.0 brings, unless a test's parameter says otherwise."""
    return "G2"


@pytest.fixture
def place(tmp_path: Path, generation: str, native: str) -> Place:
    if generation == "G3":
        pytest.importorskip("torch")
    return Place(tmp_path, generation, native)


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What is C++ in the library."""
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("native") / "native.so"
    source = FAKE / "native.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return str(library)


def compiles(events: list[Any]) -> list[Any]:
    return [event for event in events if event["kind"] == "compile"]


ONE_CALL = """
    import time
    watch = Watch()
    deep_gemm = watch.begin()
    from matrices import gemm
    a, b, d = gemm(577)
    begun = time.monotonic()
    deep_gemm.fp8_gemm_nt(a, b, d)
    out["call"] = [begun, time.monotonic()]
    out["at once"] = watch.told
    for _ in range(3):
        deep_gemm.fp8_gemm_nt(a, b, d)
    watch.settle()
    out["events"], out["state"], out["records"] = watch.told, watch.monitor.to_wire(), watch.records
"""


@ALL
@pytest.mark.tells("deep_gemm", "compile", "hit", "name", "seconds", "key")
def test_a_cold_compile_is_one_event_with_the_call_that_caused_it(place: Place) -> None:
    out = place.run(ONE_CALL)
    (event,) = out["events"]
    assert out["at once"] == [event]
    assert (event["kernel"], event["module"], event["kind"], event["status"]) == (
        "sm90_fp8_gemm_1d2d",
        "deep_gemm",
        "compile",
        "ok",
    )
    begun, ended = out["call"]
    assert begun <= event["started"]
    assert 0.04 <= event["seconds"] <= ended - event["started"]
    assert event["stages"] == {"nvcc": event["seconds"]}
    key = event["key"]
    assert "M" not in key  # not compiled in
    assert (key["BLOCK_M"], key["stages"], key["num_sms"], key["GemmType"]) == ("128", "5", "132", "Normal")
    if place.generation != "G3":  # SGLang's build compiles no dimension in
        assert (key["N"], key["K"], key["swizzle_a"], key["cluster"]) == ("2112", "7168", "128", "2")
    if place.generation != "G1":  # Python itself waits for nvcc there, and hears of its end before the entry is there
        assert event["artifact_hash"] == place.entries[0].rpartition(".")[2]
        assert event["witnesses"] == ["cache folder"]
    assert event["launch"]["values"]["M"] == "577"
    assert event["launch"]["tensors"]["a[0]"] == "float8_e4m3fn[577, 7168]"
    assert event["stack"][0].endswith("scenario0.py:8:<module>")
    assert {record["event"] for record in out["records"]} == {out["records"][0]["event"]}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not know where in a line a call stands")
@pytest.mark.tells("deep_gemm", "name", "reason")
def test_the_call_of_a_function_without_a_frame_is_told_by_its_caller_s_text(place: Place) -> None:
    script = """
        watch = Watch()
        deep_gemm = watch.begin()
        from matrices import gemm, tensor
        fp8_gemm_nt_impl = deep_gemm.fp8_gemm_nt  # as vLLM keeps it
        def facade(*args, **kwargs):
            return fp8_gemm_nt_impl(*args, compiled_dims="nk", **kwargs)
        class Layer:
            def __init__(self):
                self.a, (self.b, sfb), d = gemm(577)
                self._parameters = {"sfb": sfb, "d": d}
            def __getattr__(self, name):  # as modules of torch do
                return self._parameters[name]
        def direct():
            layer = Layer()
            deep_gemm.fp8_gemm_nt(
                layer.a, (layer.b, layer.sfb), layer.d)
        facade(*gemm(64))
        direct()
        deep_gemm.get_mn_major_tma_aligned_tensor(gemm(1)[0][1])
        try:
            facade(*gemm(13))
        except RuntimeError as error:
            out["error"] = str(error)
        out["events"] = watch.told
    """
    out = place.run(script, FAKE_PYBIND="1")
    facade, direct, layout, failed = out["events"]
    assert facade["launch"]["values"] == {"M": "64", "N": "2112", "K": "7168", "compiled_dims": "'nk'"}
    assert facade["launch"]["path"] == "deep_gemm:fp8_gemm_nt"
    assert facade["stack"][0].endswith(":facade")
    assert direct["launch"]["tensors"] == {
        "arg0[0]": "float8_e4m3fn[577, 7168]",
        "arg0[1]": "float32[577, 56]",
        "arg1[0]": "float8_e4m3fn[2112, 7168]",
        "arg1[1]": "float32[16, 56]",
        "arg2": "bfloat16[577, 2112]",
    }
    assert direct["reason"] == "BLOCK_M 64 → 128 and stages 8 → 5 because M=577, nearest is M=64"
    assert "torch.zeros((577, 7168), dtype=torch.float8_e4m3fn, device='cuda')" in direct["cure"]
    assert "deep_gemm.fp8_gemm_nt(" in direct["cure"]
    compile(direct["cure"], "cure", "exec")
    assert (layout["kernel"], layout["launch"]["path"]) == (
        "transpose_fp32",
        "deep_gemm:get_mn_major_tma_aligned_tensor",
    )
    assert layout["key"] == {"num_threads": "512", "BLOCK_MN": "64", "SF_K": "56"}
    assert layout["cure"] == ""  # its argument is not known
    assert (failed["status"], failed["detail"]) == ("failed", "nvcc ended with code 2")
    assert "NVCC compilation failed" in out["error"]


@pytest.mark.tells("deep_gemm", "reason")
def test_a_changed_budget_of_sms_is_the_cause_and_not_m(place: Place) -> None:
    script = """
        watch = Watch()
        deep_gemm = watch.begin()
        from matrices import gemm
        deep_gemm.fp8_gemm_nt(*gemm(64))
        deep_gemm.set_num_sms(112)
        deep_gemm.fp8_gemm_nt(*gemm(64))
        out["events"] = watch.told
    """
    first, second = place.run(script)["events"]
    assert first["reason"] == ""
    assert second["reason"] == "num_sms 132 → 112 in fp8_gemm_nt with M=64, N=2112, K=7168"


WARM = """
    watch = Watch()
    deep_gemm = watch.begin()
    from matrices import gemm
    for m in (64, 577):
        deep_gemm.fp8_gemm_nt(*gemm(m))
    watch.settle()
    watch.settle()
    out["events"] = watch.told
"""


@pytest.mark.tells("deep_gemm", "cache_load")
@ALL
def test_a_second_process_loads_what_the_first_compiled(place: Place) -> None:
    assert len(place.run(WARM)["events"]) == 2
    events = place.run(WARM)["events"]
    if place.generation != "G3":  # loads leave no trace there
        assert events == []
        return
    assert [event["kind"] for event in events] == ["cache_load", "cache_load"]
    assert {event["artifact_hash"] for event in events} == {name.rpartition(".")[2] for name in place.entries}
    assert {event["key"]["BLOCK_M"] for event in events} == {"64", "128"}
    assert "from " in events[0]["detail"]


def test_the_compiler_changes_no_digest(place: Place) -> None:
    place.run("import deep_gemm; from matrices import gemm; deep_gemm.fp8_gemm_nt(*gemm(64))")
    before = place.entries
    assert place.run(ONE_CALL.replace("577", "64"))["events"] == []
    assert place.entries == before


@pytest.mark.tells("deep_gemm", "failed")
@ALL
def test_a_compile_that_fails_is_an_event(place: Place) -> None:
    script = """
        watch = Watch()
        deep_gemm = watch.begin()
        from matrices import gemm
        for _ in range(2):
            try:
                deep_gemm.fp8_gemm_nt(*gemm(64))
            except RuntimeError as error:
                out["error"] = str(error)
        watch.settle()
        out["events"], out["state"] = watch.told, watch.monitor.state
    """
    out = place.run(script, FAKE_NVCC_FAILS="1")
    assert [(event["status"], event["kind"]) for event in out["events"]] == [("failed", "compile")] * 2
    assert "this does not compile" in out["error"]  # nvcc's own words pass through
    assert place.entries == []
    assert out["state"] == ("armed" if place.generation == "G2" else "unproven")  # the others are untested


@pytest.mark.tells("deep_gemm", "refuse")
def test_refused_compiles_raise_here_and_in_children_and_leave_nothing(place: Place) -> None:
    script = """
        import subprocess, sys
        watch = Watch()
        deep_gemm = watch.begin()
        from matrices import gemm
        deep_gemm.fp8_gemm_nt(*gemm(64))
        watch.monitors.refuse(["deep_gemm"], on=True)
        deep_gemm.fp8_gemm_nt(*gemm(64))
        try:
            deep_gemm.fp8_gemm_nt(*gemm(577))
        except RuntimeError as error:
            out["error"] = str(error)
        child = "import deep_gemm; from matrices import gemm; deep_gemm.fp8_gemm_nt(*gemm(577, 4096))"
        done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
        out["child"] = done.stderr
        watch.monitors.refuse(["deep_gemm"], on=False)
        deep_gemm.fp8_gemm_nt(*gemm(577))
        watch.settle()
        out["events"] = watch.told
    """
    out = place.run(script)
    assert "jitguard refused to let DeepGEMM compile" in out["error"]
    assert "jitguard refused to let DeepGEMM compile" in out["child"]
    ok, refused, again, child = out["events"]
    assert (refused["status"], refused["detail"]) == ("failed", "refused by jitguard, as the run was told to")
    assert [event["status"] for event in (ok, again, child)] == ["ok", "ok", "failed"]
    assert child["detail"].startswith("in pid ")
    assert len(place.entries) == 2


@pytest.mark.tells("deep_gemm", "threads")
@pytest.mark.parametrize("generation", ["G3"])
def test_compiles_on_other_threads(place: Place) -> None:
    script = """
        import threading, time
        watch = Watch()
        deep_gemm = watch.begin()
        from matrices import gemm
        def work(m):
            deep_gemm.fp8_gemm_nt(*gemm(m))
        threads = [threading.Thread(target=work, args=(m,)) for m in (64, 577)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.02)  # a main thread that sleeps hears the signal; one that waits for a lock does not
            running = [event for event in watch.told if event["status"] == "running"]
            out["told while it ran"] = max(out.get("told while it ran", 0), len([e for e in running if e["launch"]]))
        watch.settle()
        out["events"] = watch.told
    """
    out = place.run(script, FAKE_NVCC_SECONDS="1")
    events = out["events"]
    assert out["told while it ran"] > 0
    assert sorted((event["kind"], event["key"]["BLOCK_M"]) for event in events) == [
        ("compile", "128"),
        ("compile", "64"),
    ]
    # Seen while it compiled, on its own thread: the library lets go of the GIL there.
    assert {event["launch"]["values"]["M"] for event in events} == {"64", "577"}
    assert all(event["stack"][0].endswith(":work") for event in events)


@pytest.mark.parametrize("generation", ["G3"])
def test_a_compile_that_still_runs_at_a_phase_s_end_has_begun(place: Place) -> None:
    script = """
        import threading, time
        watch = Watch()
        deep_gemm = watch.begin()
        from matrices import gemm
        thread = threading.Thread(target=lambda: deep_gemm.fp8_gemm_nt(*gemm(64)))
        thread.start()
        until = time.monotonic() + 60
        while not watch.told and time.monotonic() < until:
            time.sleep(0.01)
            watch.settle()
        out["running"] = watch.told
        thread.join()
        watch.settle()
        out["events"] = watch.told
    """
    out = place.run(script, FAKE_NVCC_SECONDS="1.5")
    assert [event["status"] for event in out["running"]] == ["running"]
    assert [event["status"] for event in out["events"]] == ["ok"]
    assert out["events"][0]["artifact_hash"]


@pytest.mark.parametrize("generation", ["G3"])
def test_our_compiler_is_no_process_that_has_to_report(place: Place) -> None:
    """It is Python; a census that is taken meanwhile, as of another worker's, must not miss its report."""
    script = """
        import threading, time
        from pathlib import Path
        from pytest_jitguard.processes.census import scan
        watch = Watch()
        deep_gemm = watch.begin()
        from matrices import gemm
        thread = threading.Thread(target=lambda: deep_gemm.fp8_gemm_nt(*gemm(64)))
        thread.start()
        found = []
        until = time.monotonic() + 60
        while not found and time.monotonic() < until:
            found = [living for living in scan(Path("/nowhere")) if "python" in living.argv[0]]
        thread.join()
        out["found"] = [[living.argv, living.python] for living in found]
        watch.settle()
    """
    found = place.run(script, FAKE_NVCC_SECONDS="1.5")["found"]
    assert any("/jitguard-deepgemm-" in " ".join(argv) for argv, _ in found)
    assert {python for _, python in found} == {False}


@pytest.mark.tells("deep_gemm", "uninstall")
def test_nothing_is_left_after_the_end(place: Place) -> None:
    script = """
        import os, signal
        handler = lambda number, frame: seen.append(number)
        seen = []
        signal.signal(signal.SIGURG, handler)
        before = dict(os.environ)
        watch = Watch()
        deep_gemm = watch.begin()
        held = dict(vars(deep_gemm))
        from matrices import gemm
        deep_gemm.fp8_gemm_nt(*gemm(64))
        out["changed"] = [name for name, value in vars(deep_gemm).items() if held.get(name, value) is not value]
        out["chained"] = list(seen)
        folder = os.environ["JITGUARD_DEEP_GEMM"]
        watch.monitors.disarm()
        out["environment"] = dict(os.environ) == before
        out["handler"] = signal.getsignal(signal.SIGURG) is handler
        out["left"] = sorted(os.listdir(folder))
        deep_gemm.fp8_gemm_nt(*gemm(577))  # the library keeps asking the compiler that it has found once
        out["events"] = len(watch.told)
    """
    out = place.run(script)
    assert out.pop("left") == ["claimed", "compiler.json", "nvcc", "watching"]
    assert out == {"changed": [], "chained": [23], "environment": True, "handler": True, "events": 1}
    assert list((place.folder / "tmp").iterdir()) == []


def test_what_a_stranger_put_on_top_stays(place: Place) -> None:
    script = """
        import os, signal
        watch = Watch()
        deep_gemm = watch.begin()
        from matrices import gemm
        below = signal.getsignal(signal.SIGURG)
        stranger = lambda number, frame: below(number, frame)
        signal.signal(signal.SIGURG, stranger)
        deep_gemm.fp8_gemm_nt(*gemm(64))
        out["events"] = len(watch.told)
        os.environ["DG_JIT_NVCC_COMPILER"] = "/elsewhere/nvcc"
        watch.monitors.disarm()
        out["stranger"] = signal.getsignal(signal.SIGURG) is stranger
        out["compiler"] = os.environ["DG_JIT_NVCC_COMPILER"]
        stranger(signal.SIGURG, None)
    """
    out = place.run(script)
    assert out == {"events": 1, "stranger": True, "compiler": "/elsewhere/nvcc"}


@pytest.mark.tells("deep_gemm", "no_frames")
def test_a_hit_runs_no_line_of_ours(place: Place) -> None:
    script = """
        import sys
        watch = Watch()
        deep_gemm = watch.begin()
        from matrices import gemm
        matrices = gemm(64)
        deep_gemm.fp8_gemm_nt(*matrices)
        frames = {"ours": 0, "all": 0}
        def count(frame, what, argument):
            frames["ours"] += what == "call" and "/pytest_jitguard/" in frame.f_code.co_filename
            frames["all"] += what == "call"
        sys.setprofile(count)
        for _ in range(10_000):
            deep_gemm.fp8_gemm_nt(*matrices)
        sys.setprofile(None)
        watch.settle()
        out.update(frames, events=len(watch.told))
    """
    out = place.run(script)
    assert (out["ours"], out["events"]) == (0, 1)
    assert out["all"] >= 10_000


# -- compilers of the user's, and ways around ours ---------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["DG_JIT_NVCC_COMPILER", "DJ_JIT_NVCC_COMPILER"])
def test_a_compiler_that_the_user_named_is_chained(place: Place, variable: str) -> None:
    own = place.folder / "own nvcc"
    own.write_text(f'#!/bin/sh\necho "$@" >>{place.folder}/asked\nexec {place.nvcc} "$@"\n')
    own.chmod(0o755)
    out = place.run(ONE_CALL, **{variable: str(own), "CUDA_HOME": "/nowhere"})
    assert len(out["events"]) == 1
    asked = (place.folder / "asked").read_text().splitlines()
    assert asked[0] == "--version"
    assert len(asked) == 2


def test_an_inner_guard_takes_the_outer_one_s_place(place: Place) -> None:
    script = """
        import os
        outer = Watch()
        inner = Watch()
        deep_gemm = inner.begin()
        from matrices import gemm
        deep_gemm.fp8_gemm_nt(*gemm(64))
        inner.settle()
        inner.monitors.disarm()
        outer.settle()
        out["events"] = [len(inner.told), len(outer.told)]
        deep_gemm.fp8_gemm_nt(*gemm(577))
        outer.settle()
        out["later"] = [[event["key"]["BLOCK_M"], event["detail"]] for event in outer.told]
    """
    out = place.run(script)
    assert out["events"] == [1, 0]
    assert out["later"] == [["128", ""]]  # by the outer one's compiler, which the inner one's hands on to


@pytest.mark.tells("deep_gemm", "blind")
def test_a_compiler_set_after_us_is_found_by_the_folders_and_said(place: Place) -> None:
    script = """
        import os
        watch = Watch()
        deep_gemm = watch.begin()
        from matrices import gemm
        os.environ["DG_JIT_NVCC_COMPILER"] = os.environ["CUDA_HOME"] + "/bin/nvcc"
        deep_gemm.fp8_gemm_nt(*gemm(64))
        out["at once"] = len(watch.told)
        watch.settle()
        watch.settle()
        out["events"], out["detail"] = watch.told, watch.monitor.detail
    """
    out = place.run(script, FAKE_NVCC_SECONDS="0.5")
    (event,) = out["events"]
    assert out["at once"] == 0
    assert (event["kind"], event["kernel"], event["key"]["BLOCK_M"]) == ("compile", "sm90_fp8_gemm_1d2d", "64")
    assert 0.4 <= event["seconds"] <= 60
    assert event["detail"].startswith("found in the cache folder: DG_JIT_NVCC_COMPILER leads to ")
    assert "DG_JIT_NVCC_COMPILER leads to" in out["detail"]
    assert "cache folders only" in out["detail"]


def test_a_root_that_is_named_at_import_is_looked_into(place: Place) -> None:
    """SGLang overwrites DG_JIT_CACHE_DIR when it is imported, with a folder that nobody may have told us of."""
    script = """
        import os
        watch = Watch()
        os.environ["DG_JIT_CACHE_DIR"] = os.environ["CHOSEN"]
        deep_gemm = watch.begin()
        os.environ["DG_JIT_NVCC_COMPILER"] = os.environ["CUDA_HOME"] + "/bin/nvcc"
        from matrices import gemm
        deep_gemm.fp8_gemm_nt(*gemm(64))
        watch.settle()
        out["events"] = watch.told
    """
    events = place.run(script, CHOSEN=str(place.folder / "sglang"), FAKE_NVCC_SECONDS="0.5")["events"]
    assert [event["kind"] for event in events] == ["compile"]
    assert list((place.folder / "sglang" / "cache").iterdir())


@pytest.mark.parametrize("generation", ["G2", "G3"])
def test_what_strangers_compile_into_a_shared_folder_is_not_ours(place: Place) -> None:
    script = """
        import os, subprocess, sys
        watch = Watch()
        watch.begin()
        clean = {k: v for k, v in os.environ.items() if "JITGUARD" not in k and "NVCC_COMPILER" not in k}
        child = "import deep_gemm; from matrices import gemm; deep_gemm.fp8_gemm_nt(*gemm(64))"
        # Started by somebody else: not our child when it has ended, so its work does not count as ours.
        subprocess.run(["setsid", "--fork", sys.executable, "-c", child], env=clean)
        import time, glob
        until = time.monotonic() + 60
        while not glob.glob(os.environ["HOME"] + "/.d*/cache/*") and time.monotonic() < until:
            time.sleep(0.05)
        watch.settle()
        out["events"] = watch.told
        out["entries"] = len(glob.glob(os.environ["HOME"] + "/.d*/cache/*"))
    """
    assert place.run(script, FAKE_NVCC_SECONDS="1") == {"events": [], "entries": 1}


# -- other processes ---------------------------------------------------------------------------------------------------


@pytest.mark.tells("deep_gemm", "children")
def test_a_monitored_child_reports_its_own_and_the_guard_what_nobody_does(place: Place) -> None:
    script = """
        import json, os, subprocess, sys
        watch = Watch()
        monitored = textwrap.dedent('''
            import json
            from watched import Watch
            from matrices import gemm
            watch = Watch(guard=False)
            deep_gemm = watch.begin()
            deep_gemm.fp8_gemm_nt(*gemm(64))
            watch.settle()
            print(json.dumps(watch.told))
        ''')
        plain = "import deep_gemm; from matrices import gemm; deep_gemm.fp8_gemm_nt(*gemm(577))"
        done = subprocess.run([sys.executable, "-c", monitored], capture_output=True, text=True)
        out["child"] = json.loads(done.stdout.splitlines()[-1])
        watch.settle()
        out["none yet"] = watch.told
        subprocess.run(["sh", "-c", f'"{sys.executable}" -c "{plain}"; true'])
        watch.settle()
        out["events"], out["state"] = watch.told, watch.monitor.state
    """
    out = place.run(script)
    (own,) = out["child"]
    assert own["launch"]["values"]["M"] == "64"
    assert out["none yet"] == []
    (adopted,) = out["events"]
    assert (adopted["key"]["BLOCK_M"], adopted["status"]) == ("128", "ok")
    assert "which did not report it: " in adopted["detail"]
    assert out["state"] == "waiting"


def test_what_a_child_was_compiling_when_it_was_killed_is_told_by_the_guard(place: Place) -> None:
    script = """
        import os, signal, subprocess, sys, time
        watch = Watch()
        child = textwrap.dedent('''
            from watched import Watch
            from matrices import gemm
            Watch(guard=False).begin().fp8_gemm_nt(*gemm(64))
        ''')
        process = subprocess.Popen([sys.executable, "-c", child])
        spool = os.environ["JITGUARD_DEEP_GEMM"] + "/spool.jsonl"
        until = time.monotonic() + 60
        while not os.path.getsize(spool) and time.monotonic() < until:
            time.sleep(0.01)
        watch.settle()
        out["while it lives"] = len(watch.told)
        process.kill()
        process.wait()
        while os.path.getsize(spool) and not watch.told and time.monotonic() < until:
            watch.settle()
        out["events"] = watch.told
    """
    out = place.run(script, FAKE_NVCC_SECONDS="2")
    assert out["while it lives"] == 0
    assert [event["kernel"] for event in out["events"]] == ["sm90_fp8_gemm_1d2d"]


def test_a_forked_child_reports_its_own(place: Place) -> None:
    script = """
        import json, os
        watch = Watch()
        deep_gemm = watch.begin()
        from matrices import gemm
        deep_gemm.fp8_gemm_nt(*gemm(64))
        read, write = os.pipe()
        if not os.fork():
            watch.recorder.renew("child", lambda record: None)
            deep_gemm.fp8_gemm_nt(*gemm(577))
            told = [[e["key"]["BLOCK_M"], e["launch"]["values"]["M"]] for e in watch.told]
            os.write(write, json.dumps(told).encode())
            os._exit(0)
        os.wait()
        out["child"] = json.loads(os.read(read, 10_000))
        watch.settle()
        out["events"] = [event["key"]["BLOCK_M"] for event in watch.told]
    """
    assert place.run(script) == {"child": [["128", "577"]], "events": ["64"]}


def test_vllm_s_copy_is_watched_under_its_own_name(place: Place) -> None:
    package = place.folder / "site" / "vllm" / "third_party"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package.parent / "__init__.py").touch()
    (package / "deep_gemm").symlink_to(FAKE / "deep_gemm")
    script = """
        import sys
        sys.path.insert(0, SITE)
        watch = Watch()
        import vllm.third_party.deep_gemm as deep_gemm
        if watch.monitor.state == "waiting":
            watch.monitor.state = "unproven"
            watch.monitor.install(deep_gemm)
        from matrices import gemm
        a, b, d = gemm(577)
        deep_gemm.fp8_gemm_nt(a, b, d)
        out["events"] = watch.told
    """.replace("SITE", repr(str(place.folder / "site")))
    (event,) = place.run(script, FAKE_PYBIND="1")["events"]
    assert event["module"] == "deep_gemm"
    assert event["key"]["BLOCK_M"] == "128"
    if sys.version_info >= (3, 11):
        assert event["launch"]["path"] == "vllm.third_party.deep_gemm:fp8_gemm_nt"


# -- the program in nvcc's place ---------------------------------------------------------------------------------------


def test_what_waits_for_nvcc_is_not_cut_short_by_the_signal(place: Place) -> None:
    """Hundreds of signals while libc reads from a pipe, in one call that comes back to Python only at its end."""
    script = """
        import ctypes, os, signal, subprocess, sys
        watch = Watch()
        watch.begin()
        storm = textwrap.dedent(f'''
            import os, time
            until = time.monotonic() + 1
            while time.monotonic() < until:
                os.kill({os.getpid()}, {int(signal.SIGURG)})
                time.sleep(0.002)
        ''')
        libc = ctypes.PyDLL(None, use_errno=True)
        libc.popen.restype = ctypes.c_void_p
        size = ctypes.c_size_t
        libc.fread.restype, libc.fread.argtypes = size, [ctypes.c_char_p, size, size, ctypes.c_void_p]
        libc.pclose.argtypes = [ctypes.c_void_p]
        stream = libc.popen(b"sleep 1; echo one; sleep 0.5; echo two", b"r")
        subprocess.Popen([sys.executable, "-c", storm])
        buffer = ctypes.create_string_buffer(100)
        out["read"] = libc.fread(buffer, 1, 8, stream)
        out["text"] = buffer.value.decode()
        out["status"] = libc.pclose(stream)
        out["state"] = watch.monitor.state
    """
    assert place.run(script) == {"read": 8, "text": "one\ntwo\n", "status": 0, "state": "armed"}


@pytest.mark.parametrize("killed", [False, True])
def test_exit_codes_and_signals_pass_through(place: Place, killed: bool) -> None:
    place.nvcc.write_text("#!/bin/sh\necho out; echo err >&2\n" + ("kill -TERM $$\n" if killed else "exit 7\n"))
    script = """
        import os, subprocess
        watch = Watch()
        program = os.environ["DG_JIT_NVCC_COMPILER"]
        for arguments in (["--version"], ["kernel.cu", "-cubin", "-o", "kernel.cubin"]):
            done = subprocess.run([program, *arguments], capture_output=True, text=True)
            out[arguments[0]] = [done.returncode, done.stdout, done.stderr]
        watch.settle()
        out["events"] = [[event["status"], event["detail"]] for event in watch.told]
    """
    out = place.run(script)
    code = -15 if killed else 7
    assert out["--version"] == out["kernel.cu"] == [code, "out\n", "err\n"]
    assert out["events"] == [["failed", f"nvcc ended with code {code}"]]


def test_a_signal_to_the_compiler_reaches_nvcc(place: Place) -> None:
    place.nvcc.write_text(f"#!/bin/sh\ntrap 'echo ended >{place.folder}/told; exit 3' TERM\ntouch {place.folder}/up\n")
    with place.nvcc.open("a") as file:
        file.write("while :; do sleep 0.05; done\n")
    script = """
        import os, signal, subprocess, time
        watch = Watch()
        program = os.environ["DG_JIT_NVCC_COMPILER"]
        process = subprocess.Popen([program, "kernel.cu", "-o", "kernel.cubin"])
        until = time.monotonic() + 60
        while not os.path.exists(os.environ["HOME"] + "/../up") and time.monotonic() < until:
            time.sleep(0.01)
        process.terminate()
        out["code"] = process.wait(60)
    """
    assert place.run(script)["code"] == 3
    assert (place.folder / "told").read_text() == "ended\n"


def test_a_folder_that_starts_no_program_leaves_deepgemm_alone(place: Place) -> None:
    (place.folder / "with blank").mkdir()
    script = """
        import os
        watch = Watch()
        deep_gemm = watch.begin()
        from matrices import gemm
        deep_gemm.fp8_gemm_nt(*gemm(64))
        watch.settle()
        out["events"] = [[event["kind"], event["detail"]] for event in watch.told]
        out["detail"], out["compiler"] = watch.monitor.detail, os.environ.get("DG_JIT_NVCC_COMPILER")
    """
    out = place.run(script, TMPDIR=str(place.folder / "with blank"), FAKE_NVCC_SECONDS="0.5")
    assert out["compiler"] is None
    assert [kind for kind, _ in out["events"]] == ["compile"]
    assert "cache folders only" in out["detail"]


@pytest.mark.soak
@pytest.mark.parametrize("generation", ["G3"])
def test_two_that_race_have_compiled_both_and_left_one_entry(place: Place) -> None:
    script = """
        import json, subprocess, sys
        watch = Watch()
        child = textwrap.dedent('''
            import json
            from watched import Watch
            from matrices import gemm
            watch = Watch(guard=False)
            watch.begin().fp8_gemm_nt(*gemm(64))
            watch.settle()
            print(json.dumps([event["kind"] for event in watch.told]))
            ''')
        command = [sys.executable, "-c", child]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        out["events"] = [json.loads(one.communicate()[0].splitlines()[-1]) for one in both]
        watch.settle()
        out["guard"] = len(watch.told)
    """
    out = place.run(script, FAKE_NVCC_SECONDS="6")
    assert out == {"events": [["compile"], ["compile"]], "guard": 0}
    assert len(place.entries) == 1


@pytest.mark.parametrize("generation", ["G3"])
def test_every_root_of_a_list_is_looked_into(place: Place) -> None:
    """An empty folder over a warm one: what is cold lands in the first, what is warm is loaded from the second."""
    empty, warm = place.folder / "empty", place.folder / "warm"
    place.run(WARM.replace("(64, 577)", "(64,)"), DG_JIT_CACHE_DIR=str(warm))
    events = place.run(WARM, DG_JIT_CACHE_DIR=f"{empty}:{warm}")["events"]
    assert sorted((event["kind"], event["key"]["BLOCK_M"]) for event in events) == [
        ("cache_load", "64"),
        ("compile", "128"),
    ]
    assert len(list((empty / "cache").iterdir())) == len(list((warm / "cache").iterdir())) == 1


def test_a_run_that_raises_does_so_at_the_call(place: Place) -> None:
    script = """
        watch = Watch()
        deep_gemm = watch.begin()
        from matrices import gemm
        def stop(event):
            raise ZeroDivisionError(event.kernel)
        watch.recorder.on_finished = stop
        try:
            deep_gemm.fp8_gemm_nt(*gemm(64))
        except ZeroDivisionError as error:
            out["raised"] = str(error)
    """
    assert place.run(script) == {"raised": "sm90_fp8_gemm_1d2d"}


def test_what_outlives_the_guard_still_compiles(place: Place) -> None:
    script = """
        import subprocess, sys, time
        watch = Watch()
        child = textwrap.dedent('''
            import sys
            from watched import Watch
            from matrices import gemm
            watch = Watch(guard=False)
            deep_gemm = watch.begin()
            print("up", flush=True)
            sys.stdin.readline()
            deep_gemm.fp8_gemm_nt(*gemm(64))
            print("done", flush=True)
            ''')
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-c", child], **pipes)
        process.stdout.readline()
        watch.monitors.disarm()
        out["said"] = process.communicate("go\\n")[0]
    """
    assert place.run(script) == {"said": "done\n"}
    assert len(place.entries) == 1


# -- the contract of all monitors --------------------------------------------------------------------------------------


class Prepared(DeepGemmMonitor):
    """A guard's: its compiler is in place before the library is imported."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.prepare()


_UNPATCHED = "nothing of the library is replaced"


@pytest.mark.skipif(shutil.which("cc") is None, reason="the fake needs a C compiler")
class TestContract(MonitorContract):
    monitor = Prepared
    hits = 200
    not_there: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("renamed", "replaced", "chained", "alias", "neighbour", "hide"), _UNPATCHED),
        "fail": "used before the guard, the library keeps its own compiler; a failure then leaves nothing to see",
        "load_from_disk": "generation 2 leaves no trace of it; generation 3 is shown above",
        "threads": "a main thread that waits for a lock hears no signal: compiles elsewhere lack their thread",
        "thread": "as for threads",
        "reset": "the library has none",
        "reload": "the extension cannot be loaded twice",
        "sneak_in": "what is resident cannot be seen from Python",
        "half_imported": "nothing of the library is looked at",
    }

    def environment(self, folder: Path) -> Mapping[str, str]:
        place = Place(Path(tempfile.mkdtemp(dir=folder)), "G2", str(folder / "native.so"))
        subprocess.run(["cc", "-shared", "-fPIC", "-o", place.native, str(FAKE / "native.c")], check=True)
        return place.environment(FAKE_PYBIND="1")

    def compile_new(self) -> str:
        deep_gemm, matrices = (importlib.import_module(name) for name in ("deep_gemm", "matrices"))
        # Of its own for each process: a fork has the numbers of its parent, and both the same cache folder.
        self._last = matrices.gemm(64, n=128 * self.number(), k=128 * (os.getpid() % 10_000 + 1))
        deep_gemm.fp8_gemm_nt(*self._last)
        return "sm90_fp8_gemm_1d2d"

    def repeat(self) -> None:
        importlib.import_module("deep_gemm").fp8_gemm_nt(*self._last)

    def test_begin_is_written_before_the_compile_and_end_after(self) -> None:
        """Our compiler writes it, into the spool; the record follows when Python has the word again."""
        pytest.skip("shown by test_what_a_child_was_compiling_when_it_was_killed_is_told_by_the_guard")

    def test_uninstalls_to_the_identical_objects(self) -> None:
        """The environment and the signal's handler."""
        pytest.skip("shown by test_nothing_is_left_after_the_end")

    def test_survives_double_install(self) -> None:
        """The inner one's compiler is asked, then the outer one's."""
        pytest.skip("shown by test_an_inner_guard_takes_the_outer_one_s_place")
