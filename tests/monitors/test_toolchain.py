"""The toolchain's net: compilers as child processes, told from questions, claimed by the monitor that caused them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ctypes
import ctypes.util
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toolchain_nets import (
    NET,
    SOURCE,
    Afterwards,
    Neighbour,
    Net,
    needs_gcc,
    needs_ninja,
    with_neighbour,
)

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.monitors import _toolchain_audit as audit
from pytest_jitguard.monitors._toolchain_argv import Build, Command, command_of, script_command
from pytest_jitguard.monitors._toolchain_response import expanded
from tests.conftest import ROOT, GuardedRun

# -- what a command line compiles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "program", "stem"),
    [
        ("g++ -shared -fPIC k.cpp -o build/k.so", "g++", "k"),
        ("/usr/bin/x86_64-linux-gnu-gcc-12 -c main.c -o main.o", "x86_64-linux-gnu-gcc-12", "main"),
        ("clang++-17 a.cpp -omodule.so", "clang++-17", "module"),
        ("gcc -c kernel.c", "gcc", "kernel"),
        ("g++ -MMD -MF k.o.d -c k.cpp -o k.o", "g++", "k"),
        ("g++ -x c++-header all.h -o all.h.gch", "g++", "all"),
        ("gcc a.o b.o -shared -o libab.so", "gcc", "libab"),
        ("gcc @response.txt -o big.so", "gcc", "big"),
        ("nvcc kernel.cu -o kernel_tmp.cubin -cubin -std=c++17", "nvcc", "kernel_tmp"),
        ("nvcc --cubin kernel.cu", "nvcc", "kernel"),
        ("nvcc --output-file=out/k.cubin --cubin k.cu", "nvcc", "k"),
        ("nvcc -t 4 -c a.cu -o a.o", "nvcc", "a"),
        ("nvcc -Xptxas -v -c a.cu -o a.o", "nvcc", "a"),
        ("ptxas-blackwell -lineinfo -v --gpu-name=sm_90a k.ptx -o k.ptx.o", "ptxas-blackwell", "k"),
        ("cicc --orig_src_file_name k.cu -o k.ptx k.cpp1.ii", "cicc", "k"),
        ("fatbinary --create=k.fatbin --image3=kind=elf,file=k.cubin", "fatbinary", "k"),
        ("hipcc -x hip -c k.cpp -o k.o", "hipcc", "k"),
        ("tileiras k.bytecode -o k.cubin --gpu-name sm_100", "tileiras", "k"),
        (
            "nvrtc_compile --nvrtc-path l.so --input k.cu --output k.cubin -- --std=c++17 --version",
            "nvrtc_compile",
            "k",
        ),
        ("ccache nvcc -c k.cu -o k.o", "nvcc", "k"),
        ("env CUDA_HOME=/cuda nice -n 5 g++ -c k.cpp -o k.o", "g++", "k"),
        ("sh -c 'cd build && nvcc -cubin k.cu -o k.cubin'", "nvcc", "k"),
        ("cc1plus -quiet k.cpp -o k.s", "cc1plus", "k"),
        ("gcc -shared -o x.so -", "gcc", "x"),
        ("g++ -S k.cpp", "g++", "k"),
        ("g++ -shared -fPIC k.cpp", "g++", "a"),
        ("nvcc main.o k.cu", "nvcc", "a"),
        ("g++ -shared -x c++ source -o k.so", "g++", "k"),
        ("x86_64-linux-gnu-g++-12 -c k.cpp -o k.o", "x86_64-linux-gnu-g++-12", "k"),
        ("gfortran -c k.f90 -o k.o", "gfortran", "k"),
        ("timeout -s KILL 1.5m gcc -c k.c -o k.o", "gcc", "k"),
        ("nice gcc -c k.c -o k.o", "gcc", "k"),
        ("taskset 0x3 gcc -c k.c -o k.o", "gcc", "k"),
        ("env -u LANG CC=cc gcc -c k.c -o k.o", "gcc", "k"),
        ("stdbuf -o L gcc -c k.c -o k.o", "gcc", "k"),
        ("bash -lc 'gcc -c k.c -o k.o'", "gcc", "k"),
        ("bash -euo pipefail -c 'gcc -c k.c -o k.o'", "gcc", "k"),
        ("sh -c 'exec gcc -c k.c -o k.o'", "gcc", "k"),
        ("sh -c 'cd build || exit 1; gcc -c k.c -o k.o'", "gcc", "k"),
        ("sh /usr/local/bin/nvcc -c k.cu -o k.o", "/usr/local/bin/nvcc", "k"),
        ("perl -w /opt/rocm/bin/hipcc -c k.cpp -o k.o", "/opt/rocm/bin/hipcc", "k"),
    ],
)
def test_what_writes_a_file_is_a_compile(line: str, program: str, stem: str) -> None:
    import shlex

    found = command_of(shlex.split(line))
    assert isinstance(found, Command)
    assert (found.program, found.stem) == (program.rpartition("/")[2], stem)


@pytest.mark.parametrize(
    "line",
    [
        "g++ --version",
        "nvcc --version",
        "nvcc -V",
        "g++ -E k.cpp -o k.i",
        "g++ -E -P header.h",
        "g++ -M k.cpp -o k.d",
        "clang++ -fsyntax-only k.cpp",
        "gcc -print-file-name=libm.so",
        "gcc --print-search-dirs",
        "gcc -dumpmachine",
        "clang -### k.c -o k.o",
        "gcc -Wl,-t -o /tmp/tmpabc123 -lcuda",
        "gcc -Wl,-t -o /dev/null -lcuda",
        "ld -t -o /dev/null -lm",
        "hipcc -Werror -mllvm -x hip -c /dev/null -o /dev/null",
        "g++ k.cpp -o /dev/null",
        "nvcc --dryrun k.cu -o k.o",
        "ldconfig -p",
        "ninja --version",
        "ninja -t commands",
        "git clone -o origin https://example.org/x.git",
        "python -m pip install x.whl -o y.so",
        "sh -c 'g++ --version; echo done'",
        "cuobjdump -o k.so k.cubin",
        "c++filt -o x.so _Z1fv",
        "gcc",
        "gcc -v",
        "clang -v -lm",
        "gcc libm.so -Wl,-t",
        "sh -c 'test -f k.o || gcc -c k.c -o k.o'",
        "sh -c 'test k.o -nt k.c && (gcc -c k.c -o k.o)'",
        "sh -c 'if test -f k.c; then gcc -c k.c -o k.o; fi'",
        "sh build.sh gcc -o k.o",
        "bash -o pipefail build.sh -c k.c -o k.o",
        "env make CC=gcc -o k.c",
        "gcc @nowhere.rsp",
        "",
    ],
)
def test_what_asks_or_checks_is_none(line: str) -> None:
    import shlex

    assert command_of(shlex.split(line)) is None


@pytest.mark.parametrize("argv", [None, 7, [None], b"g++", ["\0"], Path("g++"), [b"g++", 3]])
def test_what_is_no_command_line_is_none(argv: object) -> None:
    assert command_of(argv) is None


def test_bytes_and_paths_are_command_lines_too() -> None:
    found = command_of([b"gcc", "-c", Path("k.c"), b"-o", Path("k.o")])
    assert isinstance(found, Command)
    assert found.output == "k.o"


def test_a_shells_text_is_looked_through() -> None:
    found = script_command(b"mkdir -p out; CC=1 g++ -c k.cpp -o out/k.o > log 2>&1 && echo 'a;b'")
    assert isinstance(found, Command)
    assert found.output == "out/k.o"
    assert script_command("echo 'g++ -c k.cpp -o k.o'") is None
    assert script_command("echo 'unclosed") is None


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("g++ @all.rsp", "-shared k.cpp\n-o 'build/k.so'"),
        ("g++ k.cpp @all.rsp", '-o "build/k.so" -fPIC'),
        ("clang -c @all.rsp", "k.cpp -o build/k.\\o"),
        ("nvcc --options-file all.rsp k.cu", "-cubin -o build/k.cubin"),
        ("nvcc -optf all.rsp k.cu", "-cubin -o build/k.cubin"),
        ("nvcc --options-file=nowhere,all.rsp k.cu", "-cubin -o build/k.cubin"),
        ("g++ @outer.rsp", "k.cpp -o build/k.o"),
    ],
)
def test_arguments_in_a_file_are_read(tmp_path: Path, line: str, text: str) -> None:
    (tmp_path / "all.rsp").write_text(text)
    (tmp_path / "outer.rsp").write_text("-c @all.rsp @outer.rsp")
    found = command_of(line.split(), folder=str(tmp_path))
    assert isinstance(found, Command)
    assert found.stem == "k"
    assert found.words == tuple(line.split())


def test_questions_in_a_file_are_none(tmp_path: Path) -> None:
    (tmp_path / "all.rsp").write_text("-E k.c -o k.i")
    assert command_of(["gcc", "@all.rsp"], folder=str(tmp_path)) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a  b\n\tc", ["a", "b", "c"]),
        ("'a b' \"c d\"", ["a b", "c d"]),
        (r"a\ b \"c\"", ["a b", '"c"']),
        (r'"say \"hi\"" x"y"z', ['say "hi"', "xyz"]),
        ("'unclosed word", ["unclosed word"]),
        ("", []),
    ],
)
def test_files_are_read_by_gnus_rules(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "f").write_text(text)
    assert expanded(["@f"], str(tmp_path)) == words


def test_a_file_that_waits_for_a_writer_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    assert expanded(["@f", "@", "@nowhere"], str(tmp_path)) == ["@f", "@", "@nowhere"]


def test_ninja_is_a_build_that_has_yet_to_show() -> None:
    found = command_of(["ninja", "-v", "-C", "build", "-j", "2"])
    assert isinstance(found, Build)
    assert found.folder == "build"


# -- the net -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    net = Net(tmp_path)
    net.monitors.arm()
    yield net
    net.monitors.disarm()


@needs_gcc
@pytest.mark.tells("toolchain", "compile", "name", "seconds", "reason")
def test_a_compiler_that_nobody_claims_is_one_event(net: Net) -> None:
    before = monotonic()
    subprocess.run(net.gcc("k.o"), check=True)
    after = monotonic()
    (event,) = net.seen()
    assert (event.system, event.kernel, event.kind, event.status) == ("unattributed", "k", "compile", "ok")
    assert before <= event.started < (event.ended or 0.0) <= after
    assert "gcc -c" in event.detail
    assert event.reason == f"gcc ran for {net.folder / 'k.o'}, and no monitor accounts for it"
    assert event.stack[0].endswith(":test_a_compiler_that_nobody_claims_is_one_event")
    assert [record["record"] for record in net.records] == ["begin", "end"]


@needs_gcc
def test_its_beginning_is_written_before_it_runs(net: Net) -> None:
    written: list[bool] = []
    net.recorder.on_begin = lambda event: written.append((net.folder / "k.o").exists())
    subprocess.run(net.gcc("k.o"), check=True)
    assert written == [False]


@needs_gcc
@pytest.mark.tells("toolchain", "failed")
def test_a_compile_that_fails_is_an_event(net: Net) -> None:
    (net.folder / "k.c").write_text("no C")
    assert subprocess.run(net.gcc("k.o"), capture_output=True).returncode
    (event,) = net.seen()
    assert (event.kernel, event.status) == ("k", "failed")


@needs_gcc
@pytest.mark.tells("toolchain", "hit")
def test_questions_and_searches_are_none(net: Net) -> None:
    ctypes.util.find_library("m")
    subprocess.run(["gcc", "--version"], check=True, capture_output=True)
    subprocess.run(["gcc", "-E", str(net.folder / "k.c"), "-o", str(net.folder / "k.i")], check=True)
    subprocess.run([sys.executable, "-c", ""], check=True)
    with pytest.raises(FileNotFoundError):
        subprocess.run(["x86_64-nowhere-gcc", "-c", "k.c", "-o", "k.o"])
    assert net.seen() == []


@needs_gcc
@pytest.mark.parametrize(
    ("file", "function"),
    [
        ("torch/_inductor/cpu_vec_isa.py", "check_build"),
        ("cuda/tile/_compile.py", "_get_max_supported_bytecode_version"),
        ("pytest_jitguard/monitors/__init__.py", "prove"),
        ("pytest_jitguard/witness/build.py", "_compile"),
    ],
)
def test_a_probe_for_instructions_and_our_own_compiles_are_none(net: Net, file: str, function: str) -> None:
    names: dict[str, Any] = {"run": subprocess.run}
    exec(compile(f"def {function}(argv):\n    run(argv, check=True)", f"/lib/{file}", "exec"), names)
    names[function](net.gcc("k.o"))
    assert net.seen() == []


def test_the_functions_that_probe_are_where_we_think() -> None:
    from pytest_jitguard.witness import build

    assert callable(build._compile)
    isa = pytest.importorskip("torch._inductor.cpu_vec_isa")
    assert callable(isa.VecISA.check_build)


@needs_gcc
def test_a_process_that_is_shut_down_is_none(net: Net) -> None:
    server = subprocess.Popen([sys.executable, "-c", "import time; x = sum(range(3_000_000)); time.sleep(60)"])
    server.terminate()
    server.wait()
    assert net.seen() == []


async def _in_a_loop(argv: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(*argv)
    assert await process.wait() == 0


@needs_gcc
@pytest.mark.parametrize(
    "start",
    [
        lambda argv: subprocess.run(argv, check=True, close_fds=False),  # by posix_spawn, where Python has it
        lambda argv: os.waitpid(os.posix_spawn(shutil.which("gcc") or "", argv, os.environ), 0),
        lambda argv: os.system(" ".join(argv)),
        lambda argv: subprocess.run(" ".join(argv) + " && true", shell=True, check=True),
        lambda argv: subprocess.check_output(argv),
        lambda argv: asyncio.run(_in_a_loop(argv)),
    ],
    ids=["run", "posix_spawn", "system", "shell", "check_output", "asyncio"],
)
def test_however_python_starts_it(net: Net, start: Callable[[list[str]], object]) -> None:
    start(net.gcc("k.o"))
    after = monotonic()
    (event,) = net.seen()
    assert (event.kernel, event.status) == ("k", "ok")
    assert event.ended is not None
    assert event.ended <= after + 0.25


@needs_gcc
def test_an_owner_who_asks_late_does_not_make_it_longer(net: Net) -> None:
    process = subprocess.Popen(net.gcc("k.o"))
    time.sleep(1.5)
    process.wait()
    (event,) = net.seen()
    assert 0 < (event.seconds or 0) < 1.4


@needs_gcc
def test_what_still_runs_is_running_and_ends_later(net: Net) -> None:
    compiler = shutil.which("gcc")
    slow = net.folder / "gcc"
    slow.write_text(f'#!/bin/sh\nread go < "{net.folder}/go"\nexec {compiler} "$@"\n')
    slow.chmod(0o755)
    os.mkfifo(net.folder / "go")
    process = subprocess.Popen([str(slow), *net.gcc("k.o")[1:]])
    assert [event.status for event in net.seen()] == ["running"]
    (net.folder / "go").write_text("go\n")
    assert process.wait() == 0
    assert [event.status for event in net.seen()] == ["ok"]
    assert "_handle_exitstatus" not in vars(process)


@needs_gcc
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_what_a_library_starts_past_python_is_found_while_it_runs(net: Net) -> None:
    slow = net.folder / "gcc"
    slow.write_text(f"#!/bin/sh\nread go < {net.folder}/go\n: > {net.folder}/k.o\n")
    slow.chmod(0o755)
    os.mkfifo(net.folder / "go")
    libc = ctypes.CDLL(None)
    libc.popen.restype = ctypes.c_void_p
    libc.pclose.argtypes = [ctypes.c_void_p]
    stream = libc.popen(" ".join([str(slow), *net.gcc("k.o")[1:]]).encode(), b"r")
    assert stream
    until = monotonic() + 10
    while not net.seen() and monotonic() < until:
        time.sleep(0.02)
    (event,) = net.seen()
    assert (event.system, event.kernel, event.status) == ("unattributed", "k", "running")
    (net.folder / "go").write_text("go\n")
    libc.pclose(stream)
    (event,) = net.seen()
    assert event.status == "ok"


@needs_gcc
@pytest.mark.tells("toolchain", "uninstall")
def test_uninstalled_it_hears_nothing(net: Net) -> None:
    net.monitors.disarm()
    subprocess.run(net.gcc("k.o"), check=True)
    net.net.flush()
    assert net.recorder.events == []
    assert audit._listeners == []


@pytest.mark.tells("toolchain", "no_frames")
def test_no_frame_of_ours_runs_for_other_audit_events(net: Net) -> None:
    """Python does not trace inside audit hooks unless they ask for it; here a copy of ours is called as Python does."""
    hooks = audit.hooks()
    frames: list[str] = []

    def count(frame: Any, what: str, _: object) -> None:
        if what == "call":
            frames.append(frame.f_code.co_name)

    def happen(event: str, args: tuple[Any, ...]) -> None:
        sys.setprofile(count)
        try:
            for hook in hooks:
                hook(event, args)
        finally:
            sys.setprofile(None)

    happen("builtins.id", (1,))
    happen("open", ("file", "r", 0))
    happen("subprocess.Popen.like", ("gcc",))
    assert frames == []
    assert vars(audit._gate) == {}
    happen(audit.PROOF, ())
    assert frames[0] == "tell"


def test_a_stranger_that_refuses_audit_hooks_makes_it_blind(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"""
import sys
def refuse(event, args):
    if event == "sys.addaudithook":
        raise RuntimeError
sys.addaudithook(refuse)
sys.path.insert(0, {str(ROOT)!r})
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet
monitors = MonitorSet([{NET!r}], Recorder("feed0001", lambda record: None))
monitors.arm()
print(monitors.named("toolchain").state)
""")
    told = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    assert told.stdout == "blind\n"


@needs_gcc
def test_a_compile_whose_output_stands_in_a_file_is_one_event(net: Net) -> None:
    (net.folder / "all.rsp").write_text(f"-c {net.folder / 'k.c'} -o {net.folder / 'answer.o'}")
    subprocess.run(["gcc", "@all.rsp"], cwd=net.folder, check=True)
    assert [(event.kernel, event.status) for event in net.seen()] == [("answer", "ok")]


@needs_gcc
def test_a_deleted_working_folder_makes_it_neither_blind_nor_deaf(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = net.folder / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    subprocess.run(net.gcc("k.o"), check=True)
    subprocess.run("gcc --version > /dev/null; true", shell=True, check=True)
    subprocess.run(["gcc", "-c", "nothing.c", "-o", "l.o"], capture_output=True)
    os.system(" ".join(net.gcc("m.o")))
    os.waitpid(os.posix_spawn("/bin/sh", ["sh", "-c", " ".join(net.gcc("n.o"))], os.environ), 0)
    seen = {event.kernel: event.status for event in net.seen()}
    assert seen == {"k": "ok", "l": "failed", "m": "ok", "n": "ok"}


@needs_gcc
def test_a_forked_child_leaves_its_parents_compilers_alone(net: Net) -> None:
    process = subprocess.Popen(net.gcc("k.o"))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            net.recorder.renew("feed0002", lambda record: None)
            subprocess.run(net.gcc("child.o"), check=True)
            status = [event.kernel for event in net.seen()] != ["child"]
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    process.wait()
    assert [event.kernel for event in net.seen()] == ["k"]


# -- ninja -------------------------------------------------------------------------------------------------------------


@needs_ninja
@pytest.mark.parametrize("how", ["in its folder", "with -C"])
def test_ninja_counts_when_it_builds(net: Net, how: str) -> None:
    (net.folder / "build.ninja").write_text("rule c\n command = gcc -c $in -o $out\nbuild mod.o: c k.c\n")

    def ninja() -> list[str]:
        inside = how == "in its folder"
        command = ["ninja"] if inside else ["ninja", "-C", str(net.folder)]
        subprocess.run(command, check=True, cwd=net.folder if inside else None, capture_output=True)
        return [f"{event.kernel} {event.status}" for event in net.seen()]

    assert ninja() == ["mod ok"]
    assert ninja() == ["mod ok"]  # nothing to do
    (net.folder / "k.c").write_text(SOURCE.replace("42", "43"))
    os.utime(net.folder / "k.c", (time.time() + 5, time.time() + 5))
    assert ninja() == ["mod ok", "mod ok"]


@needs_ninja
def test_ninja_that_fails_has_failed(net: Net) -> None:
    (net.folder / "k.c").write_text("no C")
    (net.folder / "build.ninja").write_text("rule c\n command = gcc -c $in -o $out\nbuild mod.o: c k.c\n")
    assert subprocess.run(["ninja"], cwd=net.folder, capture_output=True).returncode
    assert [event.status for event in net.seen()] == ["failed"]


# -- neighbours --------------------------------------------------------------------------------------------------------


@needs_gcc
@pytest.mark.tells("toolchain", "parts")
def test_what_a_monitor_reports_is_one_event_with_two_witnesses(tmp_path: Path) -> None:
    net, library = with_neighbour(tmp_path, Neighbour)
    try:
        library.build(net.gcc("k.o"))
        (event,) = net.seen()
        assert (event.system, event.witnesses) == ("neighbourjit", ("toolchain",))
        assert net.records[-1]["witnesses"] == ["toolchain"]
    finally:
        net.monitors.disarm()


@needs_gcc
def test_a_pool_of_a_library_under_way_works_for_it(tmp_path: Path) -> None:
    net, library = with_neighbour(tmp_path, Neighbour, "in_pool")
    try:
        library.build(net.gcc("k.o"))
        (event,) = net.seen()
        assert (event.system, event.witnesses) == ("neighbourjit", ("toolchain",))
    finally:
        net.monitors.disarm()
        library.pool.shutdown()


@needs_gcc
def test_another_threads_compile_beside_a_monitored_one_is_nobodys(tmp_path: Path) -> None:
    inside, done = threading.Event(), threading.Event()

    def long(*args: Any) -> None:
        inside.set()
        assert done.wait(30)

    net, library = with_neighbour(tmp_path, Neighbour, long)
    try:
        with concurrent.futures.ThreadPoolExecutor() as threads:
            threads.submit(library.build)
            assert inside.wait(30)
            subprocess.run(net.gcc("other.o"), check=True)
            done.set()
        assert sorted((event.system, event.kernel) for event in net.seen()) == [
            ("neighbourjit", "kernel"),
            ("unattributed", "other"),
        ]
    finally:
        done.set()
        net.monitors.disarm()


@needs_ninja
def test_a_monitor_that_reports_a_build_afterwards_is_heard_first(tmp_path: Path) -> None:
    net, library = with_neighbour(tmp_path, Afterwards)
    try:
        (tmp_path / "build.ninja").write_text("rule c\n command = gcc -c $in -o $out\nbuild mod.o: c k.c\n")
        (tmp_path / ".ninja_log").write_text("# ninja log v5\n")
        library.build(["ninja"], tmp_path)
        (event,) = net.seen()
        assert (event.system, event.witnesses) == ("neighbourjit", ("toolchain",))
    finally:
        net.monitors.disarm()


def test_tritons_assembler_is_its_compiles_witness(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    program = tmp_path / "program.py"
    program.write_text(f"""
import os, sys, time
os.environ["TRITON_CACHE_DIR"] = {str(tmp_path / "cache")!r}
sys.path.insert(0, {str(ROOT)!r})
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import MonitorSet
recorder = Recorder("feed0001", lambda record: None)
monitors = MonitorSet([{NET!r}, "triton"], recorder)
monitors.arm()
import triton, triton.language as tl
from triton.compiler import ASTSource
from triton.backends.compiler import GPUTarget
@triton.jit
def kernel(out, n: tl.constexpr):
    tl.store(out, n)
monitors.prove()
source = ASTSource(kernel, {{"out": "*fp32", "n": "constexpr"}}, {{(1,): 7}}, {{}})
triton.compile(source, target=GPUTarget("cuda", 90, 32))
monitors.settle()
monitors.account()
print([(e.system, e.kernel, e.witnesses) for e in recorder.events], monitors.named("toolchain").state)
""")
    told = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    assert told.stdout == "[('triton', 'kernel', ('toolchain',))] armed\n"


# -- under pytest ------------------------------------------------------------------------------------------------------

SUITE = """
    import os, subprocess, sys

    GCC = ["gcc", "-c", "k.c", "-o"]

    def setup_module():
        open("k.c", "w").write("int answer(void) { return 42; }")

    @pytest.mark.jitguard
    def test_compiles():
        subprocess.run([*GCC, "here.o"], check=True)

    @pytest.mark.jitguard
    def test_child_compiles():
        code = "import subprocess; subprocess.run(['gcc', '-c', 'k.c', '-o', 'child.o'], check=True)"
        subprocess.run([sys.executable, "-c", code], check=True)

    @pytest.mark.jitguard
    def test_becomes_a_compiler():
        pid = os.fork()
        if pid == 0:
            os.execvp("gcc", [*GCC, "become.o"])
        assert os.waitpid(pid, 0)[1] == 0

    @pytest.mark.jitguard
    def test_asks():
        subprocess.run(["gcc", "--version"], check=True, stdout=subprocess.DEVNULL)
"""


@needs_gcc
@pytest.mark.tells("toolchain", "children")
def test_it_fails_the_test_that_compiled_and_each_child_is_heard_once(guarded: GuardedRun) -> None:
    guarded.suite(SUITE)
    guarded.run(f"--jitguard-monitors={NET}", "--jitguard-monitors=fakejit_monitor:FakeMonitor", fake=False)
    verdicts = guarded.verdicts()
    assert verdicts.pop("test_asks") == "clean"
    assert set(verdicts.values()) == {"violated"}
    kernels = {"test_compiles": "here", "test_child_compiles": "child", "test_becomes_a_compiler": "become"}
    for name, kernel in kernels.items():
        (violation,) = guarded.violations(name)
        assert kernel in violation["message"]
        assert "no monitor accounts for it" in violation["message"]
