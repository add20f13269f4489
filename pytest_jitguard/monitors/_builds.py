"""What monitors share whose systems build shared libraries with ninja: a build told from "nothing to do", lock waits.

Such a system runs ninja also where nothing is to be built, and returns without building where another process built
what it waited for. So whoever wants to know what happened looks at the library's file, before and after.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple, Union

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.keys import Component, SpecializationKey, diff, nearest
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors._wrapping import Compiling, WrappingMonitor
from pytest_jitguard.patching import is_initialising, when_imported

# -- files -------------------------------------------------------------------------------------------------------------


AnyPath = Union[str, "os.PathLike[str]"]


class Identity(NamedTuple):
    """One state of a file: a renamed one keeps it, a rebuilt one has another."""

    device: int
    inode: int
    modified: int
    size: int

    def __str__(self) -> str:
        return "-".join(f"{number:x}" for number in self)


def identity(path: AnyPath) -> Identity | None:
    """Return which state of a file is there, None if there is none."""
    try:
        found = Path(path).stat()
    except (OSError, TypeError, ValueError):  # nothing, or something that is no path
        return None
    return Identity(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


def newer(artifact: Identity, inputs: Iterable[AnyPath]) -> str:
    """Return the first of the inputs that changed after the artifact was written, empty if none did."""
    for path in inputs:
        found = identity(path)
        if found is not None and found.modified > artifact.modified:
            return str(path)
    return ""


def mapped_under(folder: Path) -> dict[tuple[int, int], str]:
    """Return the libraries below a folder that this process has loaded: (device, inode) to path."""
    found = {}
    try:
        with Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as maps:
            lines = [line.split(None, 5) for line in maps if f" {folder}/" in line]
    except OSError:
        return {}
    for cells in lines:
        major, minor = (int(number, 16) for number in cells[3].split(":"))
        found[os.makedev(major, minor), int(cells[4])] = cells[5].strip()
    return found


# -- what ninja was asked ----------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What a `build.ninja` says: the default target, and the files that are inputs and no outputs."""

    target: str
    sources: tuple[str, ...]


def plan_of(file: Path) -> Plan:
    """Read a `build.ninja`; what cannot be read is an empty plan."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace").replace("$\n", " ")
    except OSError:
        return Plan("", ())
    outputs, inputs = [], []
    for outs, ins in re.findall(r"^build ([^:\n]+): *\S+ ?(.*)$", text, re.MULTILINE):
        outputs += outs.split()
        inputs += [path for path in ins.split() if "|" not in path]
    named = re.findall(r"^default +(\S+)", text, re.MULTILINE)
    target = named[-1] if named else outputs[-1] if outputs else ""
    return Plan(target, tuple(path for path in inputs if path not in outputs))


# -- names that tell of their parameters -------------------------------------------------------------------------------

_VALUE = re.compile(
    r"\d+|True|False|true|false|(?:bf|f|fp|float|bfloat|i|int|u|uint)\d+(?:x\d+|e\dm\d\w*)?|e\dm\d\w*", re.ASCII
)

_ENDING = "ending"
"""The component of words that no value follows: `sm90` at the end of FlashInfer's names, AITER's `nlogits_nbias`."""


def parameters(name: str) -> SpecializationKey | None:
    """Read the parameters that a generated module's name is made of: `norm_dtype_bf16_head_dim_64`; None if none.

    Components are named by the words before a value: `norm_dtype`, `head_dim`. Words at the end are one of their own.
    """
    found: list[Component] = []
    words: list[str] = []
    for word in name.split("_"):
        if _VALUE.fullmatch(word):
            label = "_".join(words) or f"parameter {len(found) + 1}"
            again = sum(component.name.partition(" #")[0] == label for component in found)
            found.append(Component(f"{label} #{again + 1}" if again else label, "constexpr", "", word))
            words = []
        else:
            words.append(word)
    if found and words:
        found.append(Component(_ENDING, "constexpr", "", "_".join(words)))
    return SpecializationKey(tuple(found)) if found else None


def _kind_of(key: SpecializationKey) -> list[str]:
    """Return what keys of modules of one kind have in common: the names of their parameters."""
    return [str(component.name) for component in key if component.name != _ENDING]


# -- locks -------------------------------------------------------------------------------------------------------------


def is_locked(path: AnyPath) -> bool:
    """Tell whether somebody holds the `flock` of a file, without creating it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


_NOTICEABLE = 0.05
"""Seconds within which a lock is taken that nobody holds."""


class TellingLock:
    """A library's lock whose wait, if there is one, is an event. For locks that are only used with `with`."""

    def __init__(self, inner: Any, wait: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        """Take the library's own lock, and what to enter while it waits."""
        self._inner = inner
        self._wait = wait

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __enter__(self) -> Any:
        entered = False
        try:
            with self._wait():
                value = self._inner.__enter__()
                entered = True
        except BaseException:
            if entered:  # the mode `raise` raises at the wait's end, and nobody else would release the lock
                self._inner.__exit__(*sys.exc_info())
            raise
        return value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        return self._inner.__exit__(kind, error, trace)


# -- refusing ----------------------------------------------------------------------------------------------------------


class Switch:
    """A library's own "do not compile now": an environment variable, which it reads each time."""

    def __init__(self, variable: str, system: str) -> None:
        self._variable, self._system = variable, system
        self._before: str | None = None
        self._is_ours = False

    def turn(self, on: bool) -> None:
        """Switch it on, or back to what it was."""
        if on == self._is_ours:
            return
        self._is_ours = on
        if on:
            self._before = os.environ.get(self._variable)
            os.environ[self._variable] = "1"
        elif self._before is None:
            os.environ.pop(self._variable, None)
        else:
            os.environ[self._variable] = self._before

    def why(self) -> str:
        """Say who made the library refuse, in one clause."""
        asked = f"--jitguard-deny={self._system}, which sets {self._variable}"
        return f"refused because of {asked if self._is_ours else f'{self._variable}, which is set'}"

    def tell(self, error: BaseException) -> None:
        """Say it in the library's exception as well, where exceptions take notes (Python 3.11)."""
        if self._is_ours and hasattr(error, "add_note"):
            error.add_note(f"pytest-jitguard: {self.why()}")


# -- the monitor -------------------------------------------------------------------------------------------------------


class BuildMonitor(WrappingMonitor):
    """A monitor of a system that builds libraries into files, and loads them once per process.

    `known` are the libraries that this process has built or loaded: running ninja over one of them again, or loading
    it again, is nothing that a request would wait for.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.known: dict[Identity, str] = {}
        self._later: dict[str, Callable[[ModuleType], None]] = {}

    def resident(self) -> dict[Hashable, str]:
        """Return the libraries that this process built or loaded."""
        return dict[Hashable, str](self.known.items())

    def uninstall(self) -> None:
        """Put everything back, and forget what was yet to be imported."""
        self._later.clear()
        super().uninstall()

    def reconcile(self) -> None:
        """Look whether the hooks are reached, and hook into what has been imported since."""
        for name in [name for name in self._later if not is_initialising(name)]:
            if name in sys.modules:
                self._hook_late(name, sys.modules[name])
        super().reconcile()

    def hook_later(self, name: str, hook_in: Callable[[ModuleType], None]) -> None:
        """Take hold of one more module of the library, now or when it has been imported."""
        self._later[name] = hook_in
        # False while it is half imported: then `reconcile` asks again.
        when_imported(name, lambda module: self._hook_late(name, module))

    def _hook_late(self, name: str, module: ModuleType) -> None:
        hook_in = self._later.pop(name, None)
        if hook_in is not None:
            self.guarded(f"the import of {name}", hook_in, module)
            self.guarded(f"the names of {name}", self.replace_names, module)

    @contextlib.contextmanager
    def building(
        self,
        name: str,
        artifact: Path,
        *,
        inputs: Iterable[AnyPath] = (),
        missing: Callable[[], str] | None = None,
        artifact_hash: str = "",
    ) -> Iterator[None]:
        """Record what runs ninja in the block: a compile, the first use in this process of what was built, or nothing.

        `inputs` are files that make a build due if they are newer than the artifact, `missing` says in one clause why
        there is none. What begins as the one and turns out to be the other is put right at the end.
        """
        before = identity(artifact)
        why = self.guarded("a build", self._why_built, name, artifact, before, inputs, missing) or ""
        if before in self.known and not why:
            with self._repeating(name, artifact, before):
                yield
            return
        kind = "compile" if why or before is None else "cache_load"
        with self.compiling(name, kind=kind, frame=sys._getframe()) as told:
            told.key = parameters(name)
            told.artifact_hash = artifact_hash
            told.reason = why
            yield
            self.guarded("what was built", self._built, told, name, artifact, before)

    def _built(self, told: Compiling, name: str, artifact: Path, before: Identity | None) -> None:
        after = identity(artifact)
        if after is None:
            return
        self.known[after] = name
        told.artifact_hash = told.artifact_hash or str(after)
        if after == before:
            told.kind, told.reason = "cache_load", ""
        else:
            told.kind = "compile"
            told.reason = told.reason or _rebuilt(artifact)

    def _why_built(
        self,
        name: str,
        artifact: Path,
        before: Identity | None,
        inputs: Iterable[AnyPath],
        missing: Callable[[], str] | None,
    ) -> str:
        """Say why a build is due, as far as that can be told before it; empty if it does not seem to be."""
        if before is None:
            why = (missing and missing()) or f"there was no {artifact.name} in {artifact.parent}"
            return f"{self.against_nearest(name)}{why}"
        changed = newer(before, inputs)
        return f"{changed} is newer than {artifact.name}" if changed else ""

    def against_nearest(self, name: str) -> str:
        """Say in what a module differs from the nearest of its kind that this process has: what a reason begins with.

        Names of modules are long, and what comes after them is cut off in a summary.
        """
        return self.guarded("what differs", self._differences, name) or ""

    def _differences(self, name: str) -> str:
        key = parameters(name)
        if key is None:
            return ""
        keys = [parameters(known) for known in set(self.known.values()) if known != name]
        kin = [other for other in keys if other and _kind_of(other) == _kind_of(key)]
        closest = nearest(key, kin)
        changes = ", ".join(map(str, diff(closest, key))) if closest else ""
        return f"{changes} against the nearest module of its kind here; " if changes else ""

    @contextlib.contextmanager
    def _repeating(self, name: str, artifact: Path, before: Identity | None) -> Iterator[None]:
        """Run ninja over what this process has: nothing, unless it builds all the same, or fails."""
        started, status = monotonic(), "ok"
        try:
            yield
        except BaseException:
            status = "failed"
            raise
        finally:
            after = identity(artifact)
            if after != before or status == "failed":
                reason = _rebuilt(artifact)
                self.record(name, kind="compile", started=started, status=status, reason=reason, key=parameters(name))
            if after is not None:
                self.known[after] = name

    @contextlib.contextmanager
    def loading(self, name: str, artifact: AnyPath, *, artifact_hash: str = "") -> Iterator[None]:
        """Record what loads a library in the block, unless this process has it, or it is not there."""
        found = identity(artifact)
        if found is None or found in self.known:
            yield
            return
        self.known[found] = name  # at once: other threads load the same
        try:
            with self.compiling(name, kind="cache_load", frame=sys._getframe()) as told:
                told.key = parameters(name)
                told.artifact_hash = artifact_hash or str(found)
                yield
        except BaseException:
            self.known.pop(found, None)
            raise

    def found(self, name: str, artifact: AnyPath) -> None:
        """Record the first use of a library that somebody else built; how long it takes to load is not seen."""
        found = identity(artifact)
        if found is not None and found not in self.known:
            self.known[found] = name
            self.record(
                name,
                kind="cache_load",
                started=monotonic(),
                frame=sys._getframe(1),
                timed=False,
                key=parameters(name),
                artifact_hash=str(found),
            )

    @contextlib.contextmanager
    def waiting(self, name: str, lock: AnyPath, holder: str) -> Iterator[None]:
        """Record the block as a wait for a lock; `holder` says who has it."""
        with self.compiling(name, kind="lock_wait", frame=sys._getframe(), reason=f"{holder} ({lock})"):
            yield

    @contextlib.contextmanager
    def perhaps_waiting(self, name: str, lock: AnyPath) -> Iterator[None]:
        """Record the block as a wait if somebody holds the `flock`; the kernel takes it from a holder that dies."""
        holder = "another process or thread was building it"
        if is_locked(lock):
            with self.waiting(name, lock, holder):
                yield
            return
        started = monotonic()
        yield
        if monotonic() - started > _NOTICEABLE:  # whoever holds it came between our look and the library's
            self.record(name, kind="lock_wait", started=started, reason=f"{holder} ({lock})")


def _rebuilt(artifact: Path) -> str:
    return f"ninja built it again although {artifact} was there: its flags, a header or the build's own log changed"


def baton_holder(lock: str) -> str:
    """Say who may hold a lock that is a file, which nobody removes for a process that died."""
    try:
        age = max(0.0, time.time() - Path(lock).stat().st_mtime)
    except OSError:
        return "another process was building it"
    return f"another process was building it, or died over it: the lock is {age:.0f} s old"
