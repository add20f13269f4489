"""What is new in the cache folders since the last look, read as cheaply as folders can be read."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate
from pathlib import Path
from typing import NamedTuple

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.places import Place
from pytest_jitguard.monitors._cache_files import Stamp, born_after
from pytest_jitguard.monitors._cache_files import stamp as stamp_of
from pytest_jitguard.monitors._toolchain_files import wall

MOST_FOLDERS = 3_000
"""How many folders of one pattern are looked into; whatever lies in more is not watched."""

_MOST_FILES = 200
"""How many files of one entry are dated."""

_TICK = 0.05
"""Seconds within which a folder may change again and show the same time of change: kernel ticks are 1 to 10 ms."""

_COARSE_TICK = 2.5
"""The same where files carry whole seconds only: FAT knows every second one."""

_LONG_AGO = 86_400.0
"""Seconds since its change after which a folder is settled at once, whatever the clock of a file server says."""

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
    "cuda_utils.*",
    "hip_utils.*",
)
"""Names of what is no product: temporary files, locks, logs, marks of use; Triton's own helper, once per machine."""

_is_ignored = re.compile("|".join(map(translate, _IGNORED))).match

_WHO_AND_WHERE = ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME")
"""Variables that say who the user is, and where at home: default places depend on them."""

_Names = dict[str, tuple[int, int]]
"""Names in a folder, with inode and time of change in nanoseconds; of a database, with its size."""


class Entry(NamedTuple):
    """One new thing in a cache: its place, its path, its size in bytes, and the times of day of its files."""

    place: Place
    path: Path
    size: int
    first: float
    last: float


@dataclass
class _Listing:
    """What a folder held when it was last read.

    `noticed` is when its stamp was seen for the first time, by our own clock: a file server's may be another. It is
    `settled` once it was read so long after that the next change must have another stamp.
    """

    stamp: Stamp
    noticed: float
    settled: bool
    names: _Names
    folders: list[str]
    databases: list[str]


class Snapshot:
    """The cache folders as they were at the last look.

    While nothing changes a look is one `stat` for each folder above the entries, one `access` for each that is not
    there, and nothing for the entries themselves. Whatever differs, all folders are walked through, and those read
    again that have changed.
    """

    def __init__(self, places: tuple[Place, ...]) -> None:
        self._places = places
        self._variables = (*_WHO_AND_WHERE, *(place.variable for place in places))
        self._known_patterns: list[tuple[Place, Path, str]] = []
        self._known_for: tuple[object, ...] = ()
        self._listings: dict[str, _Listing] = {}
        # What each pattern knows of each folder that holds its entries.
        self._seen: dict[tuple[Path, str], dict[str, _Names]] = {}
        self._pending: dict[Path, Place] = {}  # entries without a product so far
        # How everything was that the last walk met.
        self._stamps: dict[str, Stamp] = {}
        self._absent: dict[str, None] = {}
        self._unsettled = False
        self._looked = wall()
        self.overfull: set[str] = set()

    def look(self) -> list[Entry]:
        """Return what is new since the last look; in a place that was not watched before, what was written since."""
        now, since = wall(), self._looked - _MOVED
        fresh, self._pending = self._pending, {}
        if self._has_changed():
            for place, path in self._walk():
                if _changed_since(path, since):
                    fresh.setdefault(path, place)
        self._looked = now
        return [entry for path, place in fresh.items() if (entry := self._product(place, path, since))]

    def begin(self) -> None:
        """Take what is there now for old."""
        self._looked = wall()
        for _ in self._walk():
            pass

    def _product(self, place: Place, path: Path, since: float) -> Entry | None:
        """Return an entry with its times, None if none of its files is new. One that has no product yet waits."""
        entry = _dated(place, path)
        if entry is None and path.exists():
            self._pending[path] = place
        return entry if entry is not None and entry.last >= since else None

    def _has_changed(self) -> bool:
        """Tell whether a folder may hold something else than at the last walk, or where to look has changed."""
        if self._unsettled or self._known_for != self._where():
            return True
        stat, access = os.stat, os.access
        try:
            for path, (device, inode, modified, changed) in self._stamps.items():
                now = stat(path)
                if now.st_mtime_ns != modified or now.st_ctime_ns != changed:
                    return True
                if now.st_ino != inode or now.st_dev != device:
                    return True
        except OSError:
            return True
        return any(access(path, os.F_OK) for path in self._absent)

    def _where(self) -> tuple[object, ...]:
        """Return all that places depend on."""
        return (tempfile.gettempdir(), *_values(self._variables))

    def _patterns(self) -> list[tuple[Place, Path, str]]:
        """Return what to look for where. Worked out anew only if a variable that it depends on has changed."""
        where = self._where()
        if self._known_for != where:
            self._known_for = where
            found = ((place, root) for place in self._places for root in roots(place, os.environ))
            self._known_patterns = [(place, root, pattern) for place, root in found for pattern in place.entries]
        return self._known_patterns

    def _walk(self) -> Iterator[tuple[Place, Path]]:
        """Go through all folders; yield the entries that are new, or others than they were."""
        self._stamps, self._absent, self._unsettled = {}, {}, False
        for place, root, pattern in self._patterns():
            for path in self._fresh(root, pattern):
                yield place, path

    def _fresh(self, root: Path, pattern: str) -> Iterator[Path]:
        seen = self._seen.setdefault((root, pattern), {})
        *above, last = pattern.split("/")
        for number, folder in enumerate(self._folders(str(root), above)):
            if number >= MOST_FOLDERS:
                self.overfull.add(str(root))
                return
            listing = self._listing(folder)
            before = seen.get(folder)
            if listing is not None and before is not listing.names:
                seen[folder] = listing.names
                yield from _changed(folder, before or {}, listing.names, last)

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
        """Return what a folder holds, read anew if it may have changed; None if it is not there."""
        known = self._listings.get(folder)
        if folder in self._stamps:
            return known
        try:
            stamp = stamp_of(folder)
        except OSError:
            self._absent[_topmost_absent(folder)] = None
            return None
        if known is None or known.stamp != stamp or not known.settled or known.databases:
            known = self._listings[folder] = _read(folder, stamp, known)
        self._stamps[folder] = stamp
        self._unsettled = self._unsettled or not known.settled
        for database in known.databases:  # they grow, and their folder stays as it is
            with contextlib.suppress(OSError):
                self._stamps[database] = stamp_of(database)
        return known


def _values(names: Iterable[str]) -> list[object]:
    """Return the values of environment variables: of all at once, since `os.environ` encodes and decodes each."""
    raw, encoded = getattr(os.environ, "_data", None), getattr(os.environ, "encodekey", None)
    if not isinstance(raw, dict) or encoded is None:
        return [os.environ.get(name) for name in names]
    return [raw.get(key) for key in _encoded(encoded, tuple(names))]


@functools.lru_cache(maxsize=8)
def _encoded(encode: Callable[[str], object], names: tuple[str, ...]) -> tuple[object, ...]:
    return tuple(map(encode, names))


def _topmost_absent(path: str) -> str:
    """Return the folder that must show up before a path can: the first on the way to it that is not there."""
    above = path.rpartition("/")[0]
    while above and not os.access(above, os.F_OK):
        path, above = above, above.rpartition("/")[0]
    return path


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


def _read(folder: str, stamp: Stamp, known: _Listing | None) -> _Listing:
    """Read a folder that has this stamp, taken before; `known` is how it was, whose names are kept if they still hold.

    A link to a folder is one: whoever moves a cache to a larger disk leaves such.
    """
    names, folders, databases = {}, [], []
    now = monotonic()
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # gone meanwhile, or a link to nowhere
                names[entry.name] = _identity(entry)
                if entry.name.endswith(_GROWING):
                    databases.append(entry.path)
                elif entry.is_dir():
                    folders.append(entry.name)
    is_same = known is not None and known.stamp == stamp
    noticed = known.noticed if known is not None and is_same else now
    if known is not None and known.names == names:
        names = known.names
    return _Listing(stamp, noticed, _is_settled(stamp, now - noticed), names, folders, databases)


def _is_settled(stamp: Stamp, known_for: float) -> bool:
    """Tell whether the next change of a folder must show in its stamp, which has been known for some seconds."""
    changed = stamp[3] / 1e9  # nobody can set that one
    return known_for > (_TICK if stamp[3] % 1_000_000_000 else _COARSE_TICK) or wall() - changed > _LONG_AGO


def _identity(entry: os.DirEntry[str]) -> tuple[int, int]:
    """Return an entry's inode and its time of change; of a database the size, since a hit writes the time of use."""
    told = entry.stat()
    return told.st_ino, told.st_size if entry.name.endswith(_GROWING) else told.st_ctime_ns


def _changed(folder: str, before: _Names, now: _Names, pattern: str) -> Iterator[Path]:
    """Yield what is new under its name, or another file than it was; a database, if it grew."""
    for name, identity in now.items():
        was = before.get(name)
        if was == identity or not fnmatchcase(name, pattern) or is_ignored(name):
            continue
        if was is None or _is_another(f"{folder}/{name}", was, identity):
            yield Path(folder) / name


def _is_another(path: str, was: tuple[int, int], now: tuple[int, int]) -> bool:
    """Tell whether an entry is not the one that was known: files that grow, and folders that gain files, still are."""
    if was[0] != now[0]:
        return True
    return now[1] > was[1] if path.endswith(_GROWING) else born_after(path, was[1])


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
