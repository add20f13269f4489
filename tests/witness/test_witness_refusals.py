"""Where there can be no witness, it says why, in words and in the first line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_jitguard.witness import _library
from tests.conftest import GuardedRun
from tests.witness.conftest import Child

ASK = "print(cupti.refusal())"


def test_without_a_driver(child: Child) -> None:
    if _library.has_driver():
        pytest.skip("there is a driver")
    done = child(ASK)
    assert done.stdout == "the CUPTI witness cannot testify: there is no NVIDIA driver (libcuda.so.1)\n", done.stderr


def test_without_a_driver_a_child_is_off_and_not_blind(child: Child) -> None:
    if _library.has_driver():
        pytest.skip("there is a driver")
    script = """
    _, monitors, witness = arm()
    print(witness.state)
    witness._imported(sys)
    print(witness.state, witness.detail)
    """
    done = child(script)
    assert done.stdout.splitlines() == ["waiting", "off there is no NVIDIA driver: nothing can be loaded"], done.stderr


def test_without_libcupti(child: Child, fake_cuda: Path) -> None:
    script = "from pytest_jitguard.witness import _library; _library._candidates = lambda: iter(())\n" + ASK
    done = child(script, cuda=fake_cuda)
    assert "libcupti is not installed (it comes with torch for CUDA" in done.stdout, done.stderr


def test_without_a_compiler(child: Child, fake_cuda: Path, tmp_path: Path) -> None:
    done = child(ASK, cuda=fake_cuda, PATH=str(tmp_path), CC="")
    assert done.stdout.startswith("the CUPTI witness cannot testify: the CUPTI witness needs a C compiler"), done.stderr


def test_nothing_to_refuse(child: Child, fake_cuda: Path) -> None:
    done = child(ASK + "\n" + ASK, cuda=fake_cuda)  # asking subscribes and leaves
    assert done.stdout == "\n\n", done.stderr


@pytest.mark.parametrize(
    ("variables", "who"),
    [
        ({}, "torch.profiler, Nsight, cuda-gdb, compute-sanitizer or another guard"),
        ({"NSYS_PROFILING_SESSION_ID": "7"}, "Nsight Systems"),
    ],
)
def test_a_profiler_holds_cupti(child: Child, fake_cuda: Path, variables: dict[str, str], who: str) -> None:
    done = child(ASK, cuda=fake_cuda, FAKE_CUPTI_FAILS="39", **variables)
    assert done.stdout == (
        "the CUPTI witness cannot testify: a profiler holds CUPTI, which serves one at a time "
        f"({who}); cuptiSubscribe: CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED\n"
    ), done.stderr


def test_in_a_child_a_refusal_makes_blind(child: Child, fake_cuda: Path) -> None:
    script = """
    libraries()
    _, monitors, witness = arm()
    print(witness.state, witness.detail)
    """
    done = child(script, cuda=fake_cuda, FAKE_CUPTI_FAILS="35")
    assert done.stdout.startswith("blind the CUPTI witness cannot testify: "), done.stderr
    assert done.stdout.endswith("refuses: cuptiSubscribe: CUPTI_ERROR_OF_SOME_KIND (CUPTI's error 35)\n")


def test_a_second_witness_in_one_process_is_refused(child: Child, fake_cuda: Path) -> None:
    done = child("libraries()\n_, _, first = arm()\n" + ASK + "\nprint(first.state)", cuda=fake_cuda)
    refused, state = done.stdout.splitlines()
    assert "holds CUPTI" in refused, done.stderr
    assert "this process has a witness already" in refused
    assert state == "armed"


def test_a_library_that_is_no_libcupti(child: Child, fake_cuda: Path) -> None:
    script = """
    from pytest_jitguard.witness import _library
    _library.find_libcupti = lambda: "libm.so.6"
    print(cupti.refusal())
    """
    done = child(script, cuda=fake_cuda)
    assert "libm.so.6 refuses: it has no cuptiSubscribe" in done.stdout, done.stderr


def test_a_real_libcupti_without_a_driver_says_so_itself(child: Child, fake_cuda: Path) -> None:
    real = next((p for p in sorted(Path("/usr/local").glob("cuda*/lib*/libcupti.so.1*"))), None)
    if real is None or _library.has_driver():
        pytest.skip("needs a libcupti, and a machine without a driver")
    script = """
    from pytest_jitguard.witness import build
    from pytest_jitguard.witness._library import Library
    library = Library(build.library())
    answer = library.start(sys.argv[1], 1)
    print(answer, library.problem, library.is_alive(), library.take(), library.stop())
    """
    done = child(script, real)
    assert done.returncode == 0, done.stderr
    answer, problem = done.stdout.split(maxsplit=1)
    assert int(answer) > 0
    assert problem.startswith("cuptiSubscribe: CUPTI_ERROR_")
    assert problem.endswith(" False [] 0\n")


@pytest.mark.parametrize("option", ["--jitguard-witness=cupti", "--jitguard-monitors=auto,cupti"])
def test_a_guard_that_was_asked_for_a_witness_says_why_there_is_none(guarded: GuardedRun, option: str) -> None:
    if _library.has_driver():
        pytest.skip("there is a driver")
    guarded.suite("def test_nothing(): pass")
    result = guarded.run(option, fake=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    name = option.partition("=")[0]
    told = f"ERROR: jitguard: {name}: the CUPTI witness cannot testify: there is no NVIDIA driver (libcuda.so.1)"
    result.stderr.fnmatch_lines([told.replace("[", "[[]")])
