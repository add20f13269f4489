"""The README's tour is run as it stands there, and prints what it says it prints."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT, GuardedRun

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, after: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.partition(after)[2], re.DOTALL)


def shape(text: str) -> list[str]:
    """The lines that matter: no durations, no versions, no folders, no rulers, no blank lines."""
    text = re.sub(r"\d+(\.\d+)?( ms| s)\b", "TIME", text)
    text = re.sub(r"(\d+\.)+\d+", "VERSION", re.sub(r"/\S*/jitguard-\w+", "FOLDER", text))
    lines = [re.sub(r"[=_]{2,}", "==", line).strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("platform", "rootdir", "plugins", "configfile"))]
    # How much of a line pytest's short summary leaves away depends on the length of a duration.
    return [re.sub(r" +\[ *\d+%\]|^(JIT .* while serving: ).*", r"\1", line) for line in kept]


@pytest.fixture
def tour(guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch) -> GuardedRun:
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(guarded.path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    serving, tests = blocks("python", "## A tour")[:2]
    (guarded.path / "serving.py").write_text(serving)
    (guarded.path / "test_serving.py").write_text(tests)
    return guarded


def test_the_tour_prints_what_the_readme_says(tour: GuardedRun) -> None:
    command = blocks("console", "## A tour")[0].split()
    result = tour.run(*command[5:], fake=False)
    result.assert_outcomes(failed=1, passed=2)
    shown, printed = shape(blocks("text", "## A tour")[0]), shape("\n".join(result.outlines))
    assert [line for line in shown if line != "..."] == [line for line in printed if line in shown]
    assert len(shown) > 15


def test_the_pasted_entry_turns_the_tour_green(tour: GuardedRun) -> None:
    shown = blocks("text", "## A tour")[0].partition("add this to the warmup:")[2].partition("possible instead")[0]
    body = "\n".join(line for line in shown.splitlines() if line.startswith("    "))
    (tour.path / "cured.py").write_text(f"import serving\n\n\ndef warm_up():\n    serving.warm_up()\n{body}\n")
    result = tour.run("--jitguard-offline=h100", "--jitguard-warmup=cured:warm_up", fake=False)
    result.assert_outcomes(passed=3)
