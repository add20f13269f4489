"""Names for what warms on behalf of some tests only: a marker's warmup, a fixture of wider scope."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any


class WarmupGroups:
    """Names for what markers give as `warmup=`: one name per callable, the same in every xdist worker."""

    def __init__(self) -> None:
        self._entries: dict[str, Any] = {}

    def name(self, entry: Any) -> str:
        """Return the entry's name, with a number where another callable has the same name (lambdas, partials)."""
        base = f"warmup:{entry if isinstance(entry, str) else _path_of(entry)}"
        name, number = base, 1
        while (known := self._entries.setdefault(name, entry)) is not entry and known != entry:
            number += 1
            name = f"{base}#{number}"
        return name


def _path_of(call: Any) -> str:
    """Say where a callable comes from; a partial or an instance has no name of its own."""
    named = call if hasattr(call, "__qualname__") else getattr(call, "func", type(call))
    return f"{getattr(named, '__module__', '')}:{getattr(named, '__qualname__', type(call).__name__)}"


class FixtureGroups:
    """Names for what fixtures of wider scope warm: one for each time that a fixture is set up.

    What a fixture compiles may depend on its parameter, on the class or module that asked for it, on anything; so what
    one set-up of it warmed counts for the users of that very set-up.
    """

    def __init__(self) -> None:
        self._set_ups = itertools.count(1)
        self._living: dict[Any, str] = {}

    def set_up(self, fixturedef: Any) -> str:
        """Return a new name, for a fixture that is being set up."""
        name = f"fixture:{fixturedef.baseid}:{fixturedef.argname}#{next(self._set_ups)}"
        self._living[fixturedef] = name
        return name

    def follow(self, fixturedef: Any, use: Callable[[str], None]) -> None:
        """Tell `use` of each use of a fixture that is set up already: what it warmed counts for all its users alike.

        Pytest has no hook for that, and the names that a test asks for leave out `getfixturevalue()`.
        """
        execute = fixturedef.execute
        if getattr(execute, "groups", None) is self:
            return

        def followed(request: Any) -> Any:
            __tracebackhide__ = True
            before = self._living.get(fixturedef)
            value = execute(request=request)
            # Another parameter sets the fixture up anew: then that set-up has told of itself.
            if before is not None and self._living.get(fixturedef) == before:
                use(before)
            return value

        followed.groups = self  # type: ignore[attr-defined]
        fixturedef.execute = followed

    def beside(self, fixturedef: Any, request: Any) -> list[str]:
        """Return the groups of the wider fixtures that a fixture asks for by name and that are set up."""
        item = getattr(request, "_pyfuncitem", None)
        needed = (_visible(name, item) for name in _closure(fixturedef, item))
        return [self._living[one] for one in needed if one in self._living]


def _closure(fixturedef: Any, item: Any) -> set[str]:
    """Return the names of all fixtures that a fixture asks for by name, and those that these ask for."""
    names: set[str] = set()
    waiting = list(fixturedef.argnames)
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            waiting += getattr(_visible(name, item), "argnames", ())
    return names


def _visible(name: str, item: Any) -> Any:
    known = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    return known[name][-1] if known.get(name) else None
