"""The session's warmup and the markers': when they run, for whom they count, and what their failure means."""

from __future__ import annotations

import pytest

from tests.conftest import GuardedRun

WARM = """
import pathlib, time, fakejit

def note(text):
    with pathlib.Path("ran.txt").open("a") as file:
        file.write(text + "\\n")

def warm():
    note("warm")
    fakejit.launch("k")

def slow():
    note("slow")
    time.sleep(1.5)
    fakejit.launch("k")

def empty():
    note("empty")

def failing():
    note("failing")
    fakejit.launch("half")
    raise RuntimeError("no weights found")

def half_failed_compile():
    try:
        fakejit.launch("broken", fail=True)
    except fakejit.CompileError:
        pass
"""


@pytest.fixture
def warmable(guarded: GuardedRun) -> GuardedRun:
    guarded.pytester.makepyfile(warm=WARM)
    return guarded


def _ran(run: GuardedRun) -> list[str]:
    path = run.path / "ran.txt"
    return path.read_text().split() if path.exists() else []


def test_marker_warmups_count_for_their_tests_only_and_run_once(warmable: GuardedRun) -> None:
    warmable.suite(
        """
        import functools
        from warm import note, warm

        def local():
            note("local")
            fakejit.launch("k")
            fakejit.launch("l")

        class Warmer:
            def __call__(self):
                note("instance")
                fakejit.launch("m")

            def method(self):
                note("method")
                fakejit.launch("n")

        WARMER = Warmer()
        guard = pytest.mark.jitguard
        first = lambda: fakejit.launch("lambda", n=1)
        second = lambda: fakejit.launch("lambda", n=2)

        @guard
        def test_a_without():
            fakejit.launch("k")

        @guard(warmup="warm:warm")
        def test_by_path():
            fakejit.launch("k")

        @guard(warmup="warm:warm")
        @pytest.mark.parametrize("n", [1, 2])
        def test_again(n):
            fakejit.launch("k")

        @guard(warmup=local)
        def test_by_callable():
            fakejit.launch("k")
            fakejit.launch("l")

        @guard(warmup=local)
        def test_its_own_needs_too():
            fakejit.launch("l")

        @guard(warmup="warm:warm")
        def test_others_do_not_count():
            fakejit.launch("l")

        @guard(warmup=["warm:warm", WARMER, WARMER.method])
        def test_list():
            fakejit.launch("k")
            fakejit.launch("m")
            fakejit.launch("n")

        @guard(warmup=WARMER.method)
        def test_method():
            fakejit.launch("n")

        @guard(warmup=functools.partial(fakejit.launch, "partial", n=1))
        def test_partial():
            fakejit.launch("partial", n=1)

        @guard(warmup=functools.partial(fakejit.launch, "partial", n=2))
        def test_other_partial():
            fakejit.launch("partial", n=1)

        @guard(warmup=first)
        def test_lambda():
            fakejit.launch("lambda", n=1)

        @guard(warmup=second)
        def test_other_lambda():
            fakejit.launch("lambda", n=1)

        @guard
        def test_z_without():
            fakejit.launch("k")
        """
    )
    warmable.run()
    red = {"a_without", "others_do_not_count", "other_partial", "other_lambda", "z_without"}
    verdicts = warmable.verdicts()
    assert {name for name, verdict in verdicts.items() if verdict != "clean"} == {f"test_{name}" for name in red}
    assert sorted(_ran(warmable)) == ["instance", "local", "method", "warm"]


def test_failing_marker_warmup_makes_errors_of_its_tests_and_the_rest_run(warmable: GuardedRun) -> None:
    warmable.suite(
        """
        from pytest_jitguard.outcomes import UnexpectedCompile

        @pytest.mark.jitguard(warmup="warm:failing")
        def test_one(): raise AssertionError("ran")

        @pytest.mark.jitguard(warmup=["warm:warm", "warm:failing"])
        def test_two(): raise AssertionError("ran")

        @pytest.mark.jitguard(warmup="warm:failing")
        @pytest.mark.xfail(raises=UnexpectedCompile, strict=True)
        def test_expected_to_compile(): raise AssertionError("ran")

        @pytest.mark.jitguard(warmup="warm:nothing_of_that_name")
        def test_no_such_warmup(): raise AssertionError("ran")

        @pytest.mark.skipif(True, reason="no such device")
        @pytest.mark.jitguard(warmup="warm:empty")
        def test_skipped_needs_no_warmup(): raise AssertionError("ran")

        @pytest.mark.skipif(True, reason="no such device")
        @pytest.mark.jitguard(warmup="warm:failing")
        def test_skipped_is_no_error(): raise AssertionError("ran")

        @pytest.mark.jitguard(warmup="warm:warm")
        def test_fine():
            fakejit.launch("k")
        """
    )
    result = warmable.run()
    assert result.ret == 1
    result.assert_outcomes(errors=4, skipped=2, passed=1)
    result.stdout.fnmatch_lines(["*not run: warmup warm:failing failed after *RuntimeError: no weights found*"])
    verdicts = warmable.verdicts()
    errors = {"test_one", "test_two", "test_expected_to_compile", "test_no_such_warmup"}
    assert {name for name, verdict in verdicts.items() if verdict == "error"} == errors
    assert verdicts["test_fine"] == "clean"
    assert _ran(warmable) == ["failing", "warm"]


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["alone", "two workers"])
def test_warmups_run_outside_pytest_timeout(warmable: GuardedRun, workers: list[str]) -> None:
    warmable.suite(
        """
        @pytest.mark.jitguard(warmup="warm:slow")
        def test_marker():
            fakejit.launch("k")

        @pytest.mark.jitguard
        def test_session():
            fakejit.launch("s")

        @pytest.mark.jitguard
        def test_too_slow():
            time.sleep(3)
        """
    )
    warmable.pytester.makepyfile(session_warm="import fakejit, time\ndef warm(): time.sleep(1.5); fakejit.launch('s')")
    warmable.plugins += ["-p", "pytest_timeout", "-p", "xdist"]
    result = warmable.run("--timeout=1", "--jitguard-warmup=session_warm:warm", *workers)
    result.assert_outcomes(passed=2, failed=1)
    assert warmable.verdicts() == {"test_marker": "clean", "test_session": "clean", "test_too_slow": "clean"}
    assert _ran(warmable) == ["slow"]


def test_session_warmup_counts_for_all_and_each_worker_warms_itself(warmable: GuardedRun) -> None:
    warmable.suite(
        """
        @pytest.mark.jitguard
        @pytest.mark.parametrize("n", range(4))
        def test_warm(n):
            time.sleep(0.05)
            fakejit.launch("k")
        """
    )
    warmable.plugins += ["-p", "xdist"]
    assert warmable.run("--jitguard-warmup=warm:warm").ret == 0
    assert _ran(warmable) == ["warm"]
    assert warmable.report["warmup"]["status"] == "ok"
    assert warmable.report["warmup"]["compiled"] == 1
    assert warmable.run("--jitguard-warmup=warm:warm", "-n2").ret == 0
    assert _ran(warmable) == ["warm"] * 3
    assert set(warmable.verdicts().values()) == {"clean"}


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["alone", "two workers"])
def test_failing_session_warmup_fails_the_session_and_unguarded_tests_run(
    warmable: GuardedRun, workers: list[str]
) -> None:
    warmable.suite(
        """
        @pytest.mark.jitguard
        def test_guarded(): raise AssertionError("ran")

        @pytest.mark.jitguard(warmup="warm:warm")
        def test_guarded_with_its_own(): raise AssertionError("ran")

        @pytest.mark.skip(reason="not here")
        @pytest.mark.jitguard
        def test_skipped(): raise AssertionError("ran")

        def test_unguarded(): pass
        """
    )
    warmable.plugins += ["-p", "xdist"]
    result = warmable.run("--jitguard-warmup=warm:failing", *workers)
    assert result.ret == 1
    result.assert_outcomes(errors=2, passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*not run: warmup warm:failing failed after*RuntimeError: no weights found*"])
    assert set(_ran(warmable)) == {"failing"}
    assert warmable.report["findings"][0]["name"] == "warmup-failed"


def test_failing_session_warmup_fails_even_where_every_test_passes(warmable: GuardedRun) -> None:
    warmable.suite("def test_unguarded(): pass")
    result = warmable.run("--jitguard-warmup=warm:failing", "--jitguard-waive=nothing-guarded")
    assert result.ret == 1
    result.assert_outcomes(passed=1)


def test_no_warmup_where_no_test_will_run(warmable: GuardedRun) -> None:
    warmable.suite("def test_something(): pass")
    warmable.pytester.makepyfile(test_broken="import nothing_of_that_name")
    warmable.run("--jitguard-warmup=warm:warm")
    warmable.run("--jitguard-warmup=warm:warm", "test_suite.py", "-k", "nothing_matches")
    assert _ran(warmable) == []
    warmable.run("--jitguard-warmup=warm:warm", "--continue-on-collection-errors")
    assert _ran(warmable) == ["warm"]


def test_failed_compile_in_a_warmup_does_not_warm(warmable: GuardedRun) -> None:
    warmable.suite(
        """
        @pytest.mark.jitguard
        def test_broken():
            with pytest.raises(fakejit.CompileError):
                fakejit.launch("broken", fail=True)
        """
    )
    warmable.run("--jitguard-warmup=warm:half_failed_compile")
    assert warmable.verdicts() == {"test_broken": "violated"}
    assert warmable.violations("test_broken")[0]["never_warmed"] is True


@pytest.mark.parametrize(
    "option", ["--collect-only", "--setup-plan", "--setup-only", "--fixtures", "--fixtures-per-test", "--markers"]
)
def test_dry_runs_warm_nothing_and_arm_nothing(warmable: GuardedRun, option: str) -> None:
    warmable.pytester.makeconftest(
        """
        import fakejit, pathlib
        def pytest_unconfigure():
            pathlib.Path("armed.txt").write_text(str(fakejit._build is not fakejit.untouched_build))
        """
    )
    warmable.suite("@pytest.mark.jitguard(warmup='warm:warm')\ndef test_something(jitguard): fakejit.launch('k')")
    result = warmable.run("--jitguard-warmup=warm:warm", option)
    assert result.ret == 0
    assert _ran(warmable) == []
    assert not (warmable.path / "report.json").exists()
    assert (warmable.path / "armed.txt").read_text() == "False"


def test_setup_show_is_guarded_as_usual(warmable: GuardedRun) -> None:
    warmable.suite("@pytest.mark.jitguard\ndef test_something(jitguard): fakejit.launch('cold')")
    assert warmable.run("--jitguard-warmup=warm:warm", "--setup-show").ret == 1
    assert _ran(warmable) == ["warm"]
    assert warmable.verdicts() == {"test_something": "violated"}
