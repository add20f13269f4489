"""What the documentation's pages show: programs to run, commands, and what they print."""

from __future__ import annotations

import re

from tests.conftest import ROOT


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str, after: str = "") -> list[str]:
    """Return the code blocks of a page from a heading on."""
    return re.findall(rf"```{language}\n(.*?)```", text.partition(after)[2] if after else text, re.DOTALL)


def files(text: str) -> dict[str, str]:
    """Return the Python blocks that say in their first line which file they are."""
    found = (re.match(r"# (\w+\.py)\n", block) for block in blocks(text, "python"))
    return {match[1]: match.string for match in found if match}


def shape(text: str) -> list[str]:
    """The lines that matter: no durations, versions, folders, process ids, rulers and blank lines."""
    text = re.sub(r"\d+(\.\d+)?( ms| s)\b", "TIME", text)
    text = re.sub(r"(\d+\.)+\d+", "VERSION", re.sub(r"/\S*/jitguard-\w+", "FOLDER", text))
    text = re.sub(r"\(pid \d+\)", "(pid N)", text)
    lines = [re.sub(r"[=_]{2,}", "==", line).strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("platform", "rootdir", "plugins", "configfile"))]
    # How much of a line pytest's short summary leaves away depends on the length of a duration.
    return [re.sub(r" +\[ *\d+%\]|^(JIT .* while serving: ).*", r"\1", line) for line in kept]
