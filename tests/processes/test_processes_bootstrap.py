"""What a child does by itself: monitors without canaries, who it is, its forks, its troubles, and standing down."""

from __future__ import annotations

import json
import shutil
import venv
from pathlib import Path

import pytest

from pytest_jitguard.monitors import BUILTIN, load
from tests.processes.conftest import GUARD, Run, events, kinds, role

MONITOR = ("fakejit_monitor:FakeMonitor",)


def _states(run: Run, kernel: str = "") -> list[tuple[str, str]]:
    text = run.of(kernel)[0] if kernel else run.journals[0]
    return [(record["state"], record["detail"]) for record in text.records if record["record"] == "monitor"]


# -- monitors ----------------------------------------------------------------------------------------------------------


def test_the_first_event_proves_a_monitor_and_no_canary_flies(run: Run) -> None:
    run("-c", "import fakejit; fakejit.launch('a', n=1); fakejit.launch('b', n=1); assert len(fakejit.CACHE) == 2")
    assert _states(run) == [("unproven", ""), ("armed", "proven by its first event")]
    assert kinds(run.journals[0]) == ["hello", "monitor", "begin", "monitor", "end", "begin", "end", "bye"]


def test_a_library_that_is_never_imported_is_not_spoken_of(run: Run) -> None:
    run("-c", "pass")
    assert kinds(run.journals[0]) == ["hello", "bye"]


def test_what_is_resident_without_an_event_makes_the_monitor_blind_at_the_exit(run: Run) -> None:
    run("-c", "import fakejit; fakejit.launch('a', n=1); fakejit.sneak_in('b', n=1)")
    *_, last = _states(run)
    assert last == ("blind", "a resident variant b(n=1) was announced by no event")
    assert kinds(run.journals[0])[-2:] == ["monitor", "bye"]


def test_a_library_that_cannot_be_hooked_into_is_told_of(run: Run) -> None:
    run("-c", "import fakejit", FAKEJIT_CACHE="", PYTHONPATH="")
    assert _states(run) == [("unproven", "")]
    run.inherited = run.inherited._replace(monitors=("breaking_monitor:Breaking",))
    run.variables["PYTHONPATH"] = str(run.folder.parent)
    (run.folder.parent / "breaking_monitor.py").write_text(
        "from fakejit_monitor import FakeMonitor\n"
        "class Breaking(FakeMonitor):\n"
        "    def install(self, module): raise RuntimeError('on purpose')\n"
    )
    run("-c", "import fakejit; fakejit.launch('a', n=1)")
    told = [record["detail"] for record in run.records("monitor")]
    assert told[-1] == "could not hook in: RuntimeError: on purpose"


# -- troubles ----------------------------------------------------------------------------------------------------------


def test_a_monitor_that_cannot_be_had_costs_none_of_the_others(run: Run) -> None:
    run.inherited = run.inherited._replace(monitors=("no_such_module:Monitor", *MONITOR))
    done = run("-c", "import fakejit; fakejit.launch('a', n=1)")
    assert done.stderr == ""
    (trouble,) = run.records("trouble")
    assert trouble["message"].endswith(
        "monitor 'no_such_module:Monitor' cannot be imported: No module named 'no_such_module'"
    )
    assert events(run.journals[0]) == {"a": "ok"}


def test_an_offline_target_that_cannot_be_made_is_told_of_when_it_is_wanted(run: Run, tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text("")
    run.inherited = run.inherited._replace(offline="no-such-gpu")
    done = run("-c", "import triton", PYTHONPATH=str(tmp_path))
    assert done.stderr == ""
    (trouble,) = run.records("trouble")
    assert "the offline target for triton failed in child (pid " in trouble["message"]
    assert "unknown offline target 'no-such-gpu'" in trouble["message"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", "null", '"x"', '{"folder": 1}'])
def test_a_damaged_inheritance_stops_nobody(text: str, run: Run) -> None:
    done = run("-c", "print('ran')", JITGUARD_PARENT=text)
    assert (done.stdout, done.stderr) == ("ran\n", "")
    assert run.journals == []


def test_nothing_of_pytest_torch_or_triton_is_imported(run: Run) -> None:
    run.inherited = run.inherited._replace(monitors=("auto",), offline="cuda:90")
    done = run("-c", "import sys, json; print(json.dumps(sorted(sys.modules)))")
    loaded = set(json.loads(done.stdout))
    assert "pytest_jitguard.processes.bootstrap" in loaded
    assert not loaded & {"pytest", "_pytest", "pluggy", "torch", "triton"}
    assert not [name for name in loaded if name.startswith("pytest_jitguard.offline")]
    monitors = {name.rpartition(".")[2] for name in loaded if name.startswith("pytest_jitguard.monitors.")}
    toolchain = {name for name in monitors if "toolchain" in name} | {"_proc"}
    assert monitors - toolchain == {"_frames"}, "others come with their libraries"


def test_each_monitor_of_ours_waits_for_the_library_that_the_table_says() -> None:
    assert {name: load(name).target for name in BUILTIN} == {name: b.target for name, b in BUILTIN.items()}


def test_our_own_monitor_comes_with_its_library(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    run.inherited = run.inherited._replace(monitors=("auto", "triton"), waive=("interpret",))
    run("-c", "import triton; triton.knobs.compilation.listener")
    assert [(record["name"], record["state"]) for record in run.records("monitor")] == [
        *(("toolchain", "armed"), ("triton", "unproven"))
    ]
    assert run.records("trouble") == []


def test_packages_that_come_into_sight_later_in_the_start_are_waited_for(run: Run, tmp_path: Path) -> None:
    """A virtual environment that sees the system's packages adds them after its own start-up files have run."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(tmp_path / "venv")
    first, second = (
        next(place.glob("lib/python*/site-packages")) for place in (tmp_path / "venv", run.python.parent.parent)
    )
    for path in second.glob("*"):
        if path.is_file():
            shutil.copy(path, first / path.name.replace("_others", "zz_others"))
    run.python = tmp_path / "venv" / "bin" / "python"
    run("-c", "import fakejit, sys; fakejit.launch('a', n=1)")
    assert kinds(run.journals[0]) == ["hello", "monitor", "begin", "monitor", "end", "bye"]
    (first / "zz_others.pth").unlink()
    done = run("-c", "import sys; assert not any('jitguard' in repr(finder) for finder in sys.meta_path)")
    assert done.stderr == ""
    assert kinds(run.journals[1])[0 :: len(run.journals[1].records) - 1] == ["hello", "bye"]
    assert {record["message"].rpartition(": ")[2] for record in run.records("trouble")} == {"No module named 'wrapt'"}


# -- the offline target ------------------------------------------------------------------------------------------------


def test_the_offline_target_reaches_a_child_with_the_users_own_gpu(run: Run) -> None:
    pytest.importorskip("triton")
    gpus = {"mine": {"like": "h100", "arch": 100, "multiprocessors": 7}}
    run.inherited = run.inherited._replace(monitors=("auto",), offline="mine", gpus=gpus)
    program = """
import triton
target = triton.runtime.driver.active.get_current_target()
print(target.backend, target.arch, triton.runtime.driver.active.utils.get_device_properties(0)["multiprocessor_count"])
"""
    done = run("-c", program)
    assert done.stdout == "cuda 100 7\n"
    assert run.records("trouble") == []


# -- who it is ---------------------------------------------------------------------------------------------------------


def test_rank_and_scope_are_in_the_first_record(run: Run) -> None:
    run.inherited = run.inherited._replace(scope="server:x#1")
    run("-c", "pass", RANK="3", WORLD_SIZE="8")
    hello = run.journals[0].hello
    assert (hello["rank"], hello["world"], hello["scope"], hello["guard"]) == (3, 8, "server:x#1", GUARD)


DISTRIBUTED = """
import sys, types, fakejit
torch = types.ModuleType("torch.distributed")
torch.is_available = lambda: True
torch.is_initialized = lambda: READY
torch.get_rank = lambda: 5
torch.get_world_size = lambda: 6
sys.modules["torch.distributed"] = torch
fakejit.launch("a", n=1)
fakejit.launch("b", n=1)
"""


@pytest.mark.parametrize(("ready", "known"), [("True", [(5, 6)]), ("False", []), ("1/0", [])])
def test_rank_is_looked_up_again_at_an_event_and_told_once(ready: str, known: list[tuple[int, int]], run: Run) -> None:
    run("-c", DISTRIBUTED.replace("READY", ready), RANK="0")
    assert [(record["rank"], record["world"]) for record in run.records("identity")] == known
    assert len(run.records("trouble")) == (2 if ready == "1/0" else 0)
    assert events(run.journals[0]) == {"a": "ok", "b": "ok"}


TITLED = """
import ctypes, fakejit, os, sys
def call_myself(title):
    with open("/proc/self/stat") as file: fields = file.read().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, title, min(len(title), end - start - 1))
call_myself(b"VLLM::EngineCore")
fakejit.launch("engine", n=1)
if os.fork() == 0:
    fakejit.launch("untitled", n=1)
    call_myself(b"VLLM::Worker_TP1")
    fakejit.launch("worker", n=1)
    sys.exit()
os.wait()
"""


def test_a_title_tells_the_role_and_that_of_the_parent_is_not_ours(run: Run) -> None:
    run("-c", TITLED, "a long command line that has room for a title")
    (engine,), (worker,) = run.of("engine"), run.of("worker")
    assert role(engine) == "vllm engine core"
    told = [(r["record"], r.get("role")) for r in worker.records if r["record"] in ("hello", "identity", "begin")]
    assert told == [("hello", "child"), ("begin", None), ("begin", None), ("identity", "vllm worker TP1")]
    assert [r["rank"] for r in worker.records if r["record"] == "identity"] == [1]


def test_a_helper_of_multiprocessing_is_recognised_and_forks_of_it_are_not_helpers(run: Run) -> None:
    program = """
import multiprocessing, sys
def work(): import fakejit; fakejit.launch("a", n=1)
if __name__ == "__main__":
    process = multiprocessing.get_context("forkserver").Process(target=work)
    process.start()
    process.join()
"""
    script = run.folder.parent / "script.py"
    script.write_text(program)
    run(str(script))
    assert sorted(map(role, run.journals)) == ["ForkServerProcess-1", "child", "forkserver", "resource tracker"]


def test_compile_workers_are_recognised_and_so_are_their_forks(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "torch" / "_inductor" / "compile_worker"
    folder.mkdir(parents=True)
    (folder / "__main__.py").write_text("import os, sys\nif os.fork() == 0: sys.exit()\nos.wait()\n")
    run(str(folder / "__main__.py"))
    assert list(map(role, run.journals)) == ["compile worker", "compile worker"]


# -- doors, forks and standing down ------------------------------------------------------------------------------------


def test_a_second_door_changes_nothing(run: Run) -> None:
    run("-c", "import _jitguard_start as s; s.start(); s.start(); import fakejit; fakejit.launch('a', n=1)")
    (text,) = run.journals
    assert kinds(text) == ["hello", "monitor", "begin", "monitor", "end", "bye"]


def test_standing_down_leaves_nothing_but_a_goodbye(run: Run) -> None:
    program = """
import os, subprocess
start = subprocess.Popen.__init__
from pytest_jitguard.processes import bootstrap
import fakejit
fakejit.launch("a", n=1)
bootstrap.stand_down()
bootstrap.stand_down()
bootstrap.start()
assert fakejit._build is fakejit.untouched_build
assert not hasattr(os.fork, "_jitguard_link") and not hasattr(subprocess.Popen.__init__, "_jitguard_link")
fakejit.launch("b", n=1)
if os.fork() == 0: os._exit(0)
os.wait()
"""
    run("-c", program)
    (text,) = run.journals
    assert events(text) == {"a": "ok"}
    assert kinds(text)[-1] == "bye"


def test_a_moment_before_another_program_takes_over_is_no_process(run: Run) -> None:
    run("-c", "import subprocess; subprocess.run(['true'], preexec_fn=lambda: None)")
    assert [kinds(text) for text in run.journals] == [["hello", "child", "bye"]]


GUARDING = """
import os, sys, subprocess, multiprocessing, fakejit
from pathlib import Path
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet
from pytest_jitguard.processes import bootstrap
from pytest_jitguard.processes.inherit import Inherited
from pytest_jitguard.processes.journal import Journal
folder = Path(sys.argv[1])
journal = Journal(folder, "pytest")
recorder = Recorder(journal.image, journal.write, role="pytest")
monitors = MonitorSet(("fakejit_monitor:FakeMonitor",), recorder)
monitors.arm()
monitors.prove()
ended = []
recorder.on_end = ended.append
recorder.on_finished = ended.append
undo = bootstrap.follow_forks(journal, recorder, monitors, Inherited(folder, journal.image))
bootstrap.start()
"""


def _guard(run: Run, program: str) -> None:
    run("-c", GUARDING + program, str(run.folder), JITGUARD_PARENT="")


def test_forked_children_of_a_guard_report_and_what_it_began_is_not_theirs(run: Run) -> None:
    program = """
event = recorder.begin("fakejit", "of_the_guard", "")
if os.fork() == 0:
    assert recorder.events == []
    recorder.end(event)
    recorder.finished(event)
    fakejit.launch("of_the_child", n=1)
    subprocess.run([sys.executable, "-S", "-c", "pass"])
    assert not ended
    sys.exit()
assert os.wait()[1] == 0
recorder.end(event)
assert ended == [event]
journal.close()
"""
    _guard(run, program)
    guard, child = run.journals
    assert (events(guard), events(child)) == ({"of_the_guard": "ok"}, {"of_the_child": "ok"})
    assert child.hello["guard"] == guard.hello["image"] == guard.hello["guard"]
    assert kinds(child) == ["hello", "monitor", "begin", "end", "child", "bye"]
    assert [record["state"] for record in child.records if record["record"] == "monitor"] == ["armed"]
    (silent,) = run.census.silent
    assert silent.argv[1:] == ("-S", "-c", "pass")
    assert role(child) == "child"


def test_what_a_forked_child_of_multiprocessing_starts_is_noted_too(run: Run) -> None:
    """It lives inside its parent's call of `start()`, which counts once."""
    program = """
import multiprocessing, subprocess, sys
def work(): subprocess.run([sys.executable, "-S", "-c", "pass"])
process = multiprocessing.get_context("fork").Process(target=work)
process.start()
process.join()
"""
    run("-c", program)
    (silent,) = run.census.silent
    assert (run.census.python, silent.argv[1:]) == (3, ("-S", "-c", "pass"))


def test_a_guard_that_ended_follows_no_forks(run: Run) -> None:
    _guard(run, "undo()\nif os.fork() == 0: sys.exit()\nos.wait()\njournal.close()\n")
    assert len(run.journals) == 1


def test_a_fork_while_other_threads_compile_and_write_does_not_hang(run: Run) -> None:
    program = """
import threading
stop = threading.Event()
def busy():
    number = 0
    while not stop.is_set():
        number += 1
        fakejit.launch("busy", n=number, thread=threading.get_ident())
threads = [threading.Thread(target=busy) for _ in range(4)]
for thread in threads: thread.start()
for number in range(20):
    pid = os.fork()
    if pid == 0:
        fakejit.launch("forked", n=number)
        os._exit(0)
    os.waitpid(pid, 0)
stop.set()
for thread in threads: thread.join()
journal.close()
"""
    run.variables["PYTHONWARNINGS"] = "ignore"
    _guard(run, program)
    children = run.of("forked")
    assert len(children) == 20
    assert all(events(child) == {"forked": "ok"} for child in children)
