"""Compilers that start and end below a program that is not Python: make, a shell's script, whatever a library forks."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import fork
from toolchain_nets import NET, Neighbour, Net, needs_gcc, needs_ninja, with_neighbour

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.monitors import _proc as proc
from pytest_jitguard.monitors import _toolchain_watch as watching
from pytest_jitguard.monitors._toolchain_watch import Watch, pause
from tests.conftest import ROOT, GuardedRun

pytestmark = [
    needs_gcc,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc"),
]

COMPILE = "gcc -c k.c -o {}.o\n"


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    net = Net(tmp_path)
    net.monitors.arm()
    yield net
    net.monitors.disarm()


def script(folder: Path, *lines: str, name: str = "build.sh") -> str:
    file = folder / name
    file.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n:\n")
    file.chmod(0o755)
    return str(file)


def run(*argv: str, cwd: Path | None = None) -> None:
    subprocess.run(argv, check=True, cwd=cwd, capture_output=True)


def make(folder: Path, *outputs: str) -> None:
    rules = [f"{one}.o: k.c\n\tgcc -c k.c -o $@\n" for one in outputs]
    (folder / "Makefile").write_text(f"all: {' '.join(f'{one}.o' for one in outputs)}\n" + "".join(rules))
    run("make", cwd=folder)


def by_system(folder: Path) -> None:
    assert os.system(f"cd {folder} && exec {script(folder, COMPILE.format('k'))}") == 0


def by_spawn(folder: Path) -> None:
    argv = ["sh", script(folder, f"cd {folder}", COMPILE.format("k"))]
    os.waitpid(os.posix_spawn("/bin/sh", argv, os.environ), 0)


def by_fork(folder: Path) -> None:
    if (pid := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            os.chdir(folder)
            os.execvp("sh", ["sh", script(folder, COMPILE.format("k"))])
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


WAYS: dict[str, Callable[[Path], object]] = {
    "a script": lambda folder: run("sh", script(folder, COMPILE.format("k")), cwd=folder),
    "a program": lambda folder: run(script(folder, COMPILE.format("k")), cwd=folder),
    "a grandchild": lambda folder: run(
        script(folder, f"sh {script(folder, COMPILE.format('k'), name='b')}"), cwd=folder
    ),
    "what a shell becomes": lambda folder: run(
        "sh", "-c", "true; if true; then exec gcc -c k.c -o k.o; fi", cwd=folder
    ),
    "bash -lc": lambda folder: run("bash", "-lc", "for f in k; do gcc -c $f.c -o $f.o; done", cwd=folder),
    "a launcher": lambda folder: run("timeout", "30", script(folder, COMPILE.format("k")), cwd=folder),
    "g++": lambda folder: run(script(folder, "g++ -x c++ k.c -shared -fPIC -o k.so"), cwd=folder),
    "os.system": by_system,
    "posix_spawn": by_spawn,
    "a forked child": by_fork,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_compile_below_another_program_is_one_event(net: Net, way: str) -> None:
    before = monotonic()
    WAYS[way](net.folder)
    after = monotonic()
    (event,) = net.seen()
    assert (event.system, event.kernel, event.status) == ("unattributed", "k", "ok")
    assert event.ended is not None
    assert before <= event.started < event.ended <= after + 0.1
    assert event.thread == "MainThread"
    assert any(__file__ in line for line in event.stack)


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_what_make_compiles_is_an_event_each(net: Net) -> None:
    make(net.folder, "one", "two")
    assert [event.kernel for event in net.seen()] == ["one", "two"]


def test_two_compiles_one_after_the_other_are_two(net: Net) -> None:
    run(script(net.folder, COMPILE.format("one"), COMPILE.format("two")), cwd=net.folder)
    assert [(event.kernel, event.status) for event in net.seen()] == [("one", "ok"), ("two", "ok")]


def test_one_that_fails_has_failed(net: Net) -> None:
    (net.folder / "k.c").write_text("no C")
    run(script(net.folder, COMPILE.format("k")), cwd=net.folder)
    assert [(event.kernel, event.status) for event in net.seen()] == [("k", "failed")]


def test_its_beginning_is_written_while_it_runs(net: Net) -> None:
    slow = script(net.folder, f"read go < {net.folder}/go", f": > {net.folder}/k.o", name="gcc")
    os.mkfifo(net.folder / "go")
    process = subprocess.Popen([script(net.folder, f"{slow} -c k.c -o k.o")], cwd=net.folder)
    until = monotonic() + 10
    while not net.records and monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.2)  # it is looked at again and again meanwhile
    assert [record["record"] for record in net.records] == ["begin"]
    (net.folder / "go").write_text("go\n")
    process.wait()
    until = monotonic() + 10
    while len(net.records) < 2 and monotonic() < until:
        time.sleep(0.01)
    assert [record["record"] for record in net.records] == ["begin", "end"]
    assert len(net.seen()) == 1


def test_what_a_program_leaves_behind_it_is_followed(net: Net) -> None:
    inner = script(net.folder, "sleep 0.3", COMPILE.format("k"), name="inner")
    run(script(net.folder, f"{inner} > /dev/null 2>&1 &", "sleep 0.1"), cwd=net.folder)
    until = monotonic() + 10
    while not (net.folder / "k.o").exists() and monotonic() < until:
        time.sleep(0.02)
    assert [event.kernel for event in net.seen()] == ["k"]


QUESTIONS = (
    "gcc --version",
    "gcc -E k.c -o k.i",
    "gcc -M k.c",
    "gcc -print-search-dirs",
    "gcc -fsyntax-only k.c",
    "gcc k.c -shared -o /dev/null",
    "gcc -Wl,-t -o found -lc",
    "echo gcc -c k.c -o k.o",
    "test -f k.c || gcc -c k.c -o k.o",
)


@pytest.mark.parametrize("line", QUESTIONS)
def test_questions_below_another_program_are_none(net: Net, line: str) -> None:
    run(script(net.folder, f"{line} || true"), cwd=net.folder)
    run("sh", "-c", f"{line} || true", cwd=net.folder)
    assert net.seen() == []


def test_what_a_probe_starts_is_none(net: Net) -> None:
    file, function = "/lib/torch/_inductor/cpu_vec_isa.py", "check_build"
    names = {"run": run}
    exec(compile(f"def {function}(*argv, cwd):\n    run(*argv, cwd=cwd)", file, "exec"), names)
    beside = subprocess.Popen(["sleep", "10"])
    try:
        names[function](script(net.folder, COMPILE.format("k")), cwd=net.folder)
        names[function](*net.gcc("other.o"), cwd=net.folder)
    finally:
        beside.kill()
        beside.wait()
    assert net.seen() == []


def test_a_compiler_that_we_heard_of_is_not_seen_again(net: Net) -> None:
    beside = subprocess.Popen(["sleep", "10"])
    try:
        subprocess.run(net.gcc("one.o"), check=True)
        subprocess.run(" ".join(net.gcc("two.o")) + " && true", shell=True, check=True)
        os.system(" ".join(net.gcc("three.o")))
        os.waitpid(os.posix_spawn(shutil.which("gcc") or "", net.gcc("four.o"), os.environ), 0)
    finally:
        beside.kill()
        beside.wait()
    assert [event.kernel for event in net.seen()] == ["one", "two", "three", "four"]


@needs_ninja
def test_a_run_of_ninja_beside_is_one_event(net: Net) -> None:
    (net.folder / "build.ninja").write_text("rule c\n command = gcc -c $in -o $out\nbuild mod.o: c k.c\n")
    beside = subprocess.Popen(["sleep", "10"])
    try:
        run("ninja", cwd=net.folder)
    finally:
        beside.kill()
        beside.wait()
    assert [event.kernel for event in net.seen()] == ["mod"]


# -- whose it is -------------------------------------------------------------------------------------------------------


def test_what_a_monitored_compile_runs_in_a_script_is_its_witness(tmp_path: Path) -> None:
    net, library = with_neighbour(tmp_path, Neighbour)
    try:
        library.build([script(tmp_path, COMPILE.format("k"))], tmp_path)
        (event,) = net.seen()
        assert (event.system, event.witnesses) == ("neighbourjit", ("toolchain",))
    finally:
        net.monitors.disarm()


def test_a_script_beside_anothers_compile_is_nobodys(tmp_path: Path) -> None:
    inside, done = threading.Event(), threading.Event()

    def long(*args: object) -> None:
        inside.set()
        assert done.wait(30)

    net, library = with_neighbour(tmp_path, Neighbour, long)
    thread = threading.Thread(target=library.build)
    try:
        thread.start()
        assert inside.wait(30)
        run(script(tmp_path, COMPILE.format("k")), cwd=tmp_path)
        assert sorted((event.system, event.kernel) for event in net.seen()) == [
            ("neighbourjit", "kernel"),
            ("unattributed", "k"),
        ]
    finally:
        done.set()
        thread.join()
        net.monitors.disarm()


def test_a_forked_childs_compilers_are_its_own(net: Net) -> None:
    """As with `multiprocessing`: the fork has our monitors, so what it starts is not the parent's to report."""
    if (pid := os.fork()) == 0:
        status = 1
        try:
            net.recorder.renew("feed0002", lambda record: None)
            run(script(net.folder, COMPILE.format("k")), cwd=net.folder)
            subprocess.run(net.gcc("l.o"), check=True)
            status = [event.kernel for event in net.seen()] != ["k", "l"]
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert net.seen() == []


def test_who_becomes_a_compiler_is_seen_by_its_parent(net: Net) -> None:
    if (pid := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            os.execvp("gcc", net.gcc("k.o"))
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    (event,) = net.seen()
    assert (event.kernel, event.status) == ("k", "ok")


def test_who_becomes_a_compiler_and_is_nobodys_child_says_so_itself(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", TOP, str(tmp_path / "k.o")], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert told.stdout == "begin k\n"


TOP = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet
monitors = MonitorSet([{NET!r}], Recorder("feed0001", lambda r: print(r["record"], r["kernel"], flush=True)))
monitors.arm()
open("k.c", "w").write("int answer(void) {{ return 42; }}")
os.execvp("gcc", ["gcc", "-c", "k.c", "-o", sys.argv[1]])
"""

SUITE = """
    import subprocess, sys

    def setup_module():
        open("k.c", "w").write("int answer(void) { return 42; }")
        open("build.sh", "w").write("gcc -c k.c -o $1.o; true")

    @pytest.mark.jitguard
    def test_script():
        subprocess.run(["sh", "build.sh", "here"], check=True)

    @pytest.mark.jitguard
    def test_child():
        code = "import subprocess; subprocess.run(['sh', 'build.sh', 'child'], check=True)"
        subprocess.run([sys.executable, "-c", code], check=True)

    @pytest.mark.jitguard
    def test_child_beside_another():
        beside = subprocess.Popen(["sleep", "30"])
        code = "import subprocess; subprocess.run(['sh', 'build.sh', 'beside'], check=True)"
        subprocess.run(["sh", "-c", f'"{sys.executable}" -c "{code}"; true'], check=True)
        beside.kill()
        beside.wait()

    @pytest.mark.jitguard
    def test_warm(jitguard):
        with jitguard.warmup():
            subprocess.run(["sh", "build.sh", "warm"], check=True)

    @pytest.mark.jitguard
    def test_asks():
        subprocess.run(["sh", "-c", "gcc --version > /dev/null; true"], check=True)
"""


def test_under_pytest_each_is_heard_once_and_by_the_nearest(guarded: GuardedRun) -> None:
    guarded.suite(SUITE)
    guarded.run(f"--jitguard-monitors={NET}", "--jitguard-monitors=fakejit_monitor:FakeMonitor", fake=False)
    verdicts = guarded.verdicts()
    assert verdicts.pop("test_asks") == verdicts.pop("test_warm") == "clean"
    kernels = {"test_script": "here", "test_child": "child", "test_child_beside_another": "beside"}
    assert verdicts == dict.fromkeys(kernels, "violated")
    for name, kernel in kernels.items():
        (violation,) = guarded.violations(name)
        assert violation["message"].startswith(f"{kernel} (unattributed) compiled in")


def test_processes_are_read_alike_with_and_without_ctypes(monkeypatch: pytest.MonkeyPatch) -> None:
    stat, mine = Path("/proc/self/stat").read_bytes().split()[:2], os.getpid()
    for libc in (proc._library(), None):
        monkeypatch.setattr(proc, "_library", lambda libc=libc: libc)
        assert proc.read(f"/proc/{mine}/stat").split()[:2] == stat
        assert proc.read("/proc/0/stat") == b""
        assert len(proc.read("/proc/kallsyms")) > 100_000 or not os.access("/proc/kallsyms", os.R_OK)
        assert {mine, os.getppid()} <= set(proc.pids())


# -- the thread --------------------------------------------------------------------------------------------------------


def test_pauses_grow_while_nothing_happens() -> None:
    assert [pause(quiet) for quiet in (0.0, 1.9, 2.1, 9.0, 11.0, 1e6)] == [0.005, 0.005, 0.05, 0.05, 0.25, 0.25]


def is_watching(net: Net) -> bool:
    return bool(net.net._watch.is_on)


def wait_for_end(net: Net) -> None:
    until = monotonic() + 10
    while is_watching(net) and monotonic() < until:
        time.sleep(0.02)
    assert not is_watching(net)


def childless(folder: Path, action: Callable[[Net], None]) -> None:
    """Do something with a net of its own in a process that has no other children, as the one of the tests may have."""

    def act() -> None:
        net = Net(folder)
        net.monitors.arm()
        action(net)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads of this process are not needed
        fork(act)


def test_no_thread_runs_without_a_program_to_watch(tmp_path: Path) -> None:
    def starts_programs(net: Net) -> None:
        assert not is_watching(net)
        for quiet in (["gcc", "--version"], net.gcc("k.o")):
            run(*quiet)
            assert not is_watching(net)
        process = subprocess.Popen(["sleep", "30"])
        assert is_watching(net)
        time.sleep(0.5)
        assert is_watching(net)
        process.kill()
        process.wait()
        wait_for_end(net)

    childless(tmp_path, starts_programs)


def test_a_python_that_reports_itself_is_watched_no_longer_than_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JITGUARD_PARENT", "{}")

    def starts_python(net: Net) -> None:
        run(sys.executable, "-S", "-c", "")
        wait_for_end(net)

    childless(tmp_path, starts_python)


def test_a_long_lived_child_is_looked_at_rarely(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    monkeypatch.setattr(watching, "_PAUSES", ((0.1, 0.01), (float("inf"), 10.0)))
    monkeypatch.setattr(watching, "_LITTLE_NEWS", 0.0)
    seen = net.net._look

    def look() -> Any:
        nonlocal looks
        looks += 1
        return seen()

    monkeypatch.setattr(net.net, "_look", look)
    process = subprocess.Popen(["sleep", "30"])
    try:
        time.sleep(1.5)
        assert 2 <= looks <= 20
    finally:
        process.kill()
        process.wait()
    assert net.seen() == []


def test_uninstalled_it_ends(net: Net) -> None:
    process = subprocess.Popen(["sleep", "30"])
    net.monitors.disarm()
    assert not is_watching(net)
    run("sh", script(net.folder, COMPILE.format("k")), cwd=net.folder)
    process.kill()
    process.wait()
    assert net.recorder.events == []


def test_nobody_who_counts_threads_counts_it(net: Net) -> None:
    before = threading.enumerate()
    process = subprocess.Popen(["sh", script(net.folder, COMPILE.format("k"), "sleep 30")], cwd=net.folder)
    until = monotonic() + 10
    while not net.records and monotonic() < until:
        time.sleep(0.01)
    assert is_watching(net)
    assert threading.enumerate() == before
    process.kill()
    process.wait()


def test_none_runs_while_the_process_forks(net: Net) -> None:
    beside = subprocess.Popen(["sleep", "30"])
    try:
        for _ in range(20):
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # from Python 3.12 on, a fork beside threads warns
                if (pid := os.fork()) == 0:
                    os._exit(is_watching(net))  # as it was when the process forked
            assert os.waitpid(pid, 0)[1] == 0
        assert is_watching(net)
    finally:
        beside.kill()
        beside.wait()


def test_the_process_ends_though_it_watches(tmp_path: Path) -> None:
    code = (
        TOP.partition("open(")[0]
        + "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
    )
    told = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=30)
    os.kill(int(told.stdout), signal.SIGKILL)


def test_what_fails_in_it_is_called_blind(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("no more files")

    monkeypatch.setattr(net.net, "_look", fail)
    run("sleep", "0.05")
    wait_for_end(net)
    assert net.net.state == "blind"
    assert "no more files" in net.net.detail


def test_a_watch_goes_on_where_a_fork_interrupted_it() -> None:
    looks: list[int] = []

    def look() -> tuple[bool, bool]:
        looks.append(1)
        return True, False

    watch = Watch(look, lambda: None)
    try:
        watch.expect(0.0)
        watch.hold()
        assert not watch.is_on
        before = len(looks)
        watch.release()
        until = monotonic() + 10
        while len(looks) == before and monotonic() < until:
            time.sleep(0.01)
        assert len(looks) > before
    finally:
        watch.close()
    assert not watch.is_on


# -- what a reviewer found ---------------------------------------------------------------------------------------------


def test_signals_that_the_program_waits_for_are_left_to_it(tmp_path: Path) -> None:
    code = """
    import os, signal, subprocess, sys
    from pytest_jitguard.core.recorder import Recorder
    from pytest_jitguard.monitors import MonitorSet
    MonitorSet(["pytest_jitguard.monitors.toolchain:ToolchainMonitor"], Recorder("feed0001", lambda record: None)).arm()
    beside = subprocess.Popen(["sleep", "5"])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    assert not before, before
    os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.sigwait({signal.SIGUSR1}) == signal.SIGUSR1
    beside.kill()
    beside.wait()
    """
    env = {name: value for name, value in os.environ.items() if name != "JITGUARD_PARENT"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)


def test_what_a_program_compiles_at_once_when_it_is_asked_did_not_begin_before(net: Net) -> None:
    server = subprocess.Popen(
        ["sh", "-c", "while read word; do gcc -c k.c -o k.o; echo done; done"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=net.folder,
    )
    assert server.stdin
    assert server.stdout
    asked = []
    try:
        for _ in range(8):
            time.sleep(0.033)
            asked.append(monotonic())
            server.stdin.write("go\n")
            server.stdin.flush()
            server.stdout.readline()
            net.seen()
    finally:
        server.stdin.close()
        server.wait()
        server.stdout.close()
    events = net.seen()
    assert len(events) == len(asked)
    assert all(event.started >= moment for event, moment in zip(events, asked, strict=True))


TITLED = """
import ctypes, os, subprocess
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
begin, end = int(fields[45]), int(fields[48])
for name, value in list(os.environ.items()):
    os.environ[name] = value  # copied first, as setproctitle does
ctypes.memset(begin, 0, end - begin)
ctypes.memmove(begin, b"ray::Replica", 12)
subprocess.run(["gcc", "-c", "k.c", "-o", "k.o"], check=True)
"""


@pytest.mark.parametrize(
    ("how", "who"),
    [
        ("{python} titled.py", "child"),
        ("sh -c '{python} titled.py; true'", "child"),
        ("{python} -S plain.py", "guard"),
        ("sh -c '{python} -S plain.py; true'", "guard"),
    ],
)
def test_a_python_program_is_left_alone_if_it_reports(guarded: GuardedRun, how: str, who: str) -> None:
    files = {
        "titled.py": TITLED,
        "plain.py": "import os; os.system('gcc -c k.c -o k.o')",
        "k.c": "int answer(void) { return 42; }\n",
    }
    for name, text in files.items():
        (guarded.path / name).write_text(text)
    command = how.format(python=sys.executable)
    guarded.suite(
        f"""
        import shlex, subprocess

        @pytest.mark.jitguard
        def test_it():
            subprocess.run(shlex.split({command!r}), check=True)
        """
    )
    guarded.run(f"--jitguard-monitors={NET}", fake=False)
    assert [event["role"] == "pytest" for event in guarded.report["events"]] == [who == "guard"]


def test_what_a_forked_child_forks_is_watched(net: Net) -> None:
    make(net.folder)
    (net.folder / "Makefile").write_text("k.o: k.c\n\tgcc -c k.c -o $@\n")
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            net.recorder.renew("feed0002", lambda record: None)
            os.spawnvp(os.P_WAIT, "make", ["make", "-C", str(net.folder)])
            os.write(tell, " ".join(event.kernel for event in net.seen()).encode())
            code = 0
        os._exit(code)
    os.close(tell)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(told, 100) == b"k"
    os.close(told)


def test_a_compiler_is_seen_where_a_test_replaced_what_we_ask(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "which", lambda *args, **kwargs: None)
        subprocess.run(net.gcc("k.o"), check=True)
    assert [event.kernel for event in net.seen()] == ["k"]


def test_a_folder_that_is_not_there_compiles_nothing(net: Net) -> None:
    with pytest.raises(FileNotFoundError):
        subprocess.run(net.gcc("k.o"), cwd=net.folder / "nowhere")
    assert net.seen() == []


@pytest.mark.parametrize(
    "text",
    [
        "grep -q nothing k.c && gcc -c k.c -o k.o",
        "test -f k.c && exit 0; gcc -c k.c -o k.o",
        "if [ ! -f k.c ]; then echo building; gcc -c k.c -o k.o; fi",
        "cat > build.sh <<EOF\ngcc -c k.c -o k.o\nEOF\n",
        "case x in y) gcc -c k.c -o k.o;; esac",
        "build() {\n gcc -c k.c -o k.o\n}\n",
        "for i in; do cd .; gcc -c k.c -o k.o; done",
    ],
)
def test_what_a_script_does_not_come_to_is_none(net: Net, text: str) -> None:
    subprocess.run(text, shell=True, cwd=net.folder)
    assert net.seen() == []


@pytest.mark.parametrize("kind", ["graph_capture", "device_load", "lock_wait"])
def test_what_fails_nobody_takes_no_compiler_for_its_own(net: Net, kind: str) -> None:
    capture = net.recorder.begin("inductor", "graph", "", kind=kind)
    with net.recorder.inside(capture):
        subprocess.run(net.gcc("k.o"), check=True)
    net.recorder.end(capture)
    assert [(event.kernel, event.parent) for event in net.seen()] == [("graph", None), ("k", capture.id)]


def test_what_a_script_compiles_later_is_an_event_of_its_own(net: Net) -> None:
    text = "gcc -c k.c -o one.o; while [ ! -e go ]; do sleep 0.02; done; gcc -c k.c -o two.o; echo done"
    server = subprocess.Popen(text, shell=True, cwd=net.folder)
    time.sleep(0.3)
    assert [(event.kernel, event.status) for event in net.seen()] == [("one", "ok")]
    asked = monotonic()
    (net.folder / "go").touch()
    server.wait()
    last = net.seen()[-1]
    assert (last.kernel, last.started >= asked) == ("two", True)
