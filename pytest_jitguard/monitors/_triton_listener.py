"""What sits in `knobs.compilation.listener`: hears of the beginning by its truth, of the end by its call."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_jitguard.monitors.triton import TritonMonitor


class Seat:
    """One monitor's place in the slot: the listeners of it in the chain, of which the topmost tells, once a compile.

    A listener of a seat that is below a stranger's cannot be removed; it tells nothing that one above it has told. So
    it does not matter which of them the stranger calls or puts back into the slot: each of them will do.
    """

    def __init__(self, monitor: TritonMonitor, slots: Any) -> None:
        self.monitor: TritonMonitor | None = monitor
        self._slots = slots
        self._first: Listener | None = None
        self._handing: set[tuple[int, int, int]] = set()  # thread, call, whom it is handed to

    def take(self) -> None:
        """Sit on top, unless all that is above is a guard's, which asks whoever is below; a stranger may not ask."""
        above = self._slots.listener
        while isinstance(above, Listener) and above.seat is not self:
            above = above.previous
        if isinstance(above, Listener):
            return
        listener = Listener(self, self._slots.listener, "listener" in vars(self._slots))
        self._first = listener if self._first is None else self._first  # not `or`: its truth is a test
        self._slots.listener = listener

    def leave(self) -> None:
        """Take out what can be: in the slot and below guards' listeners; what is below a stranger's only passes on."""
        self.monitor = None
        above, here = None, vars(self._slots).get("listener")
        while isinstance(here, Listener):
            if here.seat is not self:
                above = here
            elif above is not None:
                above.previous, above.was_set = here.previous, here.was_set
            elif here.was_set:
                self._slots.listener = here.previous
            else:
                del self._slots.listener
            here = here.previous

    def is_told(self, call: tuple[int, int]) -> bool:
        """Tell whether a listener of this seat has taken this call, and is handing it on now."""
        return any(handing[:2] == call for handing in list(self._handing))

    @contextlib.contextmanager
    def handing_on(self, call: tuple[int, int], listener: Listener) -> Iterator[Any]:
        """Give whom a listener hands a call on to.

        A stranger that we sat on top of may come again, and take us for the one before it. Then the way on is a
        circle; whom the stranger called the first time is below the first listener of this seat.
        """
        # Whoever is in the slot has been called, and so has everybody that this call is being handed to.
        called = {id(self._slots.listener), *(to for *of, to in list(self._handing) if (*of,) == call)}
        first = listener if self._first is None else self._first
        previous = next((way for way in (listener.previous, first.previous) if id(way) not in called), None)
        handing = (*call, id(previous))
        self._handing.add(handing)
        try:
            yield previous
        finally:
            self._handing.discard(handing)


class Listener:
    """Sits in `knobs.compilation.listener`, and hands everything on to the listener that was there before."""

    def __init__(self, seat: Seat, previous: Any, was_set: bool) -> None:
        self.seat = seat
        self.previous = previous
        self.was_set = was_set

    def __bool__(self) -> bool:
        monitor = self.seat.monitor
        if monitor is not None:
            monitor.truth_tested(sys._getframe(1))
        with self.seat.handing_on((threading.get_ident(), 0), self) as previous:
            others = previous is not None and bool(previous)
        return others or monitor is not None

    def __call__(self, **compiled: Any) -> None:
        """Take what `triton.compile` tells at its end."""
        __tracebackhide__ = True  # in the mode `raise`, what is shown is the user's launch
        call = (threading.get_ident(), id(compiled.get("src")))
        monitor = self.seat.monitor if not self.seat.is_told(call) else None
        event = monitor.compiled(sys._getframe(1), compiled) if monitor is not None else None
        with self.seat.handing_on(call, self) as previous:
            if previous:
                previous(**compiled)
        if event is not None and monitor is not None:
            monitor.recorder.finished(event)
