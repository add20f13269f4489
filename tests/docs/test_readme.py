"""What the README shows is run as it stands there, and prints what it says it prints."""

from __future__ import annotations

import pytest

from tests.conftest import GuardedRun
from tests.docs.pages import blocks, files, page, shape

README = page("README.md")


def test_the_tour_prints_what_the_readme_says(tour: GuardedRun) -> None:
    command = blocks(README, "console", "## A tour")[0].split()
    result = tour.run(*command[5:], fake=False)
    result.assert_outcomes(failed=1, passed=2)
    shown, printed = shape(blocks(README, "text", "## A tour")[0]), shape("\n".join(result.outlines))
    assert [line for line in shown if line != "..."] == [line for line in printed if line in shown]
    assert len(shown) > 15


def test_the_pasted_entry_turns_the_tour_green(tour: GuardedRun) -> None:
    shown = blocks(README, "text", "## A tour")[0].partition("add this to the warmup:")[2]
    body = "\n".join(line for line in shown.partition("possible instead")[0].splitlines() if line.startswith("    "))
    (tour.path / "cured.py").write_text(f"import serving\n\n\ndef warm_up():\n    serving.warm_up()\n{body}\n")
    result = tour.run("--jitguard-offline=h100", "--jitguard-warmup=cured:warm_up", fake=False)
    result.assert_outcomes(passed=3)


def test_the_server_example_is_judged_by_the_lengths_that_it_sends(
    toured: GuardedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is run in place of vLLM is called as vLLM is, and serves the tour's kernel."""
    pytest.importorskip("httpx")
    pytest.importorskip("openai")
    program = toured.path / "bin" / "vllm"
    program.parent.mkdir()
    server = files(page("docs/servers.md"))["tiny_server.py"]
    program.write_text(f"#!{toured.python}\nimport sys\nsys.path.insert(0, {str(toured.path)!r})\n{server}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    (toured.path / "test_server.py").write_text(blocks(README, "python", "## A server")[0])
    result = toured.run("--jitguard-offline=h100", "test_server.py", fake=False)
    result.assert_outcomes(passed=1, failed=2)
    assert toured.verdicts() == {
        "test_prompt_length[32]": "clean",
        "test_prompt_length[500]": "violated",
        "test_any_client": "violated",
    }
    (entry,) = toured.report["servers"]
    assert (entry["name"], entry["argv"][1]) == ("vllm", "serve")
    assert toured.report["children"]["silent"] == []
