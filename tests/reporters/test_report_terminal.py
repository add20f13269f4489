from __future__ import annotations

from typing import Any

import pytest
from report_builders import FakeProcess, gap, tuned

from pytest_jitguard.core.baseline import Baseline, Debt
from pytest_jitguard.core.kinds import deeds
from pytest_jitguard.core.policy import Allowance, Policy
from pytest_jitguard.core.settings import Settings
from pytest_jitguard.core.verdicts import Verdict, Violation
from pytest_jitguard.reporters import terminal
from pytest_jitguard.reporters.groups import file_and_line, group_violations
from pytest_jitguard.reporters.model import RunReport, build


def texts(lines: list[terminal.Line]) -> list[str]:
    return [text for text, _ in lines]


def summary(*processes: FakeProcess, verbose: int = 0, width: int = 100, **options: Any) -> list[str]:
    return texts(terminal.summary(build([process.raw for process in processes], **options), verbose, width))


def test_header_of_a_plain_run_and_of_a_rich_one() -> None:
    assert texts(terminal.header(Settings())) == [
        "jitguard 0.1.0: mode fail; guarding marked tests; warmup not configured; cache keep; monitors auto"
    ]
    rich = Settings(
        guard="all",
        warmup=("suite:warm",),
        offline="cuda:90",
        baseline="debt.json",
        waive=("warmup-empty",),
        cache="cold",
    )
    assert texts(terminal.header(rich)) == [
        "jitguard 0.1.0: mode fail; guarding all tests; warmup 1 step; cache cold; monitors auto; "
        "offline target cuda:90 (tensors on cpu); known debt in debt.json; waived warmup-empty"
    ]


@pytest.mark.parametrize(
    ("status", "cause", "expected"),
    [
        ("ok", "", "triton 3.9.0 armed; warmup 3.20 s: 1 compiled, 0 loaded from disk, 0 autotuned"),
        ("failed", "warmup w failed:\nboom", "triton 3.9.0 armed; warmup w failed: boom"),
        ("timeout", "warmup w was stopped", "triton 3.9.0 armed; warmup w was stopped"),
    ],
)
def test_one_line_after_the_warmup(status: str, cause: str, expected: str) -> None:
    process = FakeProcess().monitor()
    process.warmup(16, status=status, cause=cause)
    document = build([process.raw]).document
    lines = terminal.after_warmup(document["monitors"], document["warmup"])
    assert texts(lines) == [f"jitguard: {expected}"]


def test_one_line_after_no_warmup() -> None:
    document = build([FakeProcess().monitor("unproven", "no compiler to ask").raw]).document
    assert texts(terminal.after_warmup(document["monitors"], document["warmup"])) == [
        "jitguard: triton 3.9.0 unproven (no compiler to ask); no warmup configured"
    ]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (("waiting",), "monitor a waiting for its library"),
        (("waiting", "waiting", "armed"), "2 monitors waiting for their libraries"),
        (("armed",), "no compile seen yet"),
    ],
)
def test_who_waits_where_nothing_was_seen(states: tuple[str, ...], expected: str) -> None:
    monitors = [
        {"name": name, "version": "", "state": state, "detail": "", "has_seen": False}
        for name, state in zip("abc", states, strict=False)
    ]
    assert texts(terminal.after_warmup(monitors, {"status": "none"})) == [f"jitguard: {expected}; no warmup configured"]


def test_a_violation_is_one_line() -> None:
    assert texts(terminal.violation_line("a.py::test", "gemm compiled:\n why")) == [
        "jitguard: a.py::test: gemm compiled: why"
    ]


def test_summary_of_a_gap() -> None:
    assert summary(gap()) == [
        "unexpected: 2 compiles in 2 of 3 guarded tests, 1.38 s together",
        "wna16_gemm: 2 compiles in 2 tests, 1.38 s: BLOCK_SIZE_M 16 → 64 (examples/wna16_moe/layer.py:88)",
        "compile caches cold",
    ]


def test_verbose_summary_of_a_gap_has_the_cure_once() -> None:
    assert summary(gap(), verbose=1) == [
        "unexpected: 2 compiles in 2 of 3 guarded tests, 1.38 s together",
        "wna16_gemm: 2 compiles in 2 tests, 1.38 s: BLOCK_SIZE_M 16 → 64 (examples/wna16_moe/layer.py:88)",
        "  tests/test_moe.py::test_large: wna16_gemm (triton) compiled in 0.83 s while serving: BLOCK_SIZE_M 16 → 64",
        "    changed  BLOCK_SIZE_M: 16 → 64",
        "    launched examples/wna16_moe/layer.py:88:gemm",
        "  tests/test_moe.py::test_larger: wna16_gemm (triton) compiled in 0.55 s while serving: BLOCK_SIZE_M 16 → 64",
        "    as above",
        "  add this to the warmup:",
        "    layer.wna16_gemm.warmup(BLOCK_SIZE_M=64)",
        "pytest (pid 100): warmup 3.20 s: 1 compiled, 0 loaded from disk, 0 autotuned",
        "  suite:warm: ok, 3.20 s",
        "compile caches cold",
    ]


def test_summary_of_a_clean_run_carries_its_evidence() -> None:
    process = FakeProcess().environment().monitor()
    process.warmup(16)
    process.test("a.py::test_1")
    process.test("a.py::test_2")
    assert summary(process.finish())[0] == "2 guarded tests, no unexpected compile in 14 launches"


def everything() -> list[FakeProcess]:
    """A run in which as much as possible went wrong."""
    known = Baseline(frozenset({Debt("triton", "layer.wna16_gemm", ("BLOCK_SIZE_M",))}))
    process = FakeProcess().environment(waive=["warmup-empty"]).monitor("unproven", "no compiler to ask")
    process.warmup()
    process.warmup(16, label="warmup:suite:mine")
    process.test("a.py::test_allowed", 64, policy=Policy(allowances=(Allowance("*gemm", "ticket 7"),)))
    process.test("a.py::test_known", 64, known=known)
    process.test("a.py::test_warn", 64, policy=Policy(mode="warn"))
    for number in range(40):
        process.test(f"a.py::test_{number}", 1, kernel=f"kernel_{number:02d}", seconds=0.5 + number)
    process.outcome("a.py::test_error", "setup", "failed")
    process.open("serving", "a.py::test_cut", owner="a.py::test_cut", attempt=1)
    second = FakeProcess("xdist worker", 7, "image7", born=5000.0).monitor("blind", "listener\ngone")
    for number in range(9):
        second.note(record="finding", name=f"noted-{number}", message="m" * 500, remedy="", severity="failure")
    return [process, second.finish(order_dependent=True)]


def test_summary_keeps_to_twenty_lines_and_says_what_it_left_out() -> None:
    assert summary(*everything(), width=80) == [
        *[f"noted-{number}: {'m' * 230}…" for number in range(5)],
        "… and 5 more findings (-v shows all)",
        "killed or crashed: pytest (pid 100); this report ends where its journal ends",
        "unexpected: 41 compiles in 41 of 43 guarded tests, 800 s together",
        "kernel_39: 1 compile in 1 test, 40 s: this kernel was never warmed (examples/wna16_moe/layer.py:88)",
        "kernel_38: 1 compile in 1 test, 38 s: this kernel was never warmed (examples/wna16_moe/layer.py:88)",
        "kernel_37: 1 compile in 1 test, 38 s: this kernel was never warmed (examples/wna16_moe/layer.py:88)",
        "kernel_36: 1 compile in 1 test, 36 s: this kernel was never warmed (examples/wna16_moe/layer.py:88)",
        "… and 37 more kernels with 37 violations, 648 s (-v shows all)",
        "allowed: 1 compile (wna16_gemm); known debt: 1 compile (wna16_gemm)",
        "1 violated test in mode warn did not fail",
        "never came to an end: a.py::test_cut",
        "not judged, since their setup failed: a.py::test_error",
        "monitors that are not armed: triton 3.9.0 blind (listener gone)",
        "order dependent: variants stayed resident between tests, so verdicts can depend on the order of tests",
        "compile caches cold",
    ]


def test_verbose_leaves_nothing_out() -> None:
    lines = summary(*everything(), verbose=1)
    assert not [line for line in lines if "more" in line]
    assert len([line for line in lines if "still" in line or "compiled in" in line]) == 42  # with the known one
    assert "  allowed wna16_gemm: ticket 7" in lines
    assert (
        "waived: warmup-empty: the warmup ran 1 step and compiled, loaded and tuned nothing" not in lines
    )  # cut short


def test_an_expectation_that_was_not_met_is_said_in_its_own_words() -> None:
    process = FakeProcess().environment().monitor()
    verdict = Verdict("a.py::test", "violated", violations=[Violation("the test never reached its kernel: nothing …")])
    process.records.append(verdict.to_wire())
    process.outcome("a.py::test", "call", "failed")
    assert summary(process.finish())[:2] == [
        "1 expected kernel not reached in 1 of 1 guarded test",
        "the test never reached its kernel: nothing … (1 test)",
    ]


def test_a_failed_warmup_comes_first_and_shows_its_traceback_with_v() -> None:
    process = FakeProcess().environment().monitor()
    step = {"path": "suite:warm", "status": "failed", "seconds": 1.0, "error": "boom", "traceback": "Traceback\n  boom"}
    process.warmup(status="failed", cause="warmup suite:warm failed after 1.00 s: boom", steps=[step])
    process.outcome("a.py::test", "setup", "failed")
    lines = summary(process.finish(), verbose=1)
    assert lines[0] == "warmup-failed: warmup suite:warm failed after 1.00 s: boom"
    assert lines[-4:-1] == ["  suite:warm: failed, 1.00 s", "    Traceback", "      boom"]


def test_kernels_of_one_name_are_told_apart() -> None:
    def violation(system: str, module: str, seconds: float | None) -> dict[str, Any]:
        event = f"{system}-{module}-{seconds}"
        blank = {"event": event, "kind": "compile", "kernel": "gemm", "message": "m", "launch_site": "", "label": ""}
        return {**blank, "system": system, "module": module, "seconds": seconds}

    test = {"nodeid": "a.py::t", "violations": [violation("triton", "a", 1.0), violation("triton", "b", None)]}
    assert [group.line for group in group_violations([test])] == [
        "a.gemm: 1 compile in 1 test, 1.00 s: m",
        "b.gemm: 1 compile in 1 test, time unknown: m",
    ]
    test["violations"] = [
        violation("triton", "a", 1.0),
        violation("triton", "a", None),
        violation("tilelang", "a", 2.0),
    ]
    assert [group.line for group in group_violations([test])] == [
        "tilelang:gemm: 1 compile in 1 test, 2.00 s: m",
        "triton:gemm: 2 compiles in 1 test, more than 1.00 s: m",
    ]


def test_words() -> None:
    assert deeds(["compile", "compile", "autotune", "cache_load"]) == "2 compiles, 1 autotune run and 1 load from disk"
    assert file_and_line("a:b.py:7:f") == "a:b.py:7"
    assert file_and_line("a.py:7") == "a.py:7"


def test_the_cause_is_found_behind_a_label_with_colons() -> None:
    process = FakeProcess().environment().monitor()
    verdict = Verdict("a.py::test", "violated")
    event = process.compile(64)
    from pytest_jitguard.core.explain import Explanation

    verdict.violations = [Violation.of(event, Explanation("x: 1 → 2"), process.now, "batch: 3")]
    process.records.append(verdict.to_wire())
    process.outcome("a.py::test", "call", "failed")
    assert summary(process.finish())[1] == "wna16_gemm: 1 compile in 1 test, 0.50 s: x: 1 → 2"


def test_violations_that_fail_no_test_say_why() -> None:
    process = FakeProcess().environment().monitor()
    process.test("a.py::test_1", 64, policy=Policy(mode="record"))
    process.test("a.py::test_2", 64, outcome="skipped", xfail=True)
    lines = terminal.summary(build([process.finish().raw]))
    assert lines[0][1] == {"yellow": True}
    assert texts(lines)[2] == "1 violated test in mode record did not fail; 1 violated test failed as expected (xfail)"


def test_the_places_are_named() -> None:
    report: RunReport = build([gap().raw])
    assert texts(terminal.summary(report, places={"JSON": "r.json", "journal": ""}))[-1] == "JSON: r.json"


def test_an_autotune_run_is_counted_once() -> None:
    where = "(examples/wna16_moe/layer.py:88)"
    assert summary(tuned())[:2] == [
        "unexpected: 1 autotune run in 1 of 1 guarded test, 3.00 s together",
        f"tuned: 1 autotune run in 1 test, 3.00 s: this kernel was never tuned by the warmup {where}",
    ]
    detail = summary(tuned(), verbose=1)[3:7]
    assert detail == [
        "    launched examples/wna16_moe/layer.py:88:gemm",
        "    within   1 compile and 1 load from disk, 2.50 s, one for each config that was tried",
        "  add this to the warmup:",
        "    # call it once",
    ]


def test_an_allowed_autotune_run_is_counted_once() -> None:
    assert "allowed: 1 autotune run (tuned)" in summary(tuned(Policy(max_events=1)))


def test_imports_of_several_entries_are_said_once() -> None:
    process = FakeProcess().environment().monitor()
    process.test("a.py::test_1", 64, 128)
    record = next(record for record in process.records if record["record"] == "verdict")
    for number, violation in enumerate(record["violations"]):
        violation["cure"] = f"import torch\n\nk.warmup({number})"
    lines = summary(process.finish(), verbose=1)
    at = lines.index("  add this to the warmup:")
    assert lines[at + 1 : at + 5] == ["    import torch", "", "    k.warmup(0)", "    k.warmup(1)"]


def test_the_warmup_of_several_processes() -> None:
    workers = [FakeProcess("xdist worker", pid, f"image{pid}").monitor() for pid in (1, 2)]
    for worker in workers:
        worker.warmup(16)
    workers[0].warmup(label="warmup:mine")
    document = build([worker.raw for worker in workers]).document
    assert texts(terminal.after_warmup(document["monitors"], document["warmup"])) == [
        "jitguard: triton 3.9.0 armed; warmup 3.20 s in 2 processes: 2 compiled, 0 loaded from disk, 0 autotuned"
    ]


def failed_warmup(lines: int) -> FakeProcess:
    process = FakeProcess().environment().monitor()
    cause = "warmup suite:warm failed after 1.00 s: boom"
    process.warmup(status="failed", cause=cause, detail="\n".join(f"frame {n}" for n in range(lines)))
    process.outcome("a.py::test", "setup", "failed")
    return process


def test_the_end_of_a_failed_warmups_traceback_is_always_shown() -> None:
    lines = summary(failed_warmup(100).finish())
    assert len(lines) <= 20
    assert [line for line in lines if "frame" in line] == [f"  frame {n}" for n in range(86, 100)]
    assert "  … (-v shows all)" in lines
    assert "    frame 0" in summary(failed_warmup(100).finish(), verbose=1)
    assert "  frame 0" in summary(failed_warmup(2).finish())


def test_problems_and_a_traceback_keep_to_twenty_lines() -> None:
    process, second = everything()
    process.warmup(status="failed", cause="warmup w failed", detail="\n".join(f"frame {n}" for n in range(50)))
    report = build([process.raw, second.raw])
    lines = texts(terminal.summary(report, problems=["JSON r.json could not be written: disk full"]))
    assert lines[0] == "JSON r.json could not be written: disk full"
    assert len(lines) <= 20
    assert "  frame 49" in lines
    assert any(line.startswith("… and 41 more kernels") for line in lines)
