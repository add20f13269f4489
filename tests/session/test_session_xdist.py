"""Under pytest-xdist: workers warm up, guard and record; the controller concludes, once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GuardedRun

pytest.importorskip("xdist")
XDIST = ("-p", "xdist", "-n", "2")

SUITE = """
    @pytest.mark.jitguard
    def test_clean(): fakejit.launch("warmed")

    @pytest.mark.jitguard
    def test_violated(): fakejit.launch("cold", n=1)

    @pytest.mark.jitguard
    def test_violated_too(): fakejit.launch("cold", n=1)

    @pytest.mark.jitguard
    @pytest.mark.allow_jit("*:cold", reason="a test")
    def test_allowed(): fakejit.launch("cold", n=1)

    def test_unguarded(): fakejit.launch("cold", n=1)

    @pytest.mark.jitguard
    @pytest.mark.xfail(strict=True)
    def test_expected(): fakejit.launch("cold", n=2)

    @pytest.mark.jitguard
    @pytest.mark.skip
    def test_skipped(): pass

    @pytest.mark.jitguard
    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_many(n): fakejit.launch("warmed")
"""
VERDICTS = {
    "test_clean": "clean",
    "test_violated": "violated",
    "test_violated_too": "violated",
    "test_allowed": "allowed",
    "test_unguarded": "unguarded",
    "test_expected": "violated",
    "test_skipped": "unguarded",
    "test_many[1]": "clean",
    "test_many[2]": "clean",
    "test_many[3]": "clean",
}
WARMUP = "--jitguard-warmup=warm:up"


@pytest.fixture
def warmed(guarded: GuardedRun) -> GuardedRun:
    guarded.pytester.makepyfile(
        warm="""
            import os
            import fakejit

            def up():
                fakejit.launch("warmed")
                with open("warmed.txt", "a") as file:
                    print(os.environ.get("PYTEST_XDIST_WORKER", "main"), file=file)
        """
    )
    guarded.pytester.makeini("[pytest]\npythonpath = .\n")
    return guarded


def warmups_of(run: GuardedRun) -> list[str]:
    return sorted((run.path / "warmed.txt").read_text().split())


@pytest.mark.parametrize(
    ("args", "warmers"),
    [
        pytest.param((), ["main"], id="plain"),
        pytest.param(("-p", "xdist", "-n0"), ["main"], id="n0"),
        pytest.param(("-p", "xdist", "--dist=no"), ["main"], id="dist no"),
        pytest.param((*XDIST, "--dist=no"), ["gw0", "gw1"], id="n2 with dist no"),
        pytest.param(XDIST, ["gw0", "gw1"], id="load"),
        pytest.param((*XDIST, "--dist=loadfile"), ["gw0", "gw1"], id="loadfile"),
        pytest.param((*XDIST, "--dist=worksteal"), ["gw0", "gw1"], id="worksteal"),
        pytest.param(("-p", "xdist", "--dist=each", "--tx=2*popen"), ["gw0", "gw1"], id="each"),
    ],
)
def test_verdicts_are_the_same_however_tests_are_distributed(
    args: tuple[str, ...], warmers: list[str], warmed: GuardedRun
) -> None:
    warmed.suite(SUITE)
    result = warmed.run(WARMUP, *args)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert warmed.verdicts() == VERDICTS
    assert warmups_of(warmed) == warmers, "once per process, before its first test"
    nodeids = [test["nodeid"] for test in warmed.report["tests"]]
    assert len(nodeids) == len(set(nodeids))
    assert warmed.report["verdict"] == "failed"
    assert warmed.report["findings"] == []
    assert result.stdout.str().count("guarded tests, ") == 1, "one summary"
    result.stdout.fnmatch_lines([f"jitguard: fakejit 1.0 armed; warmup *: {len(warmers)} compiled, *"])
    assert {m["name"]: m["state"] for m in warmed.report["monitors"]} == {"fakejit": "armed"}


def test_groups_are_stripped_from_node_ids(guarded: GuardedRun) -> None:
    guarded.suite("""
        @pytest.mark.jitguard
        @pytest.mark.xdist_group("gpu")
        @pytest.mark.parametrize("address", ["a@b", "c"])
        def test_grouped(address): fakejit.launch(address)

        @pytest.mark.jitguard
        def test_alone(): pass
    """)
    result = guarded.run(*XDIST, "--dist=loadgroup")
    result.assert_outcomes(failed=2, passed=1)
    assert guarded.verdicts() == {
        "test_grouped[a@b]": "violated",
        "test_grouped[c]": "violated",
        "test_alone": "clean",
    }
    assert [v["kernel"] for v in guarded.violations("test_grouped[a@b]")] == ["a@b"]


def test_the_first_failure_ends_the_run_without_a_death(warmed: GuardedRun) -> None:
    warmed.suite("""
        @pytest.mark.jitguard
        def test_violated(): fakejit.launch("cold")

        @pytest.mark.jitguard
        @pytest.mark.parametrize("n", range(20))
        def test_slow(n): time.sleep(0.1)
    """)
    result = warmed.run(*XDIST, "-x", WARMUP)
    assert result.ret in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)
    report = warmed.report
    assert not [process for process in report["processes"] if process["died"]]
    assert warmed.verdicts()["test_violated"] == "violated"
    assert report["partial"]
    assert report["verdict"] == "failed"


CRASHES = {
    "exit": ("", "import os; os._exit(3)"),
    "timeout": ("@pytest.mark.timeout(1, method='thread')", "time.sleep(60)"),
}


@pytest.mark.parametrize("how", CRASHES)
def test_a_worker_that_dies_leaves_its_evidence_and_is_replaced_by_one_that_warms_itself(
    how: str, warmed: GuardedRun
) -> None:
    mark, death = CRASHES[how]
    warmed.suite(f"""
        @pytest.mark.jitguard
        def test_before(): fakejit.launch("cold", n=1)

        {mark}
        @pytest.mark.jitguard
        def test_dies():
            fakejit.launch("cold", n=2)
            {death}

        @pytest.mark.jitguard
        @pytest.mark.parametrize("n", [1, 2, 3])
        def test_after(n):
            time.sleep(0.2)
            fakejit.launch("warmed")
    """)
    pytest.importorskip("pytest_timeout")
    result = warmed.run("-p", "xdist", "-p", "pytest_timeout", "-n", "1", WARMUP, "-v")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    report = warmed.report
    assert warmed.verdicts() == {
        "test_before": "violated",
        "test_dies": "interrupted",
        **{f"test_after[{n}]": "clean" for n in (1, 2, 3)},
    }
    assert len(warmups_of(warmed)) == 2
    cut = [event for event in report["events"] if event["test"] == "test_suite.py::test_dies"]
    assert [(event["kernel"], event["status"]) for event in cut] == [("cold", "ok")], "what it compiled is known"
    assert sum(process["died"] for process in report["processes"]) == 1
    result.stdout.fnmatch_lines(["killed or crashed: xdist worker (pid *", "never came to an end: *::test_dies"])
    folder = Path(result.stdout.str().split("; journal: ")[-1].splitlines()[0])
    assert len(list(folder.glob("*.jsonl"))) == 3, "the journals of a death are kept"


def test_a_compile_cut_short_by_a_death_is_interrupted(guarded: GuardedRun) -> None:
    guarded.suite("""
        import os, threading

        @pytest.mark.jitguard
        def test_dies():
            threading.Timer(0.2, os._exit, [1]).start()
            fakejit.launch("slow", seconds=30)
    """)
    guarded.run(*XDIST)
    assert [(e["kernel"], e["status"], e["phase"]) for e in guarded.report["events"]] == [
        ("slow", "interrupted", "serving")
    ]


def test_a_crash_in_the_warmup_is_told_and_fails(warmed: GuardedRun) -> None:
    warmed.suite(SUITE)
    warmed.pytester.makepyfile(fatal="import os\ndef up(): os._exit(5)")
    result = warmed.run("-p", "xdist", "-n", "1", "--max-worker-restart=0", "--jitguard-warmup=fatal:up")
    assert result.ret != 0
    assert warmed.report["verdict"] in ("failed", "interrupted")


def test_reruns_and_the_baseline_work_under_xdist(guarded: GuardedRun) -> None:
    guarded.suite("""
        @pytest.mark.jitguard
        def test_debt(): fakejit.launch("old")

        @pytest.mark.jitguard
        def test_clean(): pass
    """)
    args = ("--jitguard-baseline=debt.json", *XDIST)
    assert guarded.run(*args, "--jitguard-update-baseline").ret == 0
    assert [d["kernel"] for d in json.loads((guarded.path / "debt.json").read_text())["debt"]] == ["fakejit.old"]
    assert guarded.run(*args).ret == 0
    assert guarded.verdicts() == {"test_debt": "known", "test_clean": "clean"}
    guarded.suite("""
        @pytest.mark.jitguard
        def test_debt(): pass

        @pytest.mark.jitguard
        def test_clean(): pass
    """)
    paid = guarded.run(*args)
    assert paid.ret == pytest.ExitCode.TESTS_FAILED
    assert paid.stdout.str().count("\npaid-debt: ") == 1


@pytest.mark.parametrize(
    "some",
    [("-k", "test_clean"), ("--deselect", "tests/test_suite.py::test_debt"), ("tests/test_other.py",), ("others",)],
    ids=lambda some: some[0],
)
def test_debt_that_was_not_asked_for_is_neither_paid_nor_struck(some: tuple[str, ...], guarded: GuardedRun) -> None:
    guarded.pytester.makeini("[pytest]\ntestpaths = tests others\n")
    entry = {"system": "fakejit", "kernel": "fakejit.old", "components": ["never warmed"]}
    debt = guarded.path / "debt.json"
    debt.write_text(json.dumps({"schema": 1, "debt": [entry]}))
    for name in ("tests/test_suite", "tests/test_other", "others/test_third"):
        path = guarded.path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("import fakejit, pytest\npytestmark = pytest.mark.jitguard\ndef test_clean(): pass\n")
    with (guarded.path / "tests/test_suite.py").open("a") as file:
        file.write("def test_debt(): pass\n")
    assert guarded.run("--jitguard-baseline=debt.json", *some).ret == 0
    assert guarded.run("--jitguard-baseline=debt.json", "--jitguard-update-baseline", *some).ret == 0
    assert json.loads(debt.read_text())["debt"] == [entry]
    everything = guarded.run("--jitguard-baseline=debt.json", "tests", "others")
    everything.stdout.fnmatch_lines(["paid-debt: *"])
    assert everything.ret == pytest.ExitCode.TESTS_FAILED


# -- the journal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [(), XDIST], ids=["plain", "xdist"])
def test_a_temporary_journal_goes_after_an_orderly_end(
    args: tuple[str, ...], temporary: Path, guarded: GuardedRun
) -> None:
    guarded.suite(SUITE)
    result = guarded.run(*args)
    result.stdout.fnmatch_lines([f"jitguard *; journal in {temporary}/jitguard-*"])
    assert [path.name for path in temporary.iterdir() if path.name.startswith("jitguard-")] == []


def test_a_usage_error_leaves_no_temporary_folder(temporary: Path, guarded: GuardedRun) -> None:
    guarded.suite("@pytest.mark.jitguard(x=1)\ndef test_a(): pass")
    assert guarded.run("--jitguard-cache=cold").ret == pytest.ExitCode.USAGE_ERROR
    assert guarded.run("--jitguard-cache=cold", "--jitguard-monitors=x").ret == pytest.ExitCode.USAGE_ERROR
    assert [path.name for path in temporary.iterdir() if path.name.startswith("jitguard-")] == []


@pytest.mark.parametrize("args", [(), XDIST], ids=["plain", "xdist"])
def test_a_journal_folder_that_was_asked_for_stays(args: tuple[str, ...], guarded: GuardedRun) -> None:
    guarded.suite(SUITE)
    times = 1 if args else 2
    for _ in range(times):
        guarded.run("--jitguard-journal=journals", *args)
    runs = sorted((guarded.path / "journals").iterdir())
    assert len(runs) == times, "a folder for each run"
    for run in runs:
        journals = list(run.glob("*.jsonl"))
        assert len(journals) == (3 if args else 1)
        assert all(journal.stat().st_mode & 0o077 == 0 for journal in journals), "for its user's eyes only"
        for journal in journals:
            records = [json.loads(line)["record"] for line in journal.read_text().splitlines()]
            assert (records[0], records[-1]) == ("hello", "bye")


def test_a_killed_run_leaves_a_journal_whose_place_was_printed_and_that_can_be_reported(
    temporary: Path, guarded: GuardedRun
) -> None:
    guarded.suite("""
        from pathlib import Path

        @pytest.mark.jitguard
        def test_violated(): fakejit.launch("cold")

        @pytest.mark.jitguard
        def test_endless():
            Path("running").touch()
            fakejit.launch("slow", seconds=60)
    """)
    command = [sys.executable, "-m", "pytest", *guarded.plugins, "--jitguard"]
    command += ["--jitguard-monitors=fakejit_monitor:FakeMonitor"]
    with (guarded.path / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, cwd=guarded.path, stdout=output)
        _wait_for(guarded.path / "running")
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    text = (guarded.path / "output.txt").read_text()
    folder = Path(text.split("; journal in ")[1].splitlines()[0])
    assert folder.parent == temporary
    report = guarded.path / "late.json"
    done = subprocess.run(
        [sys.executable, "-m", "pytest_jitguard", "report", str(folder), "--json", str(report)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    document: Any = json.loads(report.read_text())
    verdicts = {test["nodeid"].rpartition("::")[2]: test["verdict"] for test in document["tests"]}
    assert verdicts == {"test_violated": "violated", "test_endless": "interrupted"}
    assert [event["status"] for event in document["events"]] == ["ok", "interrupted"]


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interrupt_from_the_keyboard_writes_the_report(guarded: GuardedRun) -> None:
    guarded.suite("""
        @pytest.mark.jitguard
        def test_violated(): fakejit.launch("cold")

        @pytest.mark.jitguard
        def test_stopped(): raise KeyboardInterrupt

        @pytest.mark.jitguard
        def test_never(): pass
    """)
    assert guarded.run().ret == pytest.ExitCode.INTERRUPTED
    verdicts = guarded.verdicts()
    assert verdicts["test_violated"] == "violated"
    assert "test_never" not in verdicts
    assert guarded.report["verdict"] == "failed"
    assert guarded.report["findings"] == []
