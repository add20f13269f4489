"""The disk caches of JIT systems: the variable that moves each, and a cold start in a fresh folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pytest_jitguard.core.places import CACHE_ROOTS
from pytest_jitguard.processes import environment

__all__ = ["CACHE_ROOTS", "redirect"]


def redirect(folder: Path) -> Callable[[], None]:
    """Point every known cache root into an empty folder; return what puts the environment back."""
    places = {variable: folder / name for variable, name in CACHE_ROOTS.items()}
    for place in places.values():
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return environment.put({variable: str(place) for variable, place in places.items()})
