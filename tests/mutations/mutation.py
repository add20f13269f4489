"""One safety net, removed in a copy of the source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """What is broken, where, how, and which test (or one of which tests) must fail for it."""

    name: str
    file: str
    old: str
    new: str
    test: str
