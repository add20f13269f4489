"""The last net: what is new in the cache folders of JIT systems, in whatever process it was compiled."""

from __future__ import annotations

import os
from types import ModuleType
from typing import ClassVar

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.kinds import UNATTRIBUTED
from pytest_jitguard.core.places import PLACES, SYSTEMS, Place
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Monitor, Tells
from pytest_jitguard.monitors._cache_snapshot import Entry, Snapshot
from pytest_jitguard.monitors._cache_writers import hints
from pytest_jitguard.monitors._toolchain_files import wall

WITNESS = "cache folders"
"""How the net is called where it is the second witness of an event."""

_MARGIN = 1.0
"""Seconds by which a file may be older or younger than the compile that it comes from: coarse times, late writers."""

_MARGIN_OF_STRANGERS = 0.5
"""The same for compiles of which only the compiler's process was seen: nothing says which place is theirs."""


class CacheFolderMonitor(Monitor):
    """Compares the cache folders at each phase's end with what they were; what no event explains is one.

    An event explains an entry if it was under way when the entry's files were written, in whichever process of the run,
    and its system may write there. A compiler's process that no monitor claimed explains what is new in one place.

    The net looks from the guard only, since children would see the same entries, and not where several workers of one
    run share the folders: an entry does not say who wrote it.
    """

    name: ClassVar[str] = "cache_folders"
    target: ClassVar[str] = ""
    is_net: ClassVar[bool] = True
    tells: ClassVar[Tells] = Tells(identity="the entry's name and size", children=False)

    def __init__(self, recorder: Recorder, places: tuple[Place, ...] = PLACES) -> None:
        super().__init__(recorder)
        self._snapshot = Snapshot(places)
        self._reported: set[str] = set()
        self._place_of: dict[str, Place] = {}
        self._pid = 0
        self._strays: list[tuple[CompileEvent, Entry, float]] = []

    def install(self, module: ModuleType) -> None:
        """Look at the folders for the first time."""
        if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
            self.state, self.detail = "off", "several xdist workers share the cache folders; who wrote cannot be told"
            return
        self._pid = os.getpid()
        self._snapshot.begin()
        self.state = "armed"

    def uninstall(self) -> None:
        """Leave: there is nothing to take out."""

    def prove(self) -> None:
        """Nothing to prove: folders are read, not hooked."""

    def flush(self) -> None:
        """Look for new entries, and for the events that explain them."""
        if self._pid != os.getpid():
            return
        for entry in sorted(self._snapshot.look(), key=lambda entry: entry.first):
            self._account_for(entry)
        self._report_strays()
        if self._snapshot.overfull and not self.detail:
            self.detail = f"too many folders to look at in {', '.join(sorted(self._snapshot.overfull))}"

    def _account_for(self, entry: Entry) -> None:
        behind = monotonic() - wall()
        first, last = entry.first + behind, entry.last + behind
        event = self._explaining(entry, first, last)
        if event is None:
            event = self.recorder.begin(UNATTRIBUTED, _called(entry), "", started=first)
            event.thread = ""
            self._reported.add(event.id)
            self._strays.append((event, entry, max(first, last)))
            return
        self._place_of.setdefault(event.id, entry.place)
        if event.id.rpartition("-")[0] == self.recorder.image:
            self.recorder.corroborate(event, WITNESS)

    def _explaining(self, entry: Entry, first: float, last: float) -> CompileEvent | None:
        """Return the event that explains an entry: of those that may, the innermost, which is the last that began."""
        found = [event for event in self.recorder.events if self._may_explain(event, entry, first, last)]
        return max(found, key=lambda event: event.started, default=None)

    def _may_explain(self, event: CompileEvent, entry: Entry, first: float, last: float) -> bool:
        if event.id in self._reported or event.kind == "lock_wait":
            return False
        is_strangers = event.system == UNATTRIBUTED
        if is_strangers and self._place_of.get(event.id, entry.place) is not entry.place:
            return False
        margin = _MARGIN_OF_STRANGERS if is_strangers else _MARGIN
        ended = float("inf") if event.ended is None else event.ended
        overlaps = event.started - margin <= last and first <= ended + margin
        return overlaps and (event.system in entry.place.systems or event.system not in SYSTEMS)

    def _report_strays(self) -> None:
        """End the events that have just begun: who uses their entries is asked once for all of them."""
        strays, self._strays = self._strays, []
        for (event, entry, ended), whose in zip(strays, hints([entry.path for _, entry, _ in strays]), strict=True):
            where = f"{entry.place.cold}'s cache folder ({entry.path.parent})"
            reason = f"{entry.path.name} appeared in {where}, and no monitor accounts for it"
            self.recorder.end(
                event,
                ended=ended,
                timed=entry.last > entry.first,  # a single file tells when it was written, and not since when
                detail=f"{entry.path}, {_size(entry.size)}",
                reason=f"{reason}: {whose or 'this run or another program wrote it'}",
            )


def _called(entry: Entry) -> str:
    name = entry.path.name
    return name.partition(".")[0] or name


def _size(size: int) -> str:
    return f"{size} bytes" if size < 10_000 else f"{size / 1e3:.0f} KB" if size < 10_000_000 else f"{size / 1e6:.0f} MB"
