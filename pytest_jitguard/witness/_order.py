"""What was told out of order: the driver's compiler is told of before the call in which it ran, or after it. Pure."""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from pytest_jitguard.witness.records import BEGAN, CALL, COMPILER, Record

_ASKEW = 0.00005


def owner_of(jit: Record, calls: Iterable[Record]) -> Record | None:
    """Return the call on a compiler record's thread in which it ran, by its middle, give or take 50 us of two clocks.

    What NVRTC stores ends just before the load that follows, and loads from the driver's cache are 0.1 ms apart: so
    inside goes before near, and of several the call whose start is nearest.
    """
    middle = (jit.started + jit.ended) / 2

    def outside(call: Record) -> float:
        return max(call.started - middle, middle - call.ended, 0.0)

    possible = [call for call in calls if call.thread == jit.thread and outside(call) <= _ASKEW]
    return min(possible, key=lambda call: (outside(call), abs(middle - call.started)), default=None)


def owners(calls: Iterable[Record]) -> Callable[[Record], Record | None]:
    """Return a quick `owner_of` for many records: calls of one thread come one after the other."""
    by_thread: defaultdict[int, list[Record]] = defaultdict(list)
    for call in sorted(calls, key=lambda call: call.started):
        by_thread[call.thread].append(call)
    starts = {thread: [call.started for call in mine] for thread, mine in by_thread.items()}

    def owner(jit: Record) -> Record | None:
        at = bisect(starts.get(jit.thread, ()), (jit.started + jit.ended) / 2)
        return owner_of(jit, by_thread[jit.thread][max(0, at - 2) : at + 1])

    return owner


class Backlog:
    """Records that belong to load calls which are not over yet; they wait for them.

    A call is told of twice: when it begins, and when it is over. What CUPTI hands over when it is asked to flush is
    complete for the calls that were over before; a call that ends meanwhile waits for the next time.
    """

    def __init__(self) -> None:
        self.waiting: list[Record] = []

    def complete(self, before: Sequence[Record], flushed: Sequence[Record]) -> list[Record]:
        """Return what can be put together, of what was taken before and after a flush, and of what has waited.

        Where no call is under way, that is everything.
        """
        known = [*self.waiting, *before, *flushed]
        over = {record.call for record in (*self.waiting, *before) if record.what == CALL}
        calls = _calls(known)
        under_way, owner = calls.keys() - over, owners(calls.values())
        self.waiting, ready = [], []
        for record in known:
            if _call_of(record, owner) in under_way:
                self.waiting.append(record)
            elif record.what != BEGAN:
                ready.append(record)
        return ready


def _calls(records: Sequence[Record]) -> dict[int, Record]:
    """Return the calls by their numbers, without end where it is not known.

    Where the end of one was lost, its thread has begun another since.
    """
    began = sorted((record for record in records if record.what == BEGAN), key=lambda record: record.call)
    latest = {record.thread: record for record in began}
    calls = {record.call: record._replace(ended=float("inf")) for record in latest.values()}
    return calls | {record.call: record for record in records if record.what == CALL}


def _call_of(record: Record, owner: Callable[[Record], Record | None]) -> int:
    call = owner(record) if record.what == COMPILER else record
    return call.call if call else 0
