"""Names for what warms on behalf of some tests only: a marker's warmup, a fixture of wider scope."""

from __future__ import annotations

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


def follow(fixturedef: Any, use: Callable[[str], None]) -> None:
    """Tell `use` of each use of a fixture that is set up already: what it warmed counts for all its users alike.

    Pytest has no hook for that, and the names that a test asks for leave out `getfixturevalue()`.
    """
    execute = fixturedef.execute
    if getattr(execute, "use", None) == use:
        return

    def followed(request: Any) -> Any:
        if getattr(fixturedef, "cached_result", None) is not None:
            use(of_fixture(fixturedef, request))
        return execute(request=request)

    followed.use = use  # type: ignore[attr-defined]
    fixturedef.execute = followed


def of_fixture(fixturedef: Any, request: Any) -> str:
    """Name what a fixture warms: definition and wide parameters tell one from another, not the name alone."""
    item = getattr(request, "_pyfuncitem", None)
    names = {fixturedef.argname, *_closure(fixturedef, item)}
    spec = getattr(item, "callspec", None)
    indices = getattr(spec, "indices", {})
    chosen = ",".join(f"{name}={indices[name]}" for name in sorted(names & set(indices)))
    return f"fixture:{fixturedef.baseid}:{fixturedef.argname}[{chosen}]"


def beside(fixturedef: Any, request: Any) -> list[str]:
    """Return the groups of the wider fixtures that a fixture asks for by name."""
    item = getattr(request, "_pyfuncitem", None)
    found = [_visible(name, item) for name in _closure(fixturedef, item)]
    return [of_fixture(needed, request) for needed in found if needed is not None and needed.scope != "function"]


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
