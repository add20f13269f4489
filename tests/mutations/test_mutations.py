"""Every safety net removed once, in a copy of the source: a named test must notice.

The product has no switches for this. A mutation is a text replacement; if the text is not there any more, the mutation
itself fails, so that the list cannot rot.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.mutation

COPIED = ("pytest_jitguard", "tests", "examples", "conftest.py", "pyproject.toml")


@dataclass(frozen=True)
class Mutation:
    """What is broken, where, how, and which test must fail for it."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS: tuple[Mutation, ...] = ()


def copy_of_the_source(folder: Path) -> Path:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def run(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "", test]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "JITGUARD"))}
    return subprocess.run(
        command, cwd=folder, env={**environment, "PYTHONPATH": str(folder)}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: re.sub(r"\W+", "-", mutation.name))
def test_a_named_test_notices(mutation: Mutation, tmp_path: Path) -> None:
    folder = copy_of_the_source(tmp_path)
    target = folder / mutation.file
    text = target.read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1, f"{mutation.file} does not have this text exactly once: {mutation.old!r}"
    target.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    done = run(folder, mutation.test)
    # Exit 1 is a test that failed. 2 to 5 would be a mistake of the mutation: a syntax error, a test that is gone.
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-1000:]


def test_the_named_tests_pass_on_an_unbroken_copy(tmp_path: Path) -> None:
    folder = copy_of_the_source(tmp_path)
    for test in sorted({mutation.test for mutation in MUTATIONS}):
        done = run(folder, test)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
