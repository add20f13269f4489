"""What a run shows: header, letters, violations when they happen, the summary, and documents for machines."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.conftest import GuardedRun

XDIST = pytest.param(("-p", "xdist", "-n", "2"), id="xdist")
PLAIN = pytest.param((), id="plain")
both = pytest.mark.parametrize("extra", [PLAIN, XDIST])

SUITE = """
    @pytest.mark.jitguard
    def test_clean(): pass

    @pytest.mark.jitguard
    def test_violated():
        fakejit.launch("cold", n=1)
        fakejit.launch("icy", n=1)
"""


def section(result: pytest.RunResult) -> list[str]:
    """Return the lines of the summary section."""
    lines = result.outlines
    start = next(i for i, line in enumerate(lines) if re.fullmatch(r"=+ jitguard =+", line))
    end = next(i for i, line in enumerate(lines[start + 1 :], start + 1) if re.match(r"=+ .* =+$", line))
    return lines[start + 1 : end]


@both
def test_one_header_line_one_line_after_the_warmup_and_each_violation_when_it_happens(
    extra: tuple[str, ...], guarded: GuardedRun
) -> None:
    guarded.suite(SUITE)
    result = guarded.run(*extra)
    text = result.stdout.str()
    head = [line for line in result.outlines if line.startswith("jitguard ")]
    assert len(head) == 1
    assert re.match(r"jitguard \S+: mode fail; guarding marked tests; warmup not configured; cache keep; ", head[0])
    assert text.count("jitguard: fakejit 1.0 armed; no warmup configured\n") == 1
    happened = "jitguard: test_suite.py::test_violated: "
    assert text.count(happened) == 1
    assert re.search(f"^{re.escape(happened)}", text, re.MULTILINE), "on a line of its own"
    assert text.index(happened) < text.index("= FAILURES =") < text.index("= jitguard =")
    if not extra:
        guarded.suite("@pytest.mark.jitguard\ndef test_clean(): pass")
        assert "" not in section(guarded.run()), "no empty line, whatever stood before"


def test_the_letter_is_j_and_the_word_is_jit_but_it_counts_as_failed(guarded: GuardedRun) -> None:
    guarded.suite(SUITE)
    result = guarded.run("-rA")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.re_match_lines([r"test_suite\.py \.J"])
    result.stdout.fnmatch_lines(["JIT test_suite.py::test_violated - UnexpectedCompile: 2 unexpected compiles, *"])
    verbose = guarded.run("-v")
    verbose.stdout.fnmatch_lines(["test_suite.py::test_violated JIT*"])
    verbose.stdout.fnmatch_lines(["  *test_suite.py::test_violated*"])


def test_a_test_that_fails_by_itself_keeps_the_letter_f(guarded: GuardedRun) -> None:
    guarded.suite("@pytest.mark.jitguard\ndef test_broken(): assert 0")
    guarded.run().stdout.re_match_lines([r"test_suite\.py F"])


def test_a_quiet_run_has_no_header_but_says_what_happened(guarded: GuardedRun) -> None:
    guarded.suite(SUITE)
    quiet = guarded.run("-q")
    quiet.stdout.no_fnmatch_line("jitguard [0-9]*")
    quiet.stdout.fnmatch_lines(["jitguard: test_suite.py::test_violated: *", "unexpected: 2 compiles in 1 of 2 *"])
    silent = guarded.run("-qqq")
    silent.stdout.no_fnmatch_line("jitguard: test_suite*")
    assert silent.ret == pytest.ExitCode.TESTS_FAILED


def test_without_a_terminal_verdicts_and_documents_are_the_same(guarded: GuardedRun) -> None:
    guarded.suite(SUITE)
    result = guarded.run("-p", "no:terminal", "--jitguard-markdown=report.md")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.stdout.str() == ""
    assert guarded.verdicts() == {"test_clean": "clean", "test_violated": "violated"}
    assert "test_violated" in (guarded.path / "report.md").read_text()


def test_the_summary_has_at_most_twenty_lines_and_all_of_them_with_v(guarded: GuardedRun) -> None:
    guarded.suite("""
        @pytest.mark.jitguard
        @pytest.mark.parametrize("n", range(40))
        def test_violated(n): fakejit.launch(f"kernel_{n}", seconds=0.1 * (n == 7))
    """)
    lines = section(guarded.run("--jitguard-markdown=report.md", "--jitguard-journal=journals", "--tb=no", "-rN"))
    assert len(lines) <= 20
    assert lines[0].startswith("unexpected: 40 compiles in 40 of 40 guarded tests")
    assert lines[1].startswith("kernel_7: "), "the worst comes first"
    assert any(line.startswith("… and ") and "(-v shows all)" in line for line in lines)
    written = lines[-1]
    for what in ("JSON: ", "Markdown: ", "journal: "):
        assert what in written
    verbose = "\n".join(section(guarded.run("-v", "--tb=no", "-rN")))
    assert all(f"kernel_{n}: " in verbose for n in range(40))


@both
def test_junit_has_the_verdict_as_properties(extra: tuple[str, ...], guarded: GuardedRun) -> None:
    guarded.suite(SUITE + "\n    def test_unguarded(): fakejit.launch('other')\n")
    guarded.run("--junitxml=junit.xml", *extra)
    cases = ET.parse(guarded.path / "junit.xml").getroot().iter("testcase")
    properties = {
        str(case.get("name")): {str(p.get("name")): str(p.get("value")) for p in case.iter("property")}
        for case in cases
    }
    assert properties["test_clean"] == {
        "jitguard.verdict": "clean",
        "jitguard.compiles": "0",
        "jitguard.kernels": "",
    }
    assert properties["test_violated"] == {
        "jitguard.verdict": "violated",
        "jitguard.compiles": "2",
        "jitguard.kernels": "cold,icy",
    }
    assert properties["test_unguarded"]["jitguard.verdict"] == "unguarded"


@both
def test_markdown_is_appended_where_asked_and_to_the_step_summary_of_github_once(
    extra: tuple[str, ...], guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, asked = guarded.path / "summary.md", guarded.path / "asked.md"
    summary.write_text("what a step before wrote\n")
    asked.write_text("kept\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    guarded.suite(SUITE)
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    guarded.run()
    assert summary.read_text() == "what a step before wrote\n"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    guarded.run(*extra, "--jitguard-markdown=asked.md")
    for path, before in ((summary, "what a step before wrote\n"), (asked, "kept\n")):
        text = path.read_text()
        assert text.startswith(before)
        assert text.count("## jitguard: failed") == 1


def test_a_step_summary_that_cannot_be_written_does_not_lose_the_other_documents(
    guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(guarded.path))
    guarded.suite(SUITE)
    result = guarded.run()
    result.stdout.fnmatch_lines(["GitHub step summary * could not be written: Is a directory"])
    assert guarded.report["verdict"] == "failed"


@both
def test_the_document_fits_its_schema(extra: tuple[str, ...], guarded: GuardedRun) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = Path(__file__).parents[2] / "pytest_jitguard" / "reporters" / "schema.json"
    guarded.suite(SUITE)
    guarded.run(*extra)
    jsonschema.validate(guarded.report, json.loads(schema.read_text()))


def test_xdist_workers_print_nothing_of_their_own(guarded: GuardedRun) -> None:
    guarded.suite(SUITE)
    result = guarded.run("-p", "xdist", "-n", "2", "-s")
    assert result.stdout.str().count("jitguard: test_suite.py::test_violated: ") == 1
    assert result.stderr.str() == ""
