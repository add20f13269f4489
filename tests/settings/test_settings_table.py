"""The README's table of settings is the one that the code gives."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import pytest

from pytest_jitguard.core.settings import SETTINGS, Settings, Structured

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
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    written = text.partition(BEGIN)[2].partition(END)[0].strip()
    assert written == table.strip(), "run python tools/settings_table.py --write"


def test_the_settings_of_a_run_are_those_of_the_table_with_its_defaults() -> None:
    of_a_run = {field.name: getattr(Settings(), field.name) for field in dataclasses.fields(Settings)}
    not_in_the_table = {"structured": Structured(), "mode_beats_marker": False}
    assert of_a_run == {setting.name: setting.default for setting in SETTINGS} | not_in_the_table
    assert all(type(of_a_run[setting.name]) is type(setting.default) for setting in SETTINGS)
