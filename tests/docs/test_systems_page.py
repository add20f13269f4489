"""The table of systems is the one that the tests and the monitors give, and no system is without evidence."""

from __future__ import annotations

import runpy
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pytest_jitguard.monitors import Monitor, Tells
from tests.conftest import ROOT

TOOL: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "systems_table.py"))
PAGE = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
LEAST = ("compile", "name", "seconds", "failed", "uninstall", "blind", "no_frames")
"""What must be shown of every system, somewhere."""


class Example(Monitor):
    """Watches an example.

    Does not see
    what it cannot see.
    """

    name, target, tested, distribution = "example", "example.jit", ">=1,<2", "example-jit"
    tells = Tells(identity="function", key="arguments")

    def refuse(self, on: bool) -> None:
        """Have it raise."""


def test_the_page_has_exactly_what_the_tool_prints() -> None:
    assert (PAGE.count(TOOL["BEGIN"]), PAGE.count(TOOL["END"])) == (1, 1)
    written = PAGE.partition(TOOL["BEGIN"])[2].partition(TOOL["END"])[0].strip()
    printed = TOOL["page_part"](TOOL["monitors"](), TOOL["evidence"]()).strip()
    assert written == printed, "run python tools/systems_table.py --write"


@pytest.mark.parametrize("name", TOOL["monitors"]())
def test_every_system_has_evidence_and_says_what_it_tells(name: str) -> None:
    shown = {one.fact for one in TOOL["evidence"]() if one.system == name}
    assert set(LEAST) <= shown, f"no test shows {', '.join(sorted(set(LEAST) - shown))} of {name}"
    kind = TOOL["monitors"]()[name]
    assert isinstance(kind.tells, Tells)
    assert kind.tested


def test_tests_tell_of_systems_that_there_are() -> None:
    strange = {one.system: one.test for one in TOOL["evidence"]() if one.system not in TOOL["BUILTIN"]}
    assert not strange


def said_by(folder: Path, text: str) -> list[Any]:
    tests = folder / "tests"
    tests.mkdir()
    (tests / "test_it.py").write_text(f"import pytest\n{textwrap.dedent(text)}")
    return list(TOOL["evidence"](tests))


def test_marks_are_read_from_functions_classes_and_modules(tmp_path: Path) -> None:
    shown = said_by(
        tmp_path,
        """
        FACTS = ("name", "seconds")
        SYSTEM = "example"
        pytestmark = [pytest.mark.tells("example", "hit"), pytest.mark.skipif(False, reason="")]

        @pytest.mark.tells(SYSTEM, "compile", *FACTS)
        def test_it(): pass

        @pytest.mark.gpu
        class TestOnGpu:
            @pytest.mark.tells("example", "key")
            def test_it(self): pass

        @pytest.mark.heavy
        @pytest.mark.tells("example", "key", "failed")
        class TestHeavy: pass

        @pytest.mark.tells("example", "blind")
        def no_test(): pass
        """,
    )
    told = {(one.fact, one.where, one.test.partition("::")[2]) for one in shown}
    assert told == {
        ("hit", "", ""),
        *((fact, "", "test_it") for fact in ("compile", "name", "seconds")),
        ("key", "gpu", "TestOnGpu::test_it"),
        ("key", "heavy", "TestHeavy"),
        ("failed", "heavy", "TestHeavy"),
    }
    row = TOOL["systems_table"]({"example": Example}, shown).splitlines()[2]
    cells = dict(zip(["System", "Tested", *TOOL["COLUMNS"], "Other"], row.strip("| ").split("|"), strict=False))
    filled = {name: cell.strip() for name, cell in cells.items() if cell.strip()}
    assert filled.pop("System") == "[example](#example)"
    assert filled == {
        "Tested": "example-jit >=1,<2",
        "Cold compile": "✓",
        "Hit": "✓",
        "Disk load": "–",
        "Failed": "heavy",
        "Name, seconds": "✓",
        "Key": "heavy",
    }


def test_a_module_s_mark_counts_for_its_tests(tmp_path: Path) -> None:
    text = 'pytestmark = pytest.mark.gpu\n@pytest.mark.tells("example", "compile")\ndef test_it(): pass\n'
    (one,) = said_by(tmp_path, text)
    assert (one.where, one.fact) == ("gpu", "compile")


@pytest.mark.parametrize("mark", ['"example"', '"example", "complie"', '"example", 7', ""])
def test_a_mark_that_says_nothing_is_an_error(tmp_path: Path, mark: str) -> None:
    with pytest.raises((SystemExit, TypeError)):
        said_by(tmp_path, f"@pytest.mark.tells({mark})\ndef test_it(): pass\n")


def test_a_section_has_the_switch_and_the_caveats() -> None:
    part = TOOL["page_part"]({"example": Example}, [])
    assert "## example\n" in part
    assert "Does not see what it cannot see." in part
    assert "- Refuses to compile, where asked: Have it raise." in part
    assert "- Named by: function" in part
