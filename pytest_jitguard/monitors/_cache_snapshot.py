"""What is new in the cache folders since the last look, read as cheaply as folders can be read."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase, translate
from pathlib import Path
from typing import NamedTuple

from pytest_jitguard.core.places import Place
from pytest_jitguard.monitors._toolchain_files import wall

MOST_FOLDERS = 3_000
"""How many folders of one pattern are looked into; whatever lies in more is not watched."""

_MOST_FILES = 200
"""How many files of one entry are dated."""

_COARSE = 0.05
"""Seconds within which a folder may change again without another time of change (kernel ticks, rounded file times)."""

_MOVED = 1.0
"""Seconds before the last look: what was written before that was moved or unpacked here, and not compiled."""

_GROWING = (".db",)
"""Databases: a compile makes them larger, a hit only writes the time of use."""

_IGNORED = (
    "*.lock",
    "lock",
    "lock_*",
    "*.log",
    "*.tmp",
    "tmp*",
    ".*",
    "*.d",
    "__pycache__",
    "*-atime",
    "*.pid_*",
    "*~",
)
"""Names of what is no product: temporary files, locks, logs, marks of use."""

_is_ignored = re.compile("|".join(map(translate, _IGNORED))).match

_WHO_AND_WHERE = ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME")
"""Variables that say who the user is, and where at home: default places depend on them."""

_Names = dict[str, tuple[int, int]]
"""Names in a folder, with inode and (of databases) size."""


class Entry(NamedTuple):
    """One new thing in a cache: its place, its path, its size in bytes, and the times of day of its files."""

    place: Place
    path: Path
    size: int
    first: float
    last: float


@dataclass
class _Listing:
    """What a folder held when it was last read: names with inode and size, and whether more may have come unnoticed."""

    modified: int
    settled: bool
    names: dict[str, tuple[int, int]]
    folders: list[str]
    has_database: bool


@dataclass
class _Watch:
    """One pattern below one root. `known` are the entries by folder; `pending` have no product in them yet."""

    known: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    pending: set[Path] = field(default_factory=set)


class Snapshot:
    """The cache folders as they were at the last look.

    A folder whose time of change is the same is not read again, so a look costs one `stat` for each folder above the
    entries, and nothing for the entries themselves.
    """

    def __init__(self, places: tuple[Place, ...]) -> None:
        self._places = places
        self._listings: dict[str, _Listing] = {}
        self._watches: dict[tuple[Path, str], _Watch] = {}
        self._known_patterns: list[tuple[Place, Path, str]] = []
        self._known_for: tuple[str | None, ...] = ()
        self._looked = wall()
        self.overfull: set[str] = set()

    def look(self) -> list[Entry]:
        """Return what is new since the last look; in a place that was not watched before, what was written since."""
        now = wall()
        found = {entry.path: entry for seek in self._patterns() for entry in self._look_at(*seek)}
        self._looked = now
        return list(found.values())

    def begin(self) -> None:
        """Take what is there now for old."""
        self._looked = wall()
        for _, root, pattern in self._patterns():
            for _ in self._reread(self._watch(root, pattern), root, pattern):
                pass

    def _patterns(self) -> list[tuple[Place, Path, str]]:
        """Return what to look for where. Worked out anew only if a variable that it depends on has changed."""
        names = (*_WHO_AND_WHERE, *(place.variable for place in self._places))
        now = (tempfile.gettempdir(), *(os.environ.get(name) for name in names))
        if self._known_for != now:
            self._known_for = now
            found = ((place, root) for place in self._places for root in roots(place, os.environ))
            self._known_patterns = [(place, root, pattern) for place, root in found for pattern in place.entries]
        return self._known_patterns

    def _watch(self, root: Path, pattern: str) -> _Watch:
        return self._watches.setdefault((root, pattern), _Watch())

    def _look_at(self, place: Place, root: Path, pattern: str) -> Iterator[Entry]:
        watch, since = self._watch(root, pattern), self._looked - _MOVED
        fresh = [*watch.pending, *(path for path in self._fresh(watch, root, pattern) if _changed_since(path, since))]
        watch.pending = set()
        for path in dict.fromkeys(fresh):
            entry = _dated(place, path)
            if entry is None:
                if path.is_dir():
                    watch.pending.add(path)
            elif entry.last >= since:
                yield entry

    def _fresh(self, watch: _Watch, root: Path, pattern: str) -> Iterator[Path]:
        for reread in self._reread(watch, root, pattern):
            yield from _changed(*reread)

    def _reread(self, watch: _Watch, root: Path, pattern: str) -> Iterator[tuple[str, _Names, _Names, str]]:
        """Yield the folders that had to be read again, with the names before and now, and the pattern of entries."""
        *above, last = pattern.split("/")
        for number, folder in enumerate(self._folders(str(root), above)):
            if number >= MOST_FOLDERS:
                self.overfull.add(str(root))
                return
            listing = self._listing(folder)
            if listing is None:
                continue
            before = watch.known.get(folder)
            if before is not listing.names:
                watch.known[folder] = listing.names
                yield folder, before or {}, listing.names, last

    def _folders(self, folder: str, patterns: list[str]) -> Iterator[str]:
        """Yield the folders that hold entries."""
        if not patterns:
            yield folder
            return
        if "*" not in patterns[0] and "?" not in patterns[0]:
            yield from self._folders(f"{folder}/{patterns[0]}", patterns[1:])
            return
        listing = self._listing(folder)
        for name in listing.folders if listing else ():
            if fnmatchcase(name, patterns[0]) and not is_ignored(name):
                yield from self._folders(f"{folder}/{name}", patterns[1:])

    def _listing(self, folder: str) -> _Listing | None:
        try:
            modified = os.stat(folder).st_mtime_ns  # noqa: PTH116 - thousands of them
        except OSError:
            self._listings.pop(folder, None)
            return None
        known = self._listings.get(folder)
        if known is not None and known.modified == modified and known.settled and not known.has_database:
            return known
        now = wall()
        names, folders = _read(folder)
        if known is not None and known.names == names:
            names = known.names
        has_database = any(name.endswith(_GROWING) for name in names)
        listing = _Listing(modified, now - modified / 1e9 > _COARSE, names, folders, has_database)
        self._listings[folder] = listing
        return listing


def roots(place: Place, environment: Mapping[str, str]) -> list[Path]:
    """Return where a cache is, by its variable or by default; DeepGEMM's variable may name several folders."""
    named = environment.get(place.variable, "")
    if named:
        return [Path(one) / place.below for one in named.split(":") if one.startswith("/")]
    with contextlib.suppress(KeyError, OSError, RuntimeError):  # no user, no home
        user = getpass.getuser()
        texts = [text.format(tmp=tempfile.gettempdir(), user=user) for text in place.defaults]
        return [Path(text).expanduser() for text in texts]
    return []


def _changed_since(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime >= moment
    except OSError:
        return False


def is_ignored(name: str) -> bool:
    """Tell whether a name is one of temporary files, locks, logs or marks of use."""
    return _is_ignored(name) is not None


def _read(folder: str) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return the names in a folder with inode and, of databases, size; and which of them are folders."""
    names, folders = {}, []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            size = entry.stat().st_size if entry.name.endswith(_GROWING) else 0
            names[entry.name] = (entry.inode(), size)
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
    return names, folders


def _changed(
    folder: str, before: Mapping[str, tuple[int, int]], now: Mapping[str, tuple[int, int]], pattern: str
) -> Iterator[Path]:
    """Yield what is new under its name, or another file than it was; a database, if it grew."""
    for name, (inode, size) in now.items():
        was = before.get(name)
        if was == (inode, size) or not fnmatchcase(name, pattern) or is_ignored(name):
            continue
        if was is not None and was[0] == inode and size <= was[1]:
            continue
        yield Path(folder) / name


def _dated(place: Place, path: Path) -> Entry | None:
    """Return the times of an entry's files; None if it holds none that is a product."""
    times, size = [], 0
    for file in _files(path):
        with contextlib.suppress(OSError):
            told = file.stat()
            times.append(told.st_mtime_ns / 1e9)
            size += told.st_size
        if len(times) >= _MOST_FILES:
            break
    return Entry(place, path, size, min(times), max(times)) if times and size else None


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, below, names in os.walk(path):
        below[:] = [name for name in below if not is_ignored(name)][:_MOST_FILES]
        for name in names:
            if not is_ignored(name):
                yield Path(folder) / name
