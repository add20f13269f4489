"""A time limit that raises first and ends the process if that does not help."""

from __future__ import annotations

import faulthandler
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, final

from pytest_jitguard.core.clock import monotonic

STDERR = 2
"""The file descriptor, since `sys.stderr` may be captured by then."""

_AGAIN = 0.01
_SAME_TIMER = 0.05


class WarmupTimeout(BaseException):
    """The limit is over. No Exception, so that the `except Exception` of a step does not swallow it."""

    def __init__(self, text: str = "the warmup's time limit is over") -> None:
        super().__init__(text)


@final
class Limit:
    """Context manager for a block that may take `seconds`; see `limit`."""

    def __init__(self, seconds: float | None, grace: float = 30.0, file: Any = None) -> None:
        self._seconds = seconds
        self._grace = grace
        self._file = STDERR if file is None else file
        self._ends = 0.0
        self._bell: _AlarmBell | _ThreadBell | None = None

    def __enter__(self) -> Limit:
        """Start both clocks."""
        if self._seconds is not None:
            self._ends = monotonic() + self._seconds
            self._bell = _AlarmBell() if _alarm_is_usable() else _ThreadBell()
            faulthandler.dump_traceback_later(self._seconds + self._grace, exit=True, file=self._file)
            self._bell.arm(self._seconds)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Stop both clocks; a block that is late is late, also if it swallowed the timeout or turned it around."""
        late = self._bell is not None and monotonic() >= self._ends
        try:
            self.close()
        except WarmupTimeout:  # an asynchronous exception struck inside; it comes once
            self.close()
        if late and not isinstance(error, (WarmupTimeout, KeyboardInterrupt)):
            raise WarmupTimeout from error

    def close(self) -> None:
        """Stop both clocks; harmless where they do not run.

        Callers call it after the `with` once more: an exception between the block's last instruction and `__exit__`
        would leave the clock running that ends the process.
        """
        if self._bell is not None:
            faulthandler.cancel_dump_traceback_later()
            self._bell.disarm()
            self._bell = None


def limit(seconds: float | None, grace: float = 30.0, file: Any = None) -> Limit:
    """Limit a block to `seconds`; None is no limit.

    At the limit WarmupTimeout is raised in the thread of the block. In the main thread it interrupts waiting (SIGALRM;
    handler and timer of others are put back afterwards); in another thread it arrives when that thread next runs
    Python code. `grace` seconds later a timer in C, which needs no interpreter lock, writes the stacks of all threads
    to `file` (an object with a descriptor, or the descriptor; standard error if None) and ends the process with
    status 1.

    Python has one such timer per process: one that somebody else armed with `faulthandler.dump_traceback_later` is
    replaced and cannot be put back, and whoever arms or cancels it inside the block takes ours away. Limits therefore
    do not nest.
    """
    return Limit(seconds, grace, file)


def _alarm_is_usable() -> bool:
    # Signals are handled in the main thread only; a handler that C code installed (None) could not be put back.
    return threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGALRM) is not None


class _AlarmBell:
    """Raises in the main thread, by SIGALRM."""

    def __init__(self) -> None:
        self._armed = False
        self._previous: Any = signal.SIG_DFL
        self._previous_timer = (0.0, 0.0)
        self._since = 0.0
        self._seconds = 0.0

    def arm(self, seconds: float) -> None:
        self._previous_timer = signal.setitimer(signal.ITIMER_REAL, 0)
        self._since, self._seconds = monotonic(), seconds
        self._previous = signal.signal(signal.SIGALRM, self._ring)
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def _ring(self, _: int, frame: FrameType | None) -> None:
        if not self._armed:
            return
        if frame is not None and frame.f_code.co_filename == __file__:
            # The block is just being left (or entered): raising here would skip the clean-up.
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
            return
        raise WarmupTimeout

    def disarm(self) -> None:
        if not self._armed:
            return
        self._armed = False
        now = monotonic()
        left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
        if signal.getsignal(signal.SIGALRM) != self._ring:
            # Somebody took the signal over inside the block. It is theirs now; only our own timer must not reach them.
            if abs(left - (self._since + self._seconds - now)) > _SAME_TIMER or interval:
                signal.setitimer(signal.ITIMER_REAL, left, interval)
            return
        signal.signal(signal.SIGALRM, self._previous)
        self._restore_timer(now)

    def _restore_timer(self, now: float) -> None:
        delay, interval = self._previous_timer
        if delay:
            # One that would have rung meanwhile rings now.
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, delay - (now - self._since)), interval)


class _ThreadBell:
    """Raises in the thread that made it, by an asynchronous exception."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._armed = False
        self._timer: threading.Timer | None = None

    def arm(self, seconds: float) -> None:
        self._armed = True
        self._timer = threading.Timer(seconds, self._ring)
        self._timer.daemon = True
        self._timer.start()

    def _ring(self) -> None:
        with self._lock:
            if self._armed:
                _raise_in(self._thread)

    def disarm(self) -> None:
        with self._lock:
            self._armed = False
        # One that was set before strikes at the next call at the latest, which is still inside `Limit.__exit__`.
        if self._timer is not None:
            self._timer.cancel()


def _raise_in(thread: int) -> None:
    import ctypes

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(WarmupTimeout))
