"""The clock of a run, out of reach of tests that replace the functions of `time`."""

from __future__ import annotations

import time
from collections.abc import Callable


def monotonic(*, read: Callable[[], float] = time.monotonic) -> float:
    """Return seconds of the monotonic clock, of the real one also where a test mocks or freezes time.

    A default is what those who replace functions do not look at: they take the attributes of modules.
    """
    return read()


def pause(seconds: float, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Sleep, also where a test replaced `time.sleep`."""
    sleep(seconds)
