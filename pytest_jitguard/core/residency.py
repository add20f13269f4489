"""Which resident variants are warmed, and for whom, so that no verdict depends on what an earlier test did."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

SHARED = ""
"""The group of what import, collection and the session's warmup made resident: warmed for every test."""


class Residency:
    """Set arithmetic over what a monitor reports as resident; the tokens mean something to that monitor only.

    A group is what warmed a variant: the session, a wide-scope fixture, a marker's warmup. A group counts for the
    tests that use it, whatever order they run in.
    """

    def __init__(self) -> None:
        self._groups: dict[str, set[Hashable]] = {SHARED: set()}

    def keep(self, resident: Iterable[Hashable], before: Iterable[Hashable], group: str) -> None:
        """Count as warmed by a group what is resident now and was not before."""
        self._groups.setdefault(group, set()).update(set(resident) - set(before))

    def of(self, groups: Iterable[str]) -> set[Hashable]:
        """Return what some groups warmed."""
        return set().union(*(self._groups.get(group, ()) for group in groups))

    def stray(self, resident: Iterable[Hashable]) -> set[Hashable]:
        """Return what is resident though no group warmed it."""
        return set(resident) - self.of(self._groups)

    def foreign(self, resident: Iterable[Hashable], groups: Iterable[str]) -> set[Hashable]:
        """Return what is resident though neither the session nor one of these groups warmed it."""
        return set(resident) - self.of((SHARED, *groups))
