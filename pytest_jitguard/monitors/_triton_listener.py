"""What sits in `knobs.compilation.listener`: hears of the beginning by its truth, of the end by its call."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_jitguard.monitors.triton import TritonMonitor


class Listener:
    """Sits in `knobs.compilation.listener`, and hands everything on to the listener that was there before."""

    def __init__(self, monitor: TritonMonitor, slots: Any) -> None:
        self.monitor: TritonMonitor | None = monitor
        self.previous = slots.listener
        self._was_set = "listener" in vars(slots)

    def __bool__(self) -> bool:
        if self.monitor is not None:
            self.monitor.truth_tested(sys._getframe(1))
        others = self.previous is not None and bool(self.previous)
        return others or self.monitor is not None

    def __call__(self, **compiled: Any) -> None:
        """Take what `triton.compile` tells at its end."""
        __tracebackhide__ = True  # in the mode `raise`, what is shown is the user's launch
        event = self.monitor.compiled(sys._getframe(1), compiled) if self.monitor is not None else None
        if self.previous:
            self.previous(**compiled)
        if event is not None and self.monitor is not None and self.monitor.recorder.on_finished:
            self.monitor.recorder.on_finished(event)

    def take_out(self, slots: Any) -> None:
        """Leave the slot if it is ours; below another guard's listener be bypassed, below a stranger's pass on."""
        self.monitor = None
        above = vars(slots).get("listener")
        if above is self and self._was_set:
            slots.listener = self.previous
        elif above is self:
            del slots.listener
        while isinstance(above, Listener) and above.previous is not self:
            above = above.previous
        if isinstance(above, Listener):
            above.previous, above._was_set = self.previous, self._was_set
