"""A violation is a failure of the test's own call: above a skip, below the body's own failure."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.conftest import GuardedRun


def _tests(run: GuardedRun) -> dict[str, tuple[str, str]]:
    return {t["nodeid"].rpartition("::")[2]: (t["verdict"], t["outcome"]) for t in run.report["tests"]}


def _section(result: pytest.RunResult, title: str) -> str:
    return result.stdout.str().partition(f"_ {title} _")[2].partition("\n_____")[0]


def test_what_the_body_does_besides(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        import unittest
        from pytest_jitguard.outcomes import UnexpectedCompile
        guard = pytest.mark.jitguard

        @guard
        def test_passes(): fakejit.launch("k")

        @guard
        def test_fails():
            fakejit.launch("k")
            assert 1 == 2, "the real reason"

        @guard
        def test_raises():
            fakejit.launch("k")
            raise KeyError("the real key")

        @guard
        def test_skips():
            fakejit.launch("k")
            pytest.skip("changed my mind")

        @guard
        def test_raises_skiptest():
            fakejit.launch("k")
            raise unittest.SkipTest("changed my mind")

        @guard
        def test_xfails_imperatively():
            fakejit.launch("k")
            pytest.xfail("known")

        @guard
        def test_skips_before(): pytest.skip("nothing compiled")

        @guard
        @pytest.mark.skip(reason="never runs")
        def test_marked_skip(): fakejit.launch("k")

        @guard
        @pytest.mark.xfail(strict=True, reason="known")
        def test_strict(): fakejit.launch("k")

        @guard
        @pytest.mark.xfail(strict=True, reason="known")
        def test_strict_and_clean(): pass

        @guard
        @pytest.mark.xfail(raises=UnexpectedCompile, strict=True)
        def test_expects_this(): fakejit.launch("k")

        @guard
        @pytest.mark.xfail(raises=KeyError, strict=True)
        def test_expects_another(): fakejit.launch("k")

        @guard
        @pytest.mark.xfail(raises=UnexpectedCompile, strict=True)
        def test_expects_this_but_fails_otherwise():
            fakejit.launch("k")
            raise KeyError("other")

        @pytest.fixture
        def broken():
            raise OSError("no device")

        @guard
        def test_setup_fails(broken): fakejit.launch("k")

        def test_unguarded_setup_fails(broken): fakejit.launch("k")

        @pytest.fixture
        def skipping():
            fakejit.launch("k")
            pytest.skip("no device")

        @guard
        def test_setup_skips(skipping): pass

        @pytest.fixture
        def broken_teardown():
            yield
            raise OSError("teardown")

        @guard
        def test_teardown_fails(broken_teardown): pass

        @guard
        def test_failing_compile():
            fakejit.launch("k", fail=True)

        @guard
        def test_failing_compile_caught():
            with pytest.raises(fakejit.CompileError):
                fakejit.launch("k", fail=True)

        @guard
        def test_exits_the_interpreter():
            fakejit.launch("k")
            raise SystemExit(0)
        """
    )
    result = guarded.run("-rA", "-vv")
    assert result.ret == 1
    assert _tests(guarded) == {
        "test_passes": ("violated", "failed"),
        "test_fails": ("violated", "failed"),
        "test_raises": ("violated", "failed"),
        "test_skips": ("violated", "failed"),
        "test_raises_skiptest": ("violated", "failed"),
        "test_xfails_imperatively": ("violated", "failed"),
        "test_skips_before": ("clean", "skipped"),
        "test_marked_skip": ("unguarded", "skipped"),
        "test_strict": ("violated", "xfailed"),
        "test_strict_and_clean": ("clean", "failed"),
        "test_expects_this": ("violated", "xfailed"),
        "test_expects_another": ("violated", "failed"),
        "test_expects_this_but_fails_otherwise": ("violated", "failed"),
        "test_setup_fails": ("error", "failed"),
        "test_unguarded_setup_fails": ("unguarded", "failed"),
        "test_setup_skips": ("unguarded", "skipped"),
        "test_teardown_fails": ("clean", "failed"),
        "test_failing_compile": ("violated", "failed"),
        "test_failing_compile_caught": ("violated", "failed"),
        "test_exits_the_interpreter": ("violated", "failed"),
    }
    for title, own in (("test_fails", "the real reason"), ("test_raises", "KeyError: 'the real key'")):
        section = _section(result, title)
        assert own in section
        if sys.version_info >= (3, 11):
            assert "jitguard: k (fakejit) compiled in" in section
        assert "- Captured jitguard call -" in section
    assert "UnexpectedCompile" not in _section(result, "test_raises")
    assert guarded.violations("test_failing_compile_caught")[0]["message"].startswith("k (fakejit) failed to compile")
    statuses = {e["status"] for e in guarded.report["events"]}
    assert statuses == {"ok", "failed"}


def test_a_session_of_expected_failures_is_green(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        @pytest.mark.jitguard
        @pytest.mark.xfail(strict=True)
        def test_known(): fakejit.launch("k")
        """
    )
    assert guarded.run().ret == 0
    assert guarded.report["verdict"] == "passed"


def test_unittest_cases(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        import unittest

        @pytest.mark.jitguard
        class TestCase(unittest.TestCase):
            @classmethod
            def setUpClass(cls): fakejit.launch("class")
            def setUp(self): fakejit.launch("own")
            def tearDown(self): fakejit.launch("never_judged" if self._testMethodName == "test_tears_down" else "own")
            def test_warm(self):
                fakejit.launch("class")
                fakejit.launch("own")
            def test_cold(self): fakejit.launch("k")
            def test_skips(self):
                fakejit.launch("k")
                self.skipTest("changed my mind")
            def test_skips_before(self): self.skipTest("nothing compiled")
            def test_fails(self):
                fakejit.launch("k")
                self.assertEqual(1, 2, "the real reason")
            def test_errors(self):
                fakejit.launch("k")
                raise KeyError("the real key")
            @unittest.expectedFailure
            def test_expected_failure(self):
                fakejit.launch("k")
                raise AssertionError
            def test_subtests(self):
                for n in range(2):
                    with self.subTest(n=n):
                        fakejit.launch("k", n=n)
            def test_skips_in_a_subtest(self):
                with self.subTest():
                    fakejit.launch("k")
                    self.skipTest("only this one")
        """
    )
    result = guarded.run("-rA", "-vv")
    tests = _tests(guarded)
    assert {name: tests[name] for name in sorted(tests)} == {
        "test_cold": ("violated", "failed"),
        "test_errors": ("violated", "failed"),
        "test_expected_failure": ("violated", "failed"),
        "test_fails": ("violated", "failed"),
        "test_skips": ("violated", "failed"),
        "test_skips_before": ("clean", "skipped"),
        "test_skips_in_a_subtest": ("violated", "failed"),
        "test_subtests": ("violated", "failed"),
        "test_warm": ("clean", "passed"),
    }
    for title, own in (("TestCase.test_fails", "the real reason"), ("TestCase.test_errors", "the real key")):
        assert own in _section(result, title)
        assert "- Captured jitguard call -" in _section(result, title)


def test_subtests_keep_their_results_and_the_test_fails_once(guarded: GuardedRun) -> None:
    pytest.importorskip("_pytest.subtests", reason="subtests are part of pytest from 9.0")
    guarded.suite(
        """
        @pytest.mark.jitguard
        def test_parts(subtests):
            for n in range(3):
                with subtests.test(n=n):
                    if n == 1:
                        fakejit.launch("k")

        @pytest.mark.jitguard
        def test_failing_part(subtests):
            with subtests.test("one"):
                fakejit.launch("k")
                assert False, "the real reason"

        @pytest.mark.jitguard
        def test_clean_parts(subtests):
            with subtests.test("skipping"):
                pytest.skip("only this one")
            with subtests.test("fine"):
                pass
        """
    )
    result = guarded.run("-v")
    assert _tests(guarded) == {
        "test_parts": ("violated", "failed"),
        "test_failing_part": ("violated", "failed"),
        "test_clean_parts": ("clean", "passed"),
    }
    result.stdout.fnmatch_lines(["*3 failed, 1 passed*subtests passed*"])


@pytest.mark.parametrize(("option", "ran"), [("-x", 2), ("--maxfail=2", 3)])
def test_stopping_early(guarded: GuardedRun, option: str, ran: int) -> None:
    guarded.suite(
        """
        @pytest.mark.jitguard
        def test_clean(): pass

        @pytest.mark.jitguard
        @pytest.mark.parametrize("n", range(4))
        def test_cold(n): fakejit.launch("k", n=n)
        """
    )
    assert guarded.run(option).ret == 1
    assert len(guarded.report["tests"]) == ran


@pytest.mark.parametrize(
    ("statement", "code"), [("pytest.exit('enough', returncode=3)", 3), ("raise KeyboardInterrupt", 2)]
)
def test_being_stopped_in_the_middle_keeps_the_evidence(guarded: GuardedRun, statement: str, code: int) -> None:
    guarded.suite(
        f"""
        @pytest.mark.jitguard
        def test_stops():
            fakejit.launch("k")
            {statement}

        @pytest.mark.jitguard
        def test_never_reached():
            pass
        """
    )
    assert guarded.run().ret == code
    assert guarded.verdicts() == {"test_stops": "violated"}
    assert guarded.report["verdict"] == "failed"


def test_a_plugin_that_turns_failures_green_does_not_turn_the_session_green(guarded: GuardedRun) -> None:
    guarded.pytester.makeconftest(
        """
        import pytest

        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            report.outcome = "passed"
            return report
        """
    )
    guarded.suite("@pytest.mark.jitguard\ndef test_cold(): fakejit.launch('k')")
    assert guarded.run().ret == 1
    assert guarded.report["verdict"] == "failed"


def test_async_tests(guarded: GuardedRun) -> None:
    pytest.importorskip("anyio", reason="no async plugin here")
    guarded.suite(
        """
        @pytest.mark.jitguard
        @pytest.mark.anyio
        async def test_cold(): fakejit.launch("k")

        @pytest.mark.jitguard
        @pytest.mark.anyio
        async def test_clean(): pass
        """
    )
    guarded.plugins += ["-p", "anyio"]
    guarded.run("-k", "asyncio")
    assert {name.partition("[")[0]: v for name, v in guarded.verdicts().items()} == {
        "test_cold": "violated",
        "test_clean": "clean",
    }


def test_reruns_cannot_wash_a_violation_off(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        RUNS = {}

        def run(name):
            RUNS[name] = RUNS.get(name, 0) + 1
            return RUNS[name]

        @pytest.mark.jitguard
        def test_violated_at_first():
            if run("violated") == 1:
                fakejit.launch("k")

        @pytest.mark.jitguard
        def test_violated_and_failed_at_first():
            if run("both") == 1:
                fakejit.launch("k")
                assert False, "flaky"

        @pytest.mark.jitguard
        def test_violated_and_skips_later():
            if run("skips") > 1:
                pytest.skip("warm now")
            fakejit.launch("k")

        @pytest.mark.jitguard
        def test_only_flaky():
            assert run("flaky") > 1

        @pytest.mark.jitguard(mode="record")
        def test_recorded():
            fakejit.launch("k")
            assert run("recorded") > 1
        """
    )
    guarded.plugins += ["-p", "pytest_rerunfailures"]
    result = guarded.run("--reruns=2")
    assert result.ret == 1
    assert _tests(guarded) == {
        "test_violated_at_first": ("violated", "failed"),
        "test_violated_and_failed_at_first": ("violated", "failed"),
        "test_violated_and_skips_later": ("violated", "failed"),
        "test_only_flaky": ("clean", "passed"),
        "test_recorded": ("violated", "passed"),
    }
    assert [v["kernel"] for v in guarded.violations("test_violated_at_first")] == ["k"]


def _modes(run: GuardedRun, mode: str, *args: str) -> Any:
    run.suite(
        """
        def serve(kernel):
            fakejit.launch(kernel)

        fakejit.launch("warm")

        @pytest.mark.jitguard
        def test_culprit():
            serve("warm")
            serve("k")  # the culprit
            raise AssertionError("went on")

        @pytest.mark.jitguard
        def test_swallows():
            try:
                serve("k")
            except BaseException:
                pass

        @pytest.mark.jitguard(max_events=1)
        def test_tolerates():
            serve("k")

        @pytest.mark.allow_jit("k", reason="known")
        @pytest.mark.jitguard
        def test_allows():
            serve("k")

        def test_block(jitguard):
            with jitguard.warmup():
                serve("k")
            with jitguard.serving():
                serve("l")  # in a block
                raise AssertionError("went on")
        """
    )
    return run.run(f"--jitguard-mode={mode}", *args)


def test_mode_raise_fails_at_the_culprit(guarded: GuardedRun) -> None:
    result = _modes(guarded, "raise")
    assert _tests(guarded) == {
        "test_culprit": ("violated", "failed"),
        "test_swallows": ("violated", "failed"),
        "test_tolerates": ("allowed", "passed"),
        "test_allows": ("allowed", "passed"),
        "test_block": ("violated", "failed"),
    }
    section = _section(result, "test_culprit")
    assert '>       serve("k")  # the culprit' in section
    assert "went on" not in section.replace('raise AssertionError("went on")', "")
    assert '>           serve("l")  # in a block' in _section(result, "test_block")


@pytest.mark.parametrize(("mode", "warned"), [("warn", 3), ("record", 0)])
def test_modes_warn_and_record_let_tests_pass(guarded: GuardedRun, mode: str, warned: int) -> None:
    result = _modes(guarded, mode)
    assert _tests(guarded) == {
        "test_culprit": ("violated", "failed"),
        "test_swallows": ("violated", "passed"),
        "test_tolerates": ("allowed", "passed"),
        "test_allows": ("allowed", "passed"),
        "test_block": ("violated", "failed"),
    }
    assert result.stdout.str().count("JitGuardWarning: ") == warned
    assert "AssertionError: went on" in _section(result, "test_culprit")


def test_a_warning_made_an_error_fails_the_test_but_replaces_no_failure(guarded: GuardedRun) -> None:
    result = _modes(guarded, "warn", "-Werror::pytest_jitguard.outcomes.JitGuardWarning")
    assert _tests(guarded)["test_swallows"] == ("violated", "failed")
    assert "AssertionError: went on" in _section(result, "test_culprit")


def test_a_rerun_after_a_failed_fixture_is_judged_by_the_attempt_that_ran(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        tries = []

        @pytest.fixture
        def flaky_fixture():
            tries.append(1)
            assert len(tries) > 1

        @pytest.mark.jitguard
        def test_at_the_second_try(flaky_fixture): pass

        @pytest.mark.jitguard
        def test_warm():
            fakejit.CACHE
        """
    )
    result = guarded.run("-p", "pytest_rerunfailures", "--reruns", "1")
    assert result.ret == 0
    assert guarded.verdicts() == {"test_at_the_second_try": "clean", "test_warm": "clean"}
