"""Runs that would be green for the wrong reason: what tests do to time, folders and processes hides no compile."""

from __future__ import annotations

import json
import time

import pytest

from pytest_jitguard.processes import proc
from tests.serving.conftest import ServedRun

CHILD = """
def child(code):
    import subprocess
    subprocess.run([sys.executable, "-c", "import fakejit; " + code], check=True)
"""


@pytest.mark.parametrize("clock", ["lambda: 0.0", "lambda: 1e12"])
def test_a_replaced_clock_hides_nothing(clock: str, served: ServedRun) -> None:
    served.suite(
        CHILD
        + f"""
@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr("time.monotonic", {clock})

@pytest.mark.jitguard
def test_own(clock):
    fakejit.launch("own")

@pytest.mark.jitguard
def test_child(clock):
    child("fakejit.launch('k')")

@pytest.mark.jitguard
def test_forked(clock):
    import multiprocessing
    process = multiprocessing.get_context("fork").Process(target=fakejit.launch, args=("forked",))
    process.start(), process.join()
"""
    )
    served.run()
    assert set(served.verdicts().values()) == {"violated"}


def test_replaced_builtins_do_not_reach_the_test_through_us(served: ServedRun) -> None:
    served.suite(
        """
        @pytest.mark.jitguard
        def test_it(monkeypatch):
            import subprocess, unittest.mock
            code = "import fakejit; fakejit.launch('slow', seconds=60)"
            process = subprocess.Popen([sys.executable, "-c", code])
            time.sleep(2)
            monkeypatch.setattr("builtins.open", unittest.mock.mock_open(read_data="x"))
            monkeypatch.setattr("socket.gethostname", lambda: 1 / 0)
            threading.Timer(1, process.kill).start()
        """
    )
    served.run().stdout.fnmatch_lines(["*slow (fakejit) still compiling*"])
    assert served.verdicts() == {"test_it": "violated"}


def test_a_run_of_pytest_inside_a_test_does_not_end_ours(served: ServedRun) -> None:
    served.suite(
        """
        import multiprocessing

        @pytest.mark.jitguard
        def test_inner(tmp_path):
            (tmp_path / "test_x.py").write_text("def test_x(): pass")
            ours = ["-p", "pytest_jitguard.plugin", "--jitguard", "--jitguard-monitors=fakejit_monitor:FakeMonitor"]
            pytest.main([*ours, "--rootdir", str(tmp_path), str(tmp_path)])

        @pytest.mark.jitguard
        def test_forked():
            process = multiprocessing.get_context("fork").Process(target=fakejit.launch, args=("k",))
            process.start(), process.join()
        """
    )
    served.run()
    assert served.verdicts() == {"test_inner": "clean", "test_forked": "violated"}


def test_a_process_that_becomes_one_which_cannot_report_is_named(served: ServedRun) -> None:
    served.suite(
        CHILD
        + """
@pytest.mark.jitguard
def test_it():
    child("import os, sys; os.execv(sys.executable, [sys.executable, '-S', '-c', 'pass'])")
    child("import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'pass'])")
    child('''
import os
os.access = lambda *_: True
try:
    os.execv("/nowhere/python", ["python", "-c", ""])
except OSError:
    pass
''')
    fakejit.launch
"""
    )
    result = served.run("--jitguard-children=require")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["children: 1 of 3 Python processes did not report: * -S -c pass *"])


def test_a_child_from_before_the_guard_is_named(served: ServedRun) -> None:
    served.pytester.makeconftest(
        """
        import multiprocessing, fakejit
        HERE, THERE = multiprocessing.Pipe()
        def work():
            fakejit.launch(THERE.recv())
            THERE.send("done")
        PROCESS = multiprocessing.get_context("fork").Process(target=work)
        PROCESS.start()
        """
    )
    served.suite(
        """
        @pytest.mark.jitguard
        def test_it():
            from conftest import HERE, PROCESS
            HERE.send("k")
            HERE.recv()
            PROCESS.join()
        """
    )
    result = served.run("--jitguard-children=require")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["children: 1 of 1 Python process did not report: *"])


def test_a_deleted_folder_is_no_clean_run(served: ServedRun) -> None:
    served.suite(
        CHILD
        + """
@pytest.mark.jitguard
def test_it():
    import json, os, shutil
    child("fakejit.launch('k')")
    shutil.rmtree(json.loads(os.environ["JITGUARD_PARENT"])["folder"])
"""
    )
    result = served.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["journal-incomplete: somebody deleted *"])


def test_no_folder_stays(served: ServedRun) -> None:
    served.suite(
        """
        @pytest.mark.jitguard
        def test_it():
            import multiprocessing
            process = multiprocessing.get_context("forkserver").Process(target=int)
            process.start(), process.join()
        """
    )
    assert served.run().ret == 0
    until = time.monotonic() + 20
    while _trackers(str(served.path)) and time.monotonic() < until:
        time.sleep(0.05)
    assert list((served.path / "tmp").glob("jitguard-*")) == []


def _trackers(path: str) -> list[int]:
    return [pid for pid in proc.pids() if path.encode() in proc.environment_of(pid)]


FORGED = [
    '{"record": "hello", "scope": [1]}',
    '{"record": ["hello"]}',
    "[" * 200_000,
    '{"record": "hello", "guard": "GUARD", "image": {"a": 1}, "pid": 1e400, "host": 5, "monotonic": "x", "time": []}',
]


@pytest.mark.parametrize(
    ("first", "line"),
    [
        (True, FORGED[0]),
        (True, FORGED[1]),
        (True, FORGED[2]),
        (True, FORGED[3]),
        (False, FORGED[1]),
        (False, FORGED[2]),
    ],
    ids=["scope", "kind", "depth", "hello", "later kind", "later depth"],
)
def test_forged_records_break_nothing(line: str, first: bool, served: ServedRun) -> None:
    (served.path / "line.json").write_text(json.dumps(line))
    served.suite(
        f"""
        import json, os, pathlib

        @pytest.mark.jitguard
        def test_it():
            told = json.loads(os.environ["JITGUARD_PARENT"])
            line = json.loads(pathlib.Path("line.json").read_text()).replace("GUARD", told["guard"])
            facts = dict(guard=told["guard"], image="12345678", pid=1, host="h", role="child")
            good = json.dumps(dict(record="hello", **facts))
            (pathlib.Path(told["folder"]) / "x.jsonl").write_text(("" if {first} else good + "\\n") + line + "\\n")
            fakejit.launch
        """
    )
    result = served.run()
    assert result.ret == 1
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    assert "Traceback" not in result.stderr.str()
    assert served.verdicts() == {"test_it": "clean"}
    assert [finding["name"] for finding in served.report["findings"]] == ["journal-incomplete"]


def test_a_rank_that_was_seen_doing_nothing_and_said_no_goodbye_is_named(served: ServedRun) -> None:
    served.suite(
        """
        @pytest.mark.jitguard
        def test_it(jitguard_server, tmp_path):
            line = "    import fakejit\\n"
            text = open(COMMAND[1]).read().replace(line, line + "    fakejit.hide_hook()\\n", 1)
            (tmp_path / "server.py").write_text(text)
            fakejit.launch
            with jitguard_server([sys.executable, str(tmp_path / "server.py"), *COMMAND[2:]], model="m") as server:
                server.drive([ask(["k"])])
        """
    )
    served.run().stdout.fnmatch_lines(["warning: unproven: monitors that saw nothing, *fakejit in *"])


def test_a_script_named_like_what_we_import_may_run(served: ServedRun) -> None:
    served.suite(
        """
        @pytest.mark.jitguard
        def test_it(tmp_path):
            import os, subprocess
            (tmp_path / "wrapt.py").write_text("raise SystemExit(9)")
            path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
            subprocess.run([sys.executable, "-c", "pass"], env={**os.environ, "PYTHONPATH": path}, check=True)
            fakejit.launch
        """
    )
    assert served.run().ret == 0
