"""`python -m pytest_jitguard report DIR`: the report of a run from its journals, however the run ended."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_jitguard.core.baseline import BaselineError, Debt, parse
from pytest_jitguard.reporters import json_report, markdown, terminal
from pytest_jitguard.reporters.model import RunReport, build, read_run

EXIT_PASSED, EXIT_FAILED, EXIT_UNUSABLE = 0, 1, 2


class Unusable(Exception):
    """What was asked for cannot be done; the message says what is missing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if the run passed, 1 if it failed or was cut short, 2 if there is nothing to report."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # arrows, on a terminal that has none
    options = _parser().parse_args(arguments)
    try:
        return report(options)
    except Unusable as error:
        print(f"jitguard: {error}", file=sys.stderr)
        return EXIT_UNUSABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pytest_jitguard")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("report", help="report on a run from its journals, even if it was killed")
    command.add_argument("folder", type=Path, metavar="DIR", help="folder with the journals of the run's processes")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    command.add_argument("--markdown", type=Path, metavar="FILE", help="append the report as Markdown")
    command.add_argument("--baseline", type=Path, metavar="FILE", help="known debt, to say which of it was paid")
    command.add_argument("-v", "--verbose", action="count", default=0, help="show every violation in detail")
    return parser


def report(options: argparse.Namespace) -> int:
    """Read the journals, print the summary, write what was asked for."""
    folder = _run_in(options.folder)
    try:
        processes = read_run(folder)
    except OSError as error:
        raise Unusable(f"cannot read the journals: {error}") from error
    if not processes:
        raise Unusable(f"{folder} holds no journals (*.jsonl); expected the journal folder of a run")
    built = build(processes, baseline_debts=_debts(options.baseline))
    places = {"journal": folder, "JSON": options.json, "Markdown": options.markdown}
    shown = {what: str(where) for what, where in places.items() if where}
    width = shutil.get_terminal_size((100, 24)).columns
    print(f"jitguard: {built.verdict}")
    for text, _ in terminal.summary(built, options.verbose, width, places=shown):
        print(text)
    _write(built, options)
    return EXIT_PASSED if built.passed else EXIT_FAILED


def _run_in(folder: Path) -> Path:
    """Return the folder of a run: the one given, or the last of the runs in a folder given as --jitguard-journal."""
    if not folder.is_dir():
        raise Unusable(f"{folder} is not a folder; expected the journal folder of a run")
    runs = sorted({journal.parent for journal in folder.glob("run-*/*.jsonl")}, key=lambda run: run.stat().st_mtime)
    if any(folder.glob("*.jsonl")) or not runs:
        return folder
    print(f"{folder} holds {len(runs)} run{'s' if len(runs) != 1 else ''}; this is the last, {runs[-1].name}")
    return runs[-1]


def _debts(path: Path | None) -> frozenset[Debt] | None:
    if path is None:
        return None
    try:
        return parse(path.read_text(encoding="utf-8")).debts
    except (OSError, UnicodeDecodeError) as error:
        raise Unusable(f"cannot read the baseline {path}: {error}") from error
    except BaselineError as error:
        raise Unusable(f"the baseline {path} {error}") from error


def _write(built: RunReport, options: argparse.Namespace) -> None:
    try:
        if options.json:
            json_report.write(built.document, options.json)
        if options.markdown:
            markdown.append(options.markdown, markdown.render(built, markdown.room_in(options.markdown)))
    except OSError as error:
        raise Unusable(f"cannot write the report: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
