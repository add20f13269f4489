"""What was told out of order: the driver's compiler is told of before the call that ran it, or after. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_jitguard.witness.records import BEGAN, CALL, COMPILER, MODULE, Record

_ASKEW = 0.00005


def owner_of(jit: Record, calls: Iterable[Record]) -> Record | None:
    """Return the call on a compiler record's thread in which it ran, by its middle, give or take 50 us of two clocks.

    What NVRTC stores ends just before the load that follows, and a call that finds its PTX in the driver's cache begins
    0.1 ms after the one before: so inside goes before near, and of several the call whose start is nearest.
    """
    middle = (jit.started + jit.ended) / 2

    def outside(call: Record) -> float:
        return max(call.started - middle, middle - call.ended, 0.0)

    mine = [call for call in calls if call.thread == jit.thread and outside(call) <= _ASKEW]
    return min(mine, key=lambda call: (outside(call), abs(middle - call.started)), default=None)


class Backlog:
    """Records that belong to load calls which are not over yet; they wait for them.

    A call is told of twice: as it begins, and when it is over. What CUPTI hands over when it is asked to flush is
    complete for the calls that were over before, so calls that end meanwhile wait for the next time.
    """

    def __init__(self) -> None:
        self.waiting: list[Record] = []

    def complete(self, before: Sequence[Record], flushed: Sequence[Record]) -> list[Record]:
        """Return what can be put together: of the records taken before the flush, after it, and left since last time.

        Everything, if no call is under way.
        """
        known = [*self.waiting, *before, *flushed]
        over = {record.call for record in (*self.waiting, *before) if record.what == CALL}
        under_way = [began for began in _begun(known) if began.call not in over]
        self.waiting = [record for record in known if _has_to_wait(record, known, over, under_way)]
        kept = {id(record) for record in self.waiting}
        # Calls that are over and wait for nothing must not linger as "begun".
        return [record for record in known if id(record) not in kept and record.what != BEGAN]


def _begun(records: Sequence[Record]) -> list[Record]:
    """Return the beginnings of calls, but for those whose end was lost: their thread has begun another since."""
    ended = {record.call for record in records if record.what == CALL}
    began = [record for record in records if record.what == BEGAN]
    latest = {record.thread: record.call for record in sorted(began, key=lambda record: record.call)}
    return [record for record in began if record.call in ended or record.call == latest[record.thread]]


def _has_to_wait(record: Record, known: Sequence[Record], over: set[int], under_way: Sequence[Record]) -> bool:
    if record.what in (CALL, BEGAN, MODULE):
        return record.call in {began.call for began in under_way}
    if record.what != COMPILER or not under_way:
        return False
    return False
