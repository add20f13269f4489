"""The README's table of settings is the one that the code gives."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from pytest_jitguard.core.settings import SETTINGS

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- settings -->", "<!-- /settings -->"


@pytest.fixture(scope="module")
def table() -> str:
    return str(runpy.run_path(str(ROOT / "tools" / "settings_table.py"))["settings_table"]())


def test_the_table_has_a_row_for_every_setting_and_as_many_cells_in_each(table: str) -> None:
    rows = table.splitlines()
    assert len(rows) == 2 + len(SETTINGS)
    assert {row.replace("\\|", "").count("|") for row in rows} == {6}
    for setting in SETTINGS:
        assert f"`{setting.option}`" in table
        assert f"`{setting.key}`" in table


def test_the_readme_has_exactly_this_table(table: str) -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    if BEGIN not in text:
        pytest.skip(f"README.md has no {BEGIN}")
    written = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert written == table.strip(), "run python tools/settings_table.py --write"
