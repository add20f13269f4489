"""Known debt: violations that a team has accepted for now, by system, kernel and changed component."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.explain import Explanation

SCHEMA = 1
NEVER_WARMED = "never warmed"


class BaselineError(ValueError):
    """A baseline file that cannot be read; the message says what is wrong with it."""


@dataclass(frozen=True, order=True)
class Debt:
    """One entry: the same gap is the same debt in whichever test it shows."""

    system: str
    kernel: str
    components: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.system}:{self.kernel} ({', '.join(self.components)})"

    def to_wire(self) -> dict[str, Any]:
        """Return the entry as the file keeps it."""
        return {"system": self.system, "kernel": self.kernel, "components": list(self.components)}


def debt_of(event: CompileEvent, explanation: Explanation) -> Debt:
    """Return the debt that an explained event stands for."""
    changed = tuple(sorted({change.component for change in explanation.changes}))
    if explanation.never_warmed:
        changed = (NEVER_WARMED,)
    return Debt(event.system, event.full_name, changed or (event.kind,))


def debt_from_violation(violation: Mapping[str, Any]) -> Debt | None:
    """Return the debt of a violation in its wire form, None for one without an event."""
    if violation["event"] is None:
        return None
    changed = tuple(sorted({change["component"] for change in violation["changes"]}))
    if violation["never_warmed"]:
        changed = (NEVER_WARMED,)
    module, kernel = violation["module"], violation["kernel"]
    return Debt(violation["system"], f"{module}.{kernel}" if module else kernel, changed or (violation["kind"],))


@dataclass
class Baseline:
    """The debts of one file."""

    debts: frozenset[Debt] = field(default_factory=frozenset)

    def knows(self, event: CompileEvent, explanation: Explanation) -> bool:
        """Tell whether the event is accepted debt."""
        return debt_of(event, explanation) in self.debts


def parse(text: str) -> Baseline:
    """Read a baseline file's text; BaselineError names what does not fit."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise BaselineError(f"is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise BaselineError(f'must be an object with "schema": {SCHEMA} and "debt": [...]')
    entries = document.get("debt")
    if not isinstance(entries, list):
        raise BaselineError('has no list "debt"')
    return Baseline(frozenset(_entry(entry, number) for number, entry in enumerate(entries, 1)))


def _entry(entry: Any, number: int) -> Debt:
    fields = {"system": str, "kernel": str, "components": list}
    if not isinstance(entry, dict) or set(entry) != set(fields):
        raise BaselineError(f"entry {number} must have exactly the keys system, kernel, components, not {entry!r}")
    for name, kind in fields.items():
        if not isinstance(entry[name], kind):
            raise BaselineError(f"entry {number}: {name} must be a {kind.__name__}, not {entry[name]!r}")
    if not all(isinstance(component, str) for component in entry["components"]):
        raise BaselineError(f"entry {number}: components must be texts, not {entry['components']!r}")
    return Debt(entry["system"], entry["kernel"], tuple(entry["components"]))


def render(debts: Iterable[Debt]) -> str:
    """Return the text of a baseline file: sorted, one entry a line, so that version control shows what changed."""
    lines = ",\n".join(f"    {json.dumps(debt.to_wire(), ensure_ascii=False)}" for debt in sorted(set(debts)))
    return (
        f'{{\n  "schema": {SCHEMA},\n  "debt": [\n{lines}\n  ]\n}}\n'
        if lines
        else f'{{"schema": {SCHEMA}, "debt": []}}\n'
    )
