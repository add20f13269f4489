"""Finds the monitors of others: published by a distribution as an entry point, or named by a conftest's hook.

Only guards look. What they find travels to their children as import strings, so that no child scans metadata.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import NamedTuple

from pytest_jitguard.monitors import BUILTIN, Monitor, MonitorError, load

GROUP = "pytest_jitguard.monitors"
"""The group of entry points: name of the monitor to `package.module:Class`."""

_AUTO = "auto"

_CURE = "upgrade or uninstall that distribution, or leave it out: --jitguard-monitors with the names of the others"


def discovered() -> dict[str, str]:
    """Return the monitors that installed distributions publish: name to import string, in the order of names.

    MonitorError, naming the distribution and what to do, if one has no import string of a class, takes the name of a
    monitor of ours or a name that another one has taken. Imports nothing.
    """
    found: dict[str, str] = {}
    publishers: dict[str, str] = {}
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        publisher = _publisher(point)
        _check_name(point.name, f"of {publisher}")
        if found.get(point.name, point.value) != point.value:
            raise MonitorError(
                f"the monitor {point.name!r} is published twice, by {publishers[point.name]} and by {publisher}: "
                "uninstall one of them"
            )
        _check_path(point.value, f"the entry point {point.name!r} of {publisher}", f": {_CURE}")
        found[point.name], publishers[point.name] = point.value, publisher
    return found


class Found(NamedTuple):
    """The setting `monitors` with the monitors of others in it, as import strings.

    `local` are those that must not travel to children, since they were given as classes. `warnings` are for the user.
    """

    monitors: tuple[str, ...]
    local: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()


def find(wanted: Sequence[str], hooked: Iterable[object] = ()) -> Found:
    """Resolve the setting `monitors`: `auto` brings whatever is published or hooked, a name only that one.

    `hooked` is what the implementations of the hook `pytest_jitguard_monitors` returned. What is not wanted is not
    looked at, so that a broken distribution can be left out by naming the others. MonitorError says what is wrong.
    """
    hooks = [_of_hook(thing) for thing in _flat(hooked)]
    mine = {given.kind.name: given.path for given in hooks}
    asked = [name for name in wanted if name != _AUTO and name not in BUILTIN and ":" not in name]
    published = discovered() if _AUTO in wanted or set(asked) - set(mine) else {}
    known = {**published, **mine}
    _check_known(asked, known)
    _check_twice(set(mine) & set(published))
    for name in published if _AUTO in wanted else asked:
        _check_published(name, published)
    paths = [*(known.get(name, name) for name in wanted), *(known.values() if _AUTO in wanted else ())]
    monitors = tuple(dict.fromkeys(paths))
    local = frozenset(given.path for given in hooks if not given.travels)
    return Found(monitors, local & set(monitors), tuple(_warning(path) for path in monitors if path in local))


def _check_known(asked: Sequence[str], known: Mapping[str, str]) -> None:
    for name in asked:
        if name not in known:
            names = ", ".join([_AUTO, *BUILTIN, *known])
            raise MonitorError(f"unknown monitor {name!r}; expected {names}, or package.module:Class")


def _check_twice(names: set[str]) -> None:
    for name in sorted(names):
        raise MonitorError(
            f"the monitor {name!r} comes from pytest_jitguard_monitors and from {publisher_of(name)}: rename yours"
        )


def publisher_of(name: str) -> str:
    """Return the distribution, with its version, that publishes a monitor."""
    return next((_publisher(point) for point in metadata.entry_points(group=GROUP) if point.name == name), "unknown")


def _check_published(name: str, published: Mapping[str, str]) -> None:
    """Import the class of a published monitor that is going to be armed."""
    if name not in published:
        return
    try:
        kind = load(published[name])
    except MonitorError as error:
        raise MonitorError(f"the entry point {name!r} of {publisher_of(name)} is broken: {error}; {_CURE}") from error
    if kind.name != name:
        raise MonitorError(
            f"the entry point {name!r} of {publisher_of(name)} leads to a monitor that is called {kind.name!r}; both "
            f"must have the same name: {_CURE}"
        )


def _warning(path: str) -> str:
    return (
        f"the monitor {path} was given as a class, and watches only the process of pytest: return it as the import "
        "string of a module that child processes can import"
    )


def _publisher(point: metadata.EntryPoint) -> str:
    distribution = point.dist
    return f"{distribution.name} {distribution.version}" if distribution is not None else "an unknown distribution"


def _check_name(name: str, whose: str) -> None:
    if name in BUILTIN or name == _AUTO:
        raise MonitorError(
            f"the monitor {name!r} {whose} has the name of one that comes with pytest-jitguard: it needs another name"
        )


def _check_path(path: str, what: str, cure: str = "") -> None:
    module, colon, attribute = path.partition(":")
    if not (module.strip() and colon and attribute.strip()) or "[" in path:
        raise MonitorError(f"{what} is {path!r}; expected package.module:Class{cure}")


class _Given(NamedTuple):
    kind: type[Monitor]
    path: str
    travels: bool


def _of_hook(thing: object) -> _Given:
    """Take what a hook gave: an import string, or a class, which stays in this process."""
    whose = "what pytest_jitguard_monitors returned"
    if isinstance(thing, str):
        _check_path(thing, whose)
        given = _Given(load(thing), thing, True)
    elif isinstance(thing, type) and issubclass(thing, Monitor):
        given = _Given(thing, f"{thing.__module__}:{thing.__qualname__}", False)
        if load(given.path) is not thing:
            raise MonitorError(f"{whose}, the class {given.path}, is not the one of that name")
    else:
        raise MonitorError(f"{whose} has {thing!r}; expected import strings, package.module:Class, or classes")
    _check_name(given.kind.name, "of pytest_jitguard_monitors")
    return given


def _flat(results: Iterable[object]) -> Iterator[object]:
    for result in results:
        if isinstance(result, (list, tuple, set, frozenset)):
            yield from result
        elif result is not None:
            yield result
