"""Prints what is told of each JIT system, as the tests show it; with --write it goes into docs/systems.md.

A test says what it shows by `@pytest.mark.tells("system", "fact", ...)`. The marks are read from the sources of the
tests, so that the table is the same where a library or a GPU is missing.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- systems -->", "<!-- /systems -->"

sys.path.insert(0, str(ROOT))  # so that it runs without an installation

from pytest_jitguard.monitors import BUILTIN, Monitor, Tells, load  # noqa: E402

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "Cold compile": ("compile",),
    "Hit": ("hit",),
    "Disk load": ("cache_load",),
    "Failed": ("failed",),
    "Name, seconds": ("name", "seconds"),
    "Key": ("key",),
    "Cause": ("reason",),
    "Cure": ("cure",),
    "Threads": ("threads",),
    "Children": ("children",),
    "Parts": ("parts",),
    "Refuses": ("refuse",),
    "Blindness": ("blind",),
    "No trace": ("uninstall",),
    "No cost": ("no_frames",),
}
OTHER_KINDS = ("autotune", "fallback", "download", "graph_capture", "device_load", "lock_wait")
FACTS = (*(fact for facts in COLUMNS.values() for fact in facts), *OTHER_KINDS)
"""What a test can say that it shows."""

WHERE = ("", "heavy", "gpu")
"""Where a fact is shown, from the best to the worst: by the default tests, with heavy packages, on a GPU."""

YES, NO, UNSHOWN = "✓", "–", ""


class Evidence(NamedTuple):
    """One fact about one system, and the test that shows it."""

    system: str
    fact: str
    where: str
    test: str


# -- what the tests say ------------------------------------------------------------------------------------------------


def evidence(folder: Path = ROOT / "tests") -> list[Evidence]:
    """Return what the tests under a folder say that they show."""
    return [one for path in sorted(folder.rglob("*.py")) for one in _of_file(path, folder.parent)]


def _of_file(path: Path, root: Path) -> Iterator[Evidence]:
    text = path.read_text(encoding="utf-8")
    if ".tells(" in text:
        tree = ast.parse(text)
        yield from _of_body(tree.body, _module_marks(tree.body), _constants(tree), str(path.relative_to(root)))


def _of_body(
    body: Sequence[ast.stmt], around: list[ast.expr], known: Mapping[str, object], where: str
) -> Iterator[Evidence]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            marks = [*around, *node.decorator_list]
            inner = [*marks, *_module_marks(node.body)] if isinstance(node, ast.ClassDef) else marks
            tests = isinstance(node, ast.ClassDef) or node.name.startswith("test")
            if tests:
                yield from _of_marks(node.decorator_list, inner, known, f"{where}::{node.name}")
            if isinstance(node, ast.ClassDef):
                yield from _of_body(node.body, inner, known, f"{where}::{node.name}")
    yield from _of_marks(_module_marks(body), around, known, where)


def _of_marks(
    marks: list[ast.expr], around: list[ast.expr], known: Mapping[str, object], test: str
) -> Iterator[Evidence]:
    where = next((name for name in ("gpu", "heavy") if _is_marked([*around, *marks], name)), "")
    for call in (node for mark in marks for node in ast.walk(mark) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "tells":
            system, *facts = _arguments(call, known, test)
            yield from (Evidence(system, fact, where, test) for fact in facts)


def _arguments(call: ast.Call, known: Mapping[str, object], test: str) -> list[str]:
    found: list[Any] = []
    for argument in call.args:
        node = argument.value if isinstance(argument, ast.Starred) else argument
        value = known.get(node.id) if isinstance(node, ast.Name) else ast.literal_eval(node)
        found += value if isinstance(value, (tuple, list)) else [value]
    if len(found) < 2 or not all(isinstance(each, str) for each in found):
        raise SystemExit(f"{test}: tells() takes the name of a system and facts, as plain texts")
    if strange := [fact for fact in found[1:] if fact not in FACTS]:
        raise SystemExit(f"{test}: tells() knows no {', '.join(strange)}; facts are {', '.join(FACTS)}")
    return found


def _is_marked(marks: list[ast.expr], name: str) -> bool:
    nodes = (node for mark in marks for node in ast.walk(mark))
    return any(isinstance(node, ast.Attribute) and node.attr == name for node in nodes)


def _module_marks(body: Sequence[ast.stmt]) -> list[ast.expr]:
    """Return what `pytestmark` is set to."""
    assigned = (node for node in body if isinstance(node, ast.Assign))
    return [node.value for node in assigned if any(getattr(t, "id", "") == "pytestmark" for t in node.targets)]


def _constants(tree: ast.Module) -> dict[str, object]:
    found: dict[str, object] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found


# -- the page ----------------------------------------------------------------------------------------------------------


def monitors() -> dict[str, type[Monitor]]:
    """Return the monitors that watch systems, by name; not the nets below them."""
    kinds = {name: load(name) for name in BUILTIN}
    return {name: kind for name, kind in kinds.items() if not kind.is_net}


def page_part(kinds: Mapping[str, type[Monitor]], shown: Sequence[Evidence]) -> str:
    """Return the generated part of the page: the table, and a section for each system."""
    sections = [_section(name, kind) for name, kind in kinds.items()]
    return "\n".join([systems_table(kinds, shown), *sections])


def systems_table(kinds: Mapping[str, type[Monitor]], shown: Sequence[Evidence]) -> str:
    """Return the Markdown table: a row for each system, a column for each thing told."""
    head = ("System", "Tested with", *COLUMNS, "Other kinds")
    rows = [head, ("---",) * len(head), *(_row(name, kind, shown) for name, kind in kinds.items())]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows) + "\n"


def _row(name: str, kind: type[Monitor], shown: Sequence[Evidence]) -> tuple[str, ...]:
    mine = [one for one in shown if one.system == name]
    cells = (_cell(facts, mine, _can_tell(kind, facts[0])) for facts in COLUMNS.values())
    others = (_other(fact, mine) for fact in OTHER_KINDS)
    return f"[{name}](#{name})", _versions(kind), *cells, ", ".join(filter(None, others))


def _cell(facts: Sequence[str], mine: Sequence[Evidence], can: bool) -> str:
    where = [_best(fact, mine) for fact in facts]
    known = [each for each in where if each is not None]
    if len(known) < len(where):
        return UNSHOWN if can else NO
    worst = max(known, key=WHERE.index)
    return worst or YES


def _other(fact: str, mine: Sequence[Evidence]) -> str:
    where = _best(fact, mine)
    return "" if where is None else f"{fact} ({where})" if where else fact


def _best(fact: str, mine: Sequence[Evidence]) -> str | None:
    """Say where a fact is shown, None if nowhere."""
    found = [one.where for one in mine if one.fact == fact]
    return min(found, key=WHERE.index) if found else None


def _can_tell(kind: type[Monitor], fact: str) -> bool:
    told = _tells(kind)
    if fact == "refuse":
        return kind.refuse is not Monitor.refuse
    return {"cache_load": told.cache_load, "key": bool(told.key), "children": told.children}.get(fact, True)


def _tells(kind: type[Monitor]) -> Tells:
    return getattr(kind, "tells", Tells(identity=""))


def _versions(kind: type[Monitor]) -> str:
    package = kind.distribution or kind.target.partition(".")[0]
    return f"{package} {kind.tested}".strip()


def _section(name: str, kind: type[Monitor]) -> str:
    told = _tells(kind)
    facts = {
        "Waits for": f"`{kind.target}`" if kind.target else "nothing",
        "Named by": told.identity,
        "Key": told.key,
        "Cause": told.reason,
        "Kinds": ", ".join(f"`{each}`" for each in told.kinds),
        "Refuses to compile, where asked": _about(kind.refuse) if kind.refuse is not Monitor.refuse else "",
    }
    lines = [f"- {what}: {text}" for what, text in facts.items() if text]
    caveats = [paragraph for paragraph in (_about(sys.modules[kind.__module__]), _rest(kind)) if paragraph]
    return "\n".join([f"## {name}", "", *(f"{text}\n" for text in caveats), *lines, ""])


def _about(thing: object) -> str:
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split()) if thing else ""


def _rest(kind: type[Monitor]) -> str:
    """Return what a class says of itself below its first line: where its caveats are."""
    _, _, rest = (inspect.getdoc(kind) or "").partition("\n\n") if "__doc__" in vars(kind) else ("", "", "")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in rest.split("\n\n"))


def write(page: Path) -> None:
    """Put the generated part between its two marks in the page."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{page} has no {BEGIN} with {END} behind it")
    page.write_text(f"{before}{begin}\n{page_part(monitors(), evidence())}{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write(ROOT / "docs" / "systems.md")
    else:
        print(page_part(monitors(), evidence()), end="")
