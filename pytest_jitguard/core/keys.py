"""Specialization keys as named components, and the difference between two of them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NOT = "not "
"""Prefix by which two classes of one property are opposites: `divisible by 16`, `not divisible by 16`."""


@dataclass(frozen=True)
class Component:
    """One named part of a specialization key.

    `name` is what the user wrote (an argument or an option), `role` is `argument`, `constexpr`, `option`, `target`
    or `tuning`; `type` is the argument's type in Triton's words (`i32`, `*fp16`), empty where there is none;
    `value` is the class or value that the key holds (`divisible by 16`, `64`), empty where the argument is not
    specialized.
    """

    name: str
    role: str
    type: str
    value: str

    def __str__(self) -> str:
        return ", ".join(part for part in (self.type, self.value) if part) or "unspecialized"


@functools.lru_cache(maxsize=10_000)
def _component(*cells: str) -> Component:
    """Return a component as read from a journal; the same few come again and again, in event after event."""
    if len(cells) != 4 or not all(isinstance(cell, str) for cell in cells):
        raise ValueError(f"a key component must be [name, role, type, value], not {list(cells)!r}")
    return Component(*cells)


@dataclass(frozen=True)
class Change:
    """A component in which a served key differs from a warmed one; None where one side lacks it."""

    component: str
    role: str
    warmed: Component | None
    served: Component | None

    def __str__(self) -> str:
        return f"{self.component}: {self.transition()}"

    def transition(self) -> str:
        """Return the change in words, naming only what differs: `divisible by 16 → not`, `i32 → i64`."""
        if self.warmed is None or self.served is None:
            return f"{self.warmed or 'absent'} → {self.served or 'absent'}"
        if self.warmed.type == self.served.type or "1" in (self.warmed.value, self.served.value):
            return f"{_value(self.warmed, self.served)} → {_opposite(self) or _value(self.served, self.warmed)}"
        if self.warmed.value == self.served.value:
            return f"{self.warmed.type} → {self.served.type}"
        return f"{self.warmed} → {self.served}"

    def to_wire(self) -> dict[str, str]:
        """Return the change as plain types, in the form of the JSON report."""
        return {
            "component": self.component,
            "warmed": "absent" if self.warmed is None else str(self.warmed),
            "served": "absent" if self.served is None else str(self.served),
            "text": self.transition(),
        }


def _value(this: Component, other: Component) -> str:
    """Shorten anything that is not 1 to `other`."""
    if other.value == "1" and this.role == "argument":
        return "other"
    return this.value or "unspecialized"


def _opposite(change: Change) -> str:
    """Shorten the opposite of what was warmed: `divisible by 16 → not`, `not divisible by 16 → divisible`."""
    assert change.warmed is not None
    assert change.served is not None
    if change.served.value == NOT + change.warmed.value:
        return NOT.strip()
    return change.served.value.partition(" ")[0] if change.warmed.value == NOT + change.served.value else ""


@dataclass(frozen=True)
class SpecializationKey:
    """What a JIT system looks up: ordered, named components."""

    components: tuple[Component, ...]

    def __iter__(self) -> Any:
        return iter(self.components)

    def __bool__(self) -> bool:
        return bool(self.components)

    def by_name(self) -> dict[tuple[str, str], Component]:
        """Return the components by (role family, name): a constexpr and an argument share their family."""
        return {(_family(c.role), c.name): c for c in self.components}

    def to_wire(self) -> list[list[str]]:
        """Return the key as plain lists, for journals and reports."""
        return [[c.name, c.role, c.type, c.value] for c in self.components]

    @classmethod
    def from_wire(cls, wire: Sequence[Sequence[str]]) -> SpecializationKey:
        """Read what `to_wire` wrote; ValueError if it has another shape."""
        try:
            return cls(tuple(_component(*row) for row in wire))
        except TypeError as error:  # too few cells, or a cell that is itself a list
            raise ValueError(f"a key component must be [name, role, type, value], not in {wire!r}") from error


def _family(role: str) -> str:
    return "argument" if role == "constexpr" else role


def diff(warmed: SpecializationKey, served: SpecializationKey) -> tuple[Change, ...]:
    """Return what changed from a warmed key to a served one, in the order of the served key."""
    before, after = warmed.by_name(), served.by_name()
    changed = [at for at in after if before.get(at) != after[at]] + [at for at in before if at not in after]
    return tuple(
        Change(name, family, before.get((family, name)), after.get((family, name))) for family, name in changed
    )


_WEIGHT: Mapping[str, int] = {"target": 100, "argument": 10, "option": 11, "tuning": 10}


def distance(warmed: SpecializationKey, served: SpecializationKey) -> int:
    """Weigh a difference: a change of type counts double, another target counts more than anything else."""
    return sum(_WEIGHT.get(c.role, 10) * (2 if _types_differ(c) else 1) for c in diff(warmed, served))


def _types_differ(change: Change) -> bool:
    return change.warmed is None or change.served is None or change.warmed.type != change.served.type


def nearest(served: SpecializationKey, warmed: Iterable[SpecializationKey]) -> SpecializationKey | None:
    """Return the warmed key that differs least; of equals the one that was warmed last, None if there is none."""
    best: tuple[int, SpecializationKey] | None = None
    for candidate in warmed:
        apart = distance(candidate, served)
        if best is None or apart <= best[0]:
            best = (apart, candidate)
    return best[1] if best else None
