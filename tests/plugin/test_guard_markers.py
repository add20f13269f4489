"""What the markers' arguments do, how stacked marks merge, and what is wrong with them."""

from __future__ import annotations

import pytest

from tests.conftest import GuardedRun


def test_arguments_configure_the_judgement(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        guard = pytest.mark.jitguard

        @guard(mode="record")
        def test_record():
            fakejit.launch("k")

        @guard(mode="warn")
        def test_warn():
            fakejit.launch("k")

        @guard(fail_on=["cache_load"])
        def test_compile_is_not_asked_for():
            fakejit.launch("k")

        @guard(max_events=2)
        def test_two_are_tolerated():
            fakejit.launch("k")
            fakejit.launch("l")

        @guard(max_events=1)
        def test_one_is_tolerated():
            fakejit.launch("k")
            fakejit.launch("l")

        @guard(max_seconds=10)
        def test_some_time_is_tolerated():
            fakejit.launch("k")

        @guard(max_seconds=0.01)
        def test_a_little_time_is_tolerated():
            fakejit.launch("k", seconds=0.05)

        @guard(max_events=5, max_seconds=0.01)
        def test_both_limits_hold():
            fakejit.launch("k", seconds=0.05)

        @guard(max_seconds=100)
        def test_unfinished_is_never_within_a_limit():
            fakejit.launch_in_background("k", gate="never")
            time.sleep(0.05)

        @guard(monitors=["fakejit_monitor:FakeMonitor", "fakejit"][1:])
        def test_watched():
            fakejit.launch("k")

        @guard(expect="fakejit:reached")
        def test_reached():
            fakejit.LAUNCHES.append("reached")
            fakejit.CACHE and fakejit.launch("warm")

        @guard(expect=["warm", "fakejit.wa*"])
        def test_expected():
            fakejit.launch("warm")

        @guard(expect="lost")
        def test_skips_before_it_gets_there():
            pytest.skip("no such device")

        @guard(expect="lost")
        def test_fails_before_it_gets_there():
            assert False, "the real reason"

        fakejit.launch("warm")
        """
    )
    result = guarded.run()
    assert guarded.verdicts() == {
        "test_record": "violated",
        "test_warn": "violated",
        "test_compile_is_not_asked_for": "clean",
        "test_two_are_tolerated": "allowed",
        "test_one_is_tolerated": "violated",
        "test_some_time_is_tolerated": "allowed",
        "test_a_little_time_is_tolerated": "violated",
        "test_both_limits_hold": "violated",
        "test_unfinished_is_never_within_a_limit": "violated",
        "test_watched": "violated",
        "test_reached": "violated",
        "test_expected": "clean",
        "test_skips_before_it_gets_there": "clean",
        "test_fails_before_it_gets_there": "clean",
    }
    outcomes = {t["nodeid"].rpartition("::")[2]: t["outcome"] for t in guarded.report["tests"]}
    assert outcomes["test_record"] == outcomes["test_warn"] == "passed"
    assert outcomes["test_skips_before_it_gets_there"] == "skipped"
    assert "never reached its kernel" in guarded.violations("test_reached")[0]["message"]
    result.stdout.fnmatch_lines(["*AssertionError: the real reason*"])
    allowed = {t["nodeid"].rpartition("::")[2]: t["allowed"] for t in guarded.report["tests"]}
    assert [a["reason"] for a in allowed["test_two_are_tolerated"]] == ["within budget (max_events=2)"] * 2


def test_stacked_marks_merge_and_the_closest_wins_argument_by_argument(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        pytestmark = [pytest.mark.jitguard(mode="record", max_events=1), pytest.mark.allow_jit("m*", reason="module")]

        def test_module():
            fakejit.launch("k")
            fakejit.launch("l")

        @pytest.mark.jitguard(mode="fail")
        @pytest.mark.allow_jit("c*", reason="class")
        class TestClass:
            def test_class(self):
                fakejit.launch("k")
                fakejit.launch("l")
                fakejit.launch("m")
                fakejit.launch("c")

            @pytest.mark.jitguard(max_events=0, fail_on="compile")
            @pytest.mark.jitguard(max_events=3)
            def test_function(self):
                fakejit.launch("k")
                fakejit.launch("l")

            @pytest.mark.jitguard(mode="record")
            def test_function_mode(self):
                fakejit.launch("k")
                fakejit.launch("l")
        """
    )
    guarded.run()
    tests = {t["nodeid"].rpartition("::")[2]: (t["verdict"], t["mode"], t["outcome"]) for t in guarded.report["tests"]}
    assert tests == {
        "test_module": ("violated", "record", "passed"),
        "test_class": ("violated", "fail", "failed"),
        "test_function": ("allowed", "fail", "passed"),
        "test_function_mode": ("violated", "record", "passed"),
    }
    assert sorted(v["kernel"] for v in guarded.violations("test_class")) == ["k", "l"]


def test_allow_jit_matches_by_system_module_and_kernel(guarded: GuardedRun) -> None:
    cases = {
        "plain": ("attn_fwd", True),
        "glob": ("attn_*", True),
        "system": ("fakejit:attn_fwd", True),
        "module": ("fakejit:fakejit.attn_*", True),
        "any_system": ("*:attn_fwd", True),
        "module_without_system": ("fakejit.attn_fwd", True),
        "other_system": ("triton:attn_fwd", False),
        "other_kernel": ("attn", False),
        "other_case": ("ATTN_FWD", False),
    }
    guarded.suite(
        "\n".join(
            f'@pytest.mark.jitguard\n@pytest.mark.allow_jit("{pattern}", "unused", reason="case {name}")\n'
            f'def test_{name}():\n    fakejit.launch("attn_fwd")\n'
            for name, (pattern, _) in cases.items()
        )
    )
    guarded.run()
    assert guarded.verdicts() == {f"test_{n}": "allowed" if ok else "violated" for n, (_, ok) in cases.items()}
    allowed = next(t["allowed"] for t in guarded.report["tests"] if t["nodeid"].endswith("test_module"))
    assert [(a["pattern"], a["reason"]) for a in allowed] == [("fakejit:fakejit.attn_*", "case module")]


@pytest.mark.parametrize("guard", ["", "--jitguard-guard=all"])
def test_allow_jit_holds_for_tests_that_serving_blocks_guard(guarded: GuardedRun, guard: str) -> None:
    guarded.suite(
        """
        @pytest.mark.allow_jit("k", reason="lazy")
        def test_allowed(jitguard):
            with jitguard.serving():
                fakejit.launch("k")
        """
    )
    assert guarded.run(*filter(None, [guard])).ret == 0
    assert guarded.verdicts() == {"test_allowed": "allowed"}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("record", "passed passed"), ("warn", "passed passed"), ("fail", "passed failed"), ("raise", "passed failed")],
)
def test_a_relaxed_mode_on_the_command_line_beats_the_marker(guarded: GuardedRun, mode: str, expected: str) -> None:
    guarded.suite(
        """
        @pytest.mark.jitguard(mode="record")
        def test_a_recorded():
            fakejit.launch("k")

        @pytest.mark.jitguard(mode="fail")
        def test_b_failing():
            fakejit.launch("k")
        """
    )
    guarded.run(f"--jitguard-mode={mode}")
    assert " ".join(t["outcome"] for t in guarded.report["tests"]) == expected


def test_a_relaxed_mode_in_the_ini_does_not_beat_the_marker(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        @pytest.mark.jitguard(mode="fail")
        def test_failing():
            fakejit.launch("k")

        @pytest.mark.jitguard
        def test_recorded():
            fakejit.launch("k")
        """
    )
    guarded.run("-o", "jitguard_mode=record").assert_outcomes(failed=1, passed=1)


def test_every_mistake_in_marks_is_told_at_once(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        @pytest.mark.jitguard(warmpu="a:b")
        def test_unknown(): pass

        @pytest.mark.jitguard("positional")
        def test_positional(): pass

        @pytest.mark.jitguard(mode="loud")
        def test_mode(): pass

        @pytest.mark.jitguard(fail_on=["compiles"])
        def test_fail_on(): pass

        @pytest.mark.jitguard(max_events=-1, max_seconds=True)
        def test_budget(): pass

        @pytest.mark.jitguard(warmup="not a path")
        def test_warmup(): pass

        @pytest.mark.jitguard(warmup=3)
        def test_warmup_number(): pass

        @pytest.mark.jitguard(monitors="trition")
        def test_monitor(): pass

        @pytest.mark.jitguard(expect=[])
        def test_expect(): pass

        @pytest.mark.allow_jit("k")
        def test_no_reason(): pass

        @pytest.mark.allow_jit(reason="why")
        def test_no_pattern(): pass
        """
    )
    result = guarded.run()
    assert result.ret == 4
    result.stderr.re_match_lines_random(
        [
            r".*test_unknown: jitguard has no keyword 'warmpu' \(did you mean 'warmup'\?\); known are warmup, mode.*",
            r".*test_positional: jitguard takes keywords only, not 'positional'.*",
            r".*test_mode: .*expected fail, warn, record, raise.*",
            r".*test_fail_on: .*expected any of compile, cache_load.*",
            r".*test_budget: jitguard\(max_events=-1\): expected a whole number from 0.*",
            r".*test_budget: jitguard\(max_seconds=True\): expected a number of seconds from 0.*",
            r".*test_warmup: .*expected package.module:callable, a callable, or a list of them.*",
            r".*test_warmup_number: .*expected package.module:callable.*",
            r".*test_monitor: jitguard\(monitors='trition'\): no monitor 'trition' in this run; it has fakejit.*",
            r".*test_expect: .*expected a text or a list of texts.*",
            r".*test_no_reason: allow_jit needs a reason.*",
            r".*test_no_pattern: allow_jit needs at least one pattern.*",
        ]
    )
