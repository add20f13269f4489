from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_builders import FakeProcess, gap

from pytest_jitguard.core.baseline import Baseline, Debt
from pytest_jitguard.core.policy import Policy
from pytest_jitguard.core.verdicts import Verdict
from pytest_jitguard.processes.journal import Journal
from pytest_jitguard.reporters import json_report
from pytest_jitguard.reporters.model import ProcessRecords, RunReport, bare_nodeid, build, read_run

SCHEMA = json.loads(json_report.SCHEMA_FILE.read_text(encoding="utf-8"))


def closed(schema: Any) -> Any:
    """The published schema lets readers meet members of later versions; what we write must all be described."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    grown = {name: closed(item) for name, item in schema.items()}
    if "properties" in schema and schema.get("type") == "object":
        grown["additionalProperties"] = False
    return grown


OPEN, CLOSED = (jsonschema.Draft202012Validator(schema) for schema in (SCHEMA, closed(SCHEMA)))


def report_of(*processes: FakeProcess, **options: Any) -> RunReport:
    report = build([process.raw for process in processes], **options)
    CLOSED.validate(json.loads(json_report.render(report.document)))
    return report


def the_test(report: RunReport, nodeid: str) -> Mapping[str, Any]:
    (entry,) = [test for test in report.document["tests"] if test["nodeid"] == nodeid]
    return entry  # type: ignore[no-any-return]


def names(report: RunReport) -> list[str]:
    return [finding.name for finding in report.failing]


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_schema_is_a_valid_schema_and_describes_every_member() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    undescribed: list[str] = []

    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict):
            for name, member in node.get("properties", {}).items():
                target = SCHEMA["$defs"][member["$ref"].rpartition("/")[2]] if "$ref" in member else member
                if not target.get("description"):
                    undescribed.append(f"{path}.{name}")
            for name, item in node.items():
                walk(item, f"{path}.{name}")

    walk(SCHEMA, "")
    assert not undescribed


def test_a_gap_fails_with_two_violations_of_one_debt() -> None:
    report = report_of(gap())
    document = report.document
    assert (report.verdict, document["cache"], report.failing) == ("failed", "cold", [])
    assert [test["verdict"] for test in document["tests"]] == ["violated", "violated", "clean"]
    assert [test["nodeid"] for test in report.violated] == [
        "tests/test_moe.py::test_large",
        "tests/test_moe.py::test_larger",
    ]
    assert report.new_debts == [Debt("triton", "layer.wna16_gemm", ("BLOCK_SIZE_M",))]
    assert document["reasons"] == [
        "2 guarded tests violated, first tests/test_moe.py::test_large: wna16_gemm (triton) compiled in 0.83 s "
        "while serving: BLOCK_SIZE_M 16 → 64"
    ]


def test_document_has_every_member_that_the_issue_names() -> None:
    document = report_of(gap()).document
    assert {"schema", "verdict", "reasons", "environment", "cache", "monitors", "warmup", "tests", "events"} <= set(
        document
    )
    assert document["schema"] == 1
    test = document["tests"][0]
    assert {"nodeid", "outcome", "mode", "verdict", "allowed", "violations", "evidence"} <= set(test)
    wanted = "event system kind kernel module seconds pid phase message never_warmed changes launch_site called_from"
    assert set(wanted.split()) <= set(test["violations"][0])
    assert test["violations"][0]["changes"] == [
        {"component": "BLOCK_SIZE_M", "warmed": "16", "served": "64", "text": "16 → 64"}
    ]
    wanted = "id system kind status kernel module phase started seconds pid host rank role artifact_hash"
    assert set(wanted.split()) <= set(document["events"][0])
    assert {"monitors_armed", "processes", "warmup_events", "launches", "expected"} == set(test["evidence"])


def test_events_are_placed_by_the_windows_of_their_process() -> None:
    events = report_of(gap()).document["events"]
    assert [(e["phase"], e["test"], e["served"]) for e in events] == [
        ("warmup", None, False),
        ("serving", "tests/test_moe.py::test_large", True),
        ("serving", "tests/test_moe.py::test_larger", True),
    ]
    # born at 1000.0 when the monotonic clock said 50.0
    assert events[0]["time"] - events[0]["started"] == pytest.approx(950.0)


def test_warmup_counts_what_began_in_it_and_was_done() -> None:
    process = FakeProcess().environment().monitor()
    with process.window("warmup", "session"):
        process.compile(16)
        process.end(process.begin(kind="cache_load"))
        tuned = process.begin(kind="autotune")
        process.end(process.begin(parent=tuned.id))  # a part of the tuner's run, and counted with it
        process.end(tuned)
        process.end(process.begin(), status="failed")
    process.warmup()
    process.test("a.py::test")
    warmup = report_of(process.finish()).document["warmup"]
    assert warmup["status"] == "ok"
    assert [warmup[name] for name in ("events", "compiled", "cache_loaded", "autotuned", "failed")] == [4, 1, 1, 1, 1]


def test_a_markers_warmup_is_its_own_and_does_not_fill_the_sessions() -> None:
    process = FakeProcess().environment().monitor()
    process.warmup()
    process.warmup(16, label="warmup:suite:mine")
    process.test("a.py::test")
    report = report_of(process.finish())
    assert names(report) == ["warmup-empty"]
    assert [(w["label"], w["compiled"]) for w in report.document["warmup"]["processes"]] == [
        ("", 0),
        ("warmup:suite:mine", 1),
    ]
    assert report.document["events"][0]["group"] == "warmup:suite:mine"


def test_a_warmup_block_inside_a_test_does_not_fill_the_sessions() -> None:
    process = FakeProcess().environment().monitor()
    process.warmup()
    with (
        process.window("serving", "a.py::test", owner="a.py::test", attempt=1),
        process.window("warmup", explicit=True),
    ):
        process.compile(16)
    process.outcome("a.py::test", "call", "passed")
    process.test("a.py::test", attempt=2)
    assert names(report_of(process.finish())) == ["warmup-empty"]


def test_a_fixture_that_failed_at_first_does_not_hide_the_verdict_of_the_rerun() -> None:
    process = FakeProcess().environment().monitor()
    process.outcome("a.py::test", "setup", "failed")
    process.test("a.py::test", attempt=2)
    report = report_of(process.finish())
    assert the_test(report, "a.py::test")["verdict"] == "clean"
    assert report.passed


# -- verdict of the run ------------------------------------------------------------------------------------------------


def test_a_clean_run_passes() -> None:
    process = FakeProcess().environment().monitor()
    process.warmup(16)
    process.test("a.py::test")
    report = report_of(process.finish())
    assert report.passed
    assert report.document["reasons"] == []


@pytest.mark.parametrize("mode", ["warn", "record"])
def test_violations_in_a_lenient_mode_do_not_fail(mode: str) -> None:
    process = FakeProcess().environment().monitor()
    process.test("a.py::test", 64, policy=Policy(mode=mode))
    report = report_of(process.finish())
    assert report.passed
    assert the_test(report, "a.py::test")["verdict"] == "violated"
    assert len(report.new_debts) == 1


def test_an_expected_failure_does_not_fail() -> None:
    process = FakeProcess().environment().monitor()
    process.test("a.py::test", 64, outcome="skipped", xfail=True)
    report = report_of(process.finish())
    assert report.passed
    assert the_test(report, "a.py::test")["outcome"] == "xfailed"


def test_a_violation_that_somebody_reported_as_passed_still_fails() -> None:
    process = FakeProcess().environment().monitor()
    process.test("a.py::test", 64, outcome="passed")
    assert report_of(process.finish()).verdict == "failed"


def test_nothing_guarded_fails_unless_waived() -> None:
    process = FakeProcess().environment().monitor()
    process.test("a.py::test", guarded=False)
    process.outcome("a.py::test_gpu", "setup", "skipped")
    report = report_of(process.finish())
    assert names(report) == ["nothing-guarded"]
    assert "(1 skipped)" in report.failing[0].message
    waived = report_of(process, waived=["nothing-guarded"])
    assert waived.passed
    assert waived.document["findings"][0]["waived"] is True


def test_waivers_come_from_the_run_unless_given() -> None:
    process = FakeProcess().environment(waive=["nothing-guarded"]).monitor()
    process.test("a.py::test", guarded=False)
    process.finish()
    assert report_of(process).passed
    assert not report_of(process, waived=[]).passed


def test_nothing_watched_is_told_from_states_and_session_records() -> None:
    process = FakeProcess().environment().monitor("waiting")
    process.test("a.py::test")
    assert names(report_of(process.finish(armed=()))) == ["nothing-watched"]


def test_a_usage_finding_outranks_everything_and_is_told_once() -> None:
    workers = [FakeProcess("xdist worker", pid, f"image{pid}") for pid in (1, 2)]
    for worker in workers:
        worker.environment().monitor()
        worker.note(record="finding", name="usage", message="no such module", remedy="", severity="usage")
        worker.test("a.py::test", 64)
        worker.finish()
    report = report_of(*workers)
    assert report.verdict == "usage-error"
    assert [error.message for error in report.usage_errors] == ["no such module"]


def test_a_guarded_test_that_ended_in_its_setup_is_an_error() -> None:
    process = FakeProcess().environment().monitor()
    process.test("a.py::test")
    process.outcome("a.py::test_cold", "setup", "failed")
    process.outcome("a.py::test_other", "setup", "failed", guarded=False)
    report = report_of(process.finish())
    assert the_test(report, "a.py::test_cold")["verdict"] == "error"
    assert the_test(report, "a.py::test_other")["verdict"] == "unguarded"
    assert report.verdict == "failed"


# -- debt --------------------------------------------------------------------------------------------------------------


def test_known_new_and_paid_debt() -> None:
    known = Debt("triton", "layer.wna16_gemm", ("BLOCK_SIZE_M",))
    paid = Debt("triton", "layer.gone", ("never warmed",))
    process = FakeProcess().environment().monitor()
    process.warmup(16)
    process.test("a.py::test_known", 64, known=Baseline(frozenset({known})))
    process.test("a.py::test_new", 1, kernel="fresh")
    process.finish()
    report = report_of(process, baseline_debts=frozenset({known, paid}))
    assert (report.known_debts, report.paid_debts) == ([known], [paid])
    assert report.new_debts == [Debt("triton", "layer.fresh", ("never warmed",))]
    assert names(report) == ["paid-debt"]
    assert the_test(report, "a.py::test_known")["verdict"] == "known"


@pytest.mark.parametrize("why", ["argument", "session record", "death"])
def test_debt_is_not_paid_by_a_run_that_left_tests_out(why: str) -> None:
    process = FakeProcess().environment().monitor()
    process.test("a.py::test")
    if why != "death":
        process.finish(partial=why == "session record")
    paid = frozenset({Debt("triton", "layer.gone", ("never warmed",))})
    report = report_of(process, baseline_debts=paid, partial=why == "argument")
    assert (report.paid_debts, report.partial) == ([], True)


# -- tests over attempts and processes ---------------------------------------------------------------------------------


def test_a_rerun_stays_violated_and_keeps_the_violation_once() -> None:
    process = FakeProcess().environment().monitor()
    first = process.test("a.py::test", 64)
    again = Verdict("a.py::test", "violated", attempt=2, violations=first.violations)
    process.records.append(again.to_wire())
    process.outcome("a.py::test", "setup", "passed", attempt=2)
    process.outcome("a.py::test", "call", "failed", attempt=2)
    process.outcome("a.py::test", "teardown", "passed", attempt=0)
    test = the_test(report_of(process.finish()), "a.py::test")
    assert (test["verdict"], test["outcome"], len(test["violations"])) == ("violated", "failed", 1)
    assert [attempt["attempt"] for attempt in test["attempts"]] == [1, 2]


def test_the_worst_verdict_wins_and_the_last_outcome() -> None:
    process = FakeProcess().environment().monitor()
    process.test("a.py::test", 64, outcome="rerun")
    process.test("a.py::test", attempt=2)
    test = the_test(report_of(process.finish()), "a.py::test")
    assert (test["verdict"], test["outcome"]) == ("violated", "passed")


def test_a_failed_teardown_belongs_to_the_last_attempt() -> None:
    process = FakeProcess().environment().monitor()
    process.test("a.py::test", outcome="failed")
    process.test("a.py::test", attempt=2)
    process.records[-1]["outcome"] = "failed"
    test = the_test(report_of(process.finish()), "a.py::test")
    assert [attempt["outcome"] for attempt in test["attempts"]] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([("setup", "passed", False), ("call", "passed", False)], "passed"),
        ([("setup", "passed", False), ("call", "passed", True)], "xpassed"),
        ([("setup", "passed", False), ("call", "skipped", True)], "xfailed"),
        ([("setup", "skipped", False)], "skipped"),
        ([("setup", "passed", False), ("call", "rerun", False)], "rerun"),
        ([("setup", "passed", False), ("call", "passed", False), ("teardown", "failed", False)], "failed"),
    ],
)
def test_outcomes_are_pytests(words: list[tuple[str, str, bool]], expected: str) -> None:
    process = FakeProcess().environment()
    for when, outcome, xfail in words:
        process.outcome("a.py::test", when, outcome, xfail=xfail)
    assert the_test(report_of(process.finish()), "a.py::test")["outcome"] == expected


def test_two_processes_are_merged() -> None:
    controller = FakeProcess("xdist controller", 1, "image1", born=1.0).environment(
        packages={"triton": None, "torch": "2"}
    )
    workers = [FakeProcess("xdist worker", pid, f"image{pid}", born=float(pid)) for pid in (3, 2)]
    for worker, state in zip(workers, ["armed", "waiting"], strict=True):
        worker.environment(root="/elsewhere").monitor(state)
        worker.warmup(16)
        worker.test(f"a.py::test_{worker.pid}", *([64] if worker.pid == 2 else []))
    report = report_of(
        workers[0].finish(), controller.finish(armed=()), workers[1].finish(order_dependent=True, armed=())
    )
    document = report.document
    assert [process["pid"] for process in document["processes"]] == [1, 2, 3]
    assert (document["environment"]["root"], document["environment"]["packages"]) == (
        "/repo",
        {"triton": "3.9.0", "torch": "2"},
    )
    (monitor,) = document["monitors"]
    assert (monitor["state"], monitor["version"], monitor["ever_armed"]) == ("armed", "3.9.0", True)
    assert [row["state"] for row in monitor["processes"]] == ["waiting", "armed"]
    assert document["warmup"]["compiled"] == 2
    assert document["warmup"]["seconds"] == 3.2
    assert document["order_dependent"] is True
    assert {test["nodeid"]: test["verdict"] for test in document["tests"]} == {
        "a.py::test_2": "violated",
        "a.py::test_3": "clean",
    }
    assert names(report) == []


def test_a_test_that_ran_in_every_process_failed_if_it_failed_in_one() -> None:
    workers = [FakeProcess("xdist worker", pid, f"image{pid}", born=float(pid)).monitor() for pid in (1, 2)]
    workers[0].test("a.py::test", outcome="failed")
    workers[1].test("a.py::test")
    report = report_of(*(worker.finish() for worker in workers))
    assert the_test(report, "a.py::test")["outcome"] == "failed"
    assert the_test(report, "a.py::test")["evidence"]["processes"] == [1, 2]


def test_blind_in_one_process_is_blind_and_stays_so() -> None:
    first, second = FakeProcess(pid=1, image="one"), FakeProcess(pid=2, image="two", born=2000.0)
    first.environment().monitor("armed").monitor("blind", "listener gone").monitor("armed")
    first.test("a.py::test_1")
    second.monitor("armed").test("a.py::test_2")
    report = report_of(first.finish(), second.finish())
    assert names(report) == ["blind:triton"]
    assert "listener gone" in report.failing[0].message
    assert build([first.raw, second.raw], waived=["blind:triton"]).passed


def test_a_monitor_that_was_switched_off_at_the_end_counts_as_it_stood_before() -> None:
    process = FakeProcess().environment().monitor("armed").monitor("off")
    process.test("a.py::test")
    assert report_of(process.finish()).document["monitors"][0]["state"] == "armed"


@pytest.mark.parametrize(
    ("nodeid", "bare"),
    [
        ("a.py::test@gpu", "a.py::test"),
        ("a.py::test[x@y]", "a.py::test[x@y]"),
        ("a.py::test[x@y]@gpu", "a.py::test[x@y]"),
        ("lib@2/a.py::test", "lib@2/a.py::test"),
        ("a@b.py", "a@b.py"),
    ],
)
def test_the_group_of_xdist_is_stripped(nodeid: str, bare: str) -> None:
    assert bare_nodeid(nodeid) == bare


def test_tests_of_a_group_are_one_entry() -> None:
    process = FakeProcess().environment().monitor()
    process.test("a.py::test@gpu", 64)
    report = report_of(process.finish())
    assert the_test(report, "a.py::test")["verdict"] == "violated"
    assert report.document["events"][0]["test"] == "a.py::test"


# -- what did not come to an end ---------------------------------------------------------------------------------------


def test_a_violation_judged_while_it_ran_gets_its_seconds_from_the_end() -> None:
    process = FakeProcess().environment().monitor()
    with process.window("serving", "a.py::test", owner="a.py::test", attempt=1):
        event = process.begin()
        process.now += 5.0
    verdict = Verdict("a.py::test", "unguarded")
    process.judge(verdict, [event], Policy())
    process.records.append(verdict.to_wire())
    process.outcome("a.py::test", "call", "failed")
    assert verdict.to_wire()["violations"][0]["seconds"] is None
    process.end(event, 7.5)
    (violation,) = the_test(report_of(process.finish()), "a.py::test")["violations"]
    assert violation["seconds"] == pytest.approx(7.5)
    assert "still compiling after 5.0 s" in violation["message"]


def killed(phase: str, *, alive: bool = False) -> RunReport:
    process = FakeProcess().environment().monitor()
    process.warmup(16)
    process.test("a.py::test_before")
    process.open(phase, "a.py::test", owner="a.py::test", attempt=1)
    process.begin()
    raw = process.raw
    raw.alive = alive
    return build([raw])


@pytest.mark.parametrize("phase", ["setup", "serving"])
def test_a_process_that_died_leaves_interrupted_tests_and_events(phase: str) -> None:
    report = killed(phase)
    test = the_test(report, "a.py::test")
    assert (report.verdict, test["verdict"], test["outcome"]) == ("interrupted", "interrupted", "interrupted")
    assert [event["status"] for event in report.document["events"]] == ["ok", "interrupted"]
    assert report.document["processes"][0]["died"] is True
    assert report.document["reasons"] == [
        "1 test never came to an end, first a.py::test",
        "pytest (pid 100) ended without a goodbye: it was killed or crashed",
    ]


def test_a_death_in_teardown_keeps_the_verdict() -> None:
    process = FakeProcess().environment().monitor()
    process.test("a.py::test")
    del process.records[-2:]  # the teardown's close and report
    report = report_of(process)
    assert the_test(report, "a.py::test")["verdict"] == "clean"
    assert report.verdict == "interrupted"


def test_a_death_in_the_first_attempt_outranks_the_clean_second_elsewhere() -> None:
    crashed, second = FakeProcess(pid=1, image="one"), FakeProcess(pid=2, image="two", born=2000.0)
    crashed.environment().monitor().open("serving", "a.py::test", owner="a.py::test", attempt=1)
    second.monitor().test("a.py::test")
    test = the_test(report_of(crashed, second.finish()), "a.py::test")
    assert (test["verdict"], len(test["attempts"])) == ("interrupted", 2)


def test_what_is_missing_from_a_run_that_was_killed_proves_nothing() -> None:
    process = FakeProcess().environment().monitor("waiting")
    process.open("warmup", "session")
    report = report_of(process)
    assert (names(report), report.verdict) == ([], "interrupted")


def test_the_process_that_writes_the_report_is_not_dead_and_its_events_still_run() -> None:
    report = killed("teardown", alive=True)
    assert report.document["events"][-1]["status"] == "running"
    assert report.document["processes"][0]["died"] is False
    assert report.passed


@pytest.mark.parametrize(("blocks", "expected"), [((), "interrupted"), ((64,), "violated")])
def test_a_call_that_was_left_by_ctrl_c_is_not_clean(blocks: tuple[int, ...], expected: str) -> None:
    process = FakeProcess().environment().monitor()
    process.test("a.py::test_ctrl_c", *blocks)
    process.records = [r for r in process.records if r["record"] != "outcome" or r["when"] != "call"]
    test = the_test(report_of(process.finish()), "a.py::test_ctrl_c")
    assert (test["verdict"], test["outcome"]) == (expected, "interrupted")


# -- what was lost -----------------------------------------------------------------------------------------------------


def test_lost_records_fail_and_recovered_ones_do_not() -> None:
    process = gap()
    process.records[-1]["lost"] = 2
    assert "journal-incomplete" in names(report_of(process))
    raw = process.raw
    unwritten, raw.records = list(raw.records[-4:-2]), [*raw.records[:-4], *raw.records[-2:], *raw.records[-4:-2]]
    assert len(unwritten) == 2
    raw.recovered = 2
    assert "journal-incomplete" not in names(build([raw]))


def test_records_of_a_process_that_could_not_write_at_all_are_read_from_memory(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    journal = Journal(folder, "pytest")  # the folder does not exist
    assert len(journal.lost) == 1
    (raw,) = read_run(folder, alive={journal.image}, lost={journal.image: journal.lost})
    assert (raw.role, raw.image, raw.recovered) == ("pytest", journal.image, 1)
    assert build([raw]).document["processes"][0]["died"] is False


def test_a_real_journal_is_read_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "pytest")
    for record in gap().records[1:-1]:
        journal.write(record)
    assert build(read_run(tmp_path)).document["processes"][0]["died"] is False, "it still runs"
    of_the_dead = journal.path.read_text().replace(f'"pid":{os.getpid()},', '"pid":4194303,', 1)
    (tmp_path / "dead").mkdir()
    (tmp_path / "dead" / journal.path.name).write_text(of_the_dead)
    assert build(read_run(tmp_path / "dead")).document["processes"][0]["died"] is True
    journal.close()
    report = build(read_run(tmp_path))
    assert report.document["processes"][0]["died"] is False
    assert [test["verdict"] for test in report.document["tests"]] == ["violated", "violated", "clean"]


@pytest.mark.parametrize(
    "record",
    [
        {"record": "begin", "event": "x"},
        {
            "record": "begin",
            **dict.fromkeys(["event", "system", "kind", "kernel", "module", "started", "thread", "parent"], 5),
            **dict.fromkeys(["stack", "launch"], 5),
        },
        {"record": "end", "event": "nobody"},
        {"record": "open", "window": 1},
        {"record": "close", "window": 99, "ended": 1.0},
        {"record": "verdict", "nodeid": "a.py::test"},
        {"record": "outcome"},
        {"record": "monitor", "name": None},
        {"record": "warmup"},
        {"record": "session", "monitors": {}},
        {"record": "finding"},
    ],
)
def test_a_record_that_does_not_fit_is_counted_never_raised(record: dict[str, Any]) -> None:
    process = gap()
    process.records.insert(-1, record)
    report = report_of(process)
    assert len(report.document["processes"][0]["rejected"]) == 1
    assert "journal-incomplete" in names(report)


def test_a_torn_line_is_counted(tmp_path: Path) -> None:
    path = gap().write(tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    report = build(read_run(tmp_path))
    assert len(report.document["processes"][0]["rejected"]) == 1
    assert report.document["processes"][0]["died"] is True
    assert [test["verdict"] for test in report.document["tests"]] == ["violated", "violated", "clean"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), broken=st.booleans())
def test_no_truncation_raises_or_loses_a_complete_record(tmp_path: Path, cut: float, broken: bool) -> None:
    whole = gap().write(tmp_path).read_bytes()
    kept = whole[: int(len(whole) * cut)] + (b"\xff\x00garbage\n{}\n[1]\nnull\n" if broken else b"")
    (tmp_path / "node1-100-1000-aaaa1111.jsonl").write_bytes(kept)
    (raw,) = read_run(tmp_path)
    complete = whole[: int(len(whole) * cut)].count(b"\n")
    assert complete <= len(raw.records) <= complete + 1  # the last line may lack only its end of line
    document = build([raw]).document
    OPEN.validate(json.loads(json_report.render(document)))
    begun = sum(record["record"] == "begin" for record in raw.records)
    assert len(document["events"]) == begun
    judged = {record["nodeid"] for record in raw.records if record["record"] == "verdict"}
    assert judged <= {test["nodeid"] for test in document["tests"] if test["verdict"] != "interrupted"}


# -- the file ----------------------------------------------------------------------------------------------------------


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "deep" / "report.json"
    json_report.write(report_of(gap()).document, target)
    before = target.read_bytes()
    assert json.loads(before)["schema"] == 1
    assert "→".encode() in before

    def refuse(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="no"):
        json_report.write({"schema": 1}, target)
    assert target.read_bytes() == before
    assert [path.name for path in target.parent.iterdir()] == ["report.json"]


def test_json_says_what_json_can_say() -> None:
    text = json_report.render({"a": float("nan"), "b": (1, {"c": Path("/x")}), "d": "\udc80", "e": True})
    assert json.loads(text.encode("utf-8", "backslashreplace")) == {
        "a": None,
        "b": [1, {"c": "/x"}],
        "d": "\udc80",
        "e": True,
    }


def test_the_same_records_give_the_same_document_whatever_the_order_of_processes() -> None:
    one, two = gap(), FakeProcess("xdist worker", 7, "image7", born=3.0).monitor().finish()
    assert json_report.render(report_of(one, two).document) == json_report.render(report_of(two, one).document)


def test_a_run_without_processes_is_a_report_too() -> None:
    report = build([ProcessRecords("", "", [])])
    CLOSED.validate(report.document)
    assert report.verdict == "interrupted"
