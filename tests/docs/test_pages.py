"""What the pages in docs/ show is run as it stands there, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT, GuardedRun
from tests.docs.pages import blocks, files, page, shape

SERVERS, CHILDREN = page("docs/servers.md"), page("docs/children.md")
PAGES = ("README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))


def write(files: dict[str, str], folder: Path) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def test_the_server_s_example_prints_what_the_page_says(toured: GuardedRun) -> None:
    pytest.importorskip("httpx")
    write(files(SERVERS), toured.path)
    command = blocks(SERVERS, "console")[0].split()
    result = toured.run(*command[5:], fake=False)
    result.assert_outcomes(passed=2, failed=1)
    shown, printed = shape(blocks(SERVERS, "text")[0]), shape("\n".join(result.outlines))
    assert [line for line in shown if line != "..."] == [line for line in printed if line in shown]
    assert len(shown) > 15


def test_the_server_s_other_examples_pass(toured: GuardedRun) -> None:
    pytest.importorskip("httpx")
    write(files(SERVERS), toured.path)
    names = ("test_own_server.py", "test_blocks.py", "test_traffic.py")
    toured.run("--jitguard-offline=h100", *names, fake=False).assert_outcomes(passed=6)
    assert toured.report["findings"] == []
    servers = {server["name"]: server["state"] for server in toured.report["servers"]}
    assert servers == {"own": "stopped", "tiny": "stopped"}


def test_the_cure_by_a_request_turns_the_server_green(toured: GuardedRun) -> None:
    pytest.importorskip("httpx")
    write(files(SERVERS), toured.path)
    conftest = toured.path / "conftest.py"
    (cure,) = re.findall(r"`jitguard_server\(\.\.\., (warmup=.*?)\)`", SERVERS)
    cured = conftest.read_text().replace('model="tiny")', f'model="tiny", {cure})')
    conftest.write_text(f"from pytest_jitguard.traffic.sweeps import sweep\n{cured}")
    toured.run("--jitguard-offline=h100", "test_served.py", fake=False).assert_outcomes(passed=3)


def test_the_engine_in_a_child_is_judged(toured: GuardedRun) -> None:
    write(files(CHILDREN), toured.path)
    result = toured.run("--jitguard-offline=h100", "test_engine.py", fake=False)
    result.assert_outcomes(passed=2, failed=1)
    assert [v["role"] for v in toured.violations("test_request[500]")] == ["engine"]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_what_is_there(name: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", page(name)):
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}#{anchor}"
