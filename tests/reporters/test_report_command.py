from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from report_builders import FakeProcess, gap

from pytest_jitguard.__main__ import main
from pytest_jitguard.core.baseline import Debt, render


def clean() -> FakeProcess:
    process = FakeProcess().environment().monitor()
    process.test("a.py::test")
    return process.finish()


def test_a_run_that_passed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean().write(tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "jitguard: passed",
        "1 guarded test, no unexpected compile in 7 launches",
    ]


def test_a_run_that_was_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = FakeProcess().environment().monitor()
    process.open("serving", "a.py::test", owner="a.py::test", attempt=1)
    process.begin()
    process.write(tmp_path)
    target, text = tmp_path / "report.json", tmp_path / "report.md"
    assert main(["report", str(tmp_path), "--json", str(target), "--markdown", str(text)]) == 1
    document = json.loads(target.read_text())
    assert document["verdict"] == "interrupted"
    assert document["tests"][0]["verdict"] == "interrupted"
    assert document["events"][0]["status"] == "interrupted"
    assert "never came to an end" in text.read_text()
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "jitguard: interrupted"
    assert out[-1] == f"journal: {tmp_path}; JSON: {target}; Markdown: {text}"


def test_paid_debt_is_told_with_the_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean().write(tmp_path)
    baseline = tmp_path / "debt.json"
    baseline.write_text(render([Debt("triton", "layer.gone", ("never warmed",))]))
    assert main(["report", str(tmp_path), "--baseline", str(baseline)]) == 1
    assert "paid-debt: known debt did not show any more: triton:layer.gone (never warmed)" in capsys.readouterr().out


def test_of_several_runs_the_last_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, process in (("run-1", gap()), ("run-2", clean())):
        (tmp_path / name).mkdir()
        process.write(tmp_path / name)
    os.utime(tmp_path / "run-1", (1, 1))
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{tmp_path} holds 2 runs; this is the last, run-2"


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        ("", ["gone"], "gone is not a folder; expected the journal folder of a run"),
        ("empty", ["."], "holds no journals (*.jsonl); expected the journal folder of a run"),
        ("run", [".", "--baseline", "gone"], "cannot read the baseline gone"),
        ("run", [".", "--baseline", "bad"], "the baseline bad is not JSON"),
        ("run", [".", "--json", "/dev/null/x/report.json"], "cannot write the report"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prepare: str,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if prepare == "run":
        clean().write(tmp_path)
        Path("bad").write_text("{")
    assert main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_it_runs_as_a_module_without_pytest_and_on_an_ascii_terminal(tmp_path: Path) -> None:
    gap().write(tmp_path)
    code = (
        "import runpy, sys\n"
        "sys.argv = ['x', 'report', sys.argv[1], '-v']\n"
        "try: runpy.run_module('pytest_jitguard', run_name='__main__')\n"
        "finally: print(sorted({'pytest', '_pytest', 'torch', 'triton', 'wrapt'} & set(sys.modules)))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": "", "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (1, "")
    assert "BLOCK_SIZE_M 16 \\u2192 64" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "[]"
