"""`--jitguard-deny`: the library itself refuses to compile while a guarded test serves, and only then."""

from __future__ import annotations

from tests.conftest import GuardedRun


def test_a_denied_compile_raises_where_it_was_asked_for(guarded: GuardedRun) -> None:
    guarded.suite(
        """
    @pytest.mark.jitguard
    def test_serves():
        fakejit.launch("k", n=2)

    @pytest.mark.jitguard
    def test_prepares(jitguard):
        with jitguard.warmup():
            fakejit.compile_only("k", n=3)
        fakejit.launch("k", n=3)

    @pytest.mark.jitguard
    def test_expects_it():
        with pytest.raises(fakejit.CompileError, match="switched off"):
            fakejit.launch("k", n=5)

    def test_unguarded(): fakejit.launch("k", n=4)
    """
    )
    result = guarded.run("--jitguard-deny=fakejit")
    result.assert_outcomes(passed=2, failed=2)
    assert guarded.verdicts() == {
        "test_serves": "violated",
        "test_prepares": "clean",
        "test_expects_it": "violated",
        "test_unguarded": "unguarded",
    }
    result.stdout.fnmatch_lines(["*CompileError: k: compiling is switched off*"])


def test_a_system_that_nobody_watches_cannot_be_denied(guarded: GuardedRun) -> None:
    guarded.suite("def test_it(): pass")
    result = guarded.run("--jitguard-deny=deepgem")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*--jitguard-deny: unknown monitor 'deepgem'; expected dynamo, deep_gemm, *, fakejit"])


def test_a_system_without_a_switch_cannot_be_denied(guarded: GuardedRun) -> None:
    guarded.suite("def test_it(): pass")
    result = guarded.run("--jitguard-deny=numba")
    assert result.ret == 4
    result.stderr.fnmatch_lines(
        ["*--jitguard-deny: numba has no switch that makes it refuse to compile; expected dynamo, deep_gemm, *fakejit"]
    )


def test_a_system_whose_monitor_is_left_out_cannot_be_denied(guarded: GuardedRun) -> None:
    guarded.suite("def test_it(): pass")
    result = guarded.run("--jitguard-deny=dynamo")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*--jitguard-deny: dynamo is not among the monitors of --jitguard-monitors: add it"])
