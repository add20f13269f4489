"""Prints the README's table of settings, from the one list of settings; with --write it goes into the README."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- settings -->", "<!-- /settings -->"

sys.path.insert(0, str(ROOT))  # so that it runs without an installation

from pytest_jitguard.core.settings import SETTINGS, Setting  # noqa: E402


def settings_table() -> str:
    """Return the Markdown table: option, ini value, what it does, what it takes, default."""
    rows = [
        ("Option", "Ini value", "What it does", "Takes", "Default"),
        ("---", "---", "---", "---", "---"),
        *(_row(setting) for setting in SETTINGS),
    ]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows) + "\n"


def _row(setting: Setting) -> tuple[str, ...]:
    option = f"`{setting.option}`"
    if setting.form == "flag":
        option += f", `--no-{setting.option[2:]}`"
    return option, f"`{setting.key}`", setting.help, setting.expects(), _default(setting.default)


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    return f"`{text}`" if value else "none"


def write(readme: Path) -> None:
    """Put the table between its two marks in the README."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{readme} has no {BEGIN} with {END} behind it")
    readme.write_text(f"{before}{begin}\n{settings_table()}{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write(ROOT / "README.md")
    else:
        print(settings_table(), end="")
