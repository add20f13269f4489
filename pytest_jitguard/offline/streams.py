"""Streams and events of a device that runs nothing: always idle, always done."""

from __future__ import annotations

import itertools
from typing import Any

_handles = itertools.count(1)
_clock = itertools.count(1)

TICK_MS = 1000.0
"""Made-up milliseconds between two recorded events; long, so that benchmark loops that calibrate stay short."""


class Stream:
    """Stands in for `torch.cuda.Stream`. Work is done when it is issued, so there is nothing to wait for."""

    def __init__(self, device: object = None, priority: int = 0, **_: object) -> None:
        self.priority = priority
        self.stream_id = next(_handles)
        self.device_index = 0
        self.device_type = 1  # c10::DeviceType::CUDA

    @property
    def cuda_stream(self) -> int:
        """The raw handle: 0 for the default stream."""
        return self.stream_id

    @property
    def device(self) -> Any:
        """`cuda:0`."""
        import torch

        return torch.device("cuda", 0)

    @classmethod
    def priority_range(cls) -> tuple[int, int]:
        """Return (lowest, highest)."""
        return 0, -5

    def query(self) -> bool:
        """Return True: all work is done."""
        return True

    def synchronize(self) -> None:
        """Return at once."""

    def wait_event(self, event: object) -> None:
        """Return at once."""

    def wait_stream(self, stream: object) -> None:
        """Return at once."""

    def record_event(self, event: Event | None = None) -> Event:
        """Record `event`, or a new one, and return it."""
        event = event or Event()
        event.record(self)
        return event

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.stream_id == self.stream_id

    def __hash__(self) -> int:
        return hash((Stream, self.stream_id))

    def __repr__(self) -> str:
        return f"<torch.cuda.Stream device=cuda:0 cuda_stream={self.cuda_stream:#x} (offline)>"


class Event:
    """Stands in for `torch.cuda.Event`. Times are made up: each `record()` is one second after the one before."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.enable_timing = enable_timing
        self._recorded: int | None = None

    def record(self, stream: object = None) -> None:
        """Note the next tick of the made-up clock."""
        self._recorded = next(_clock)

    def wait(self, stream: object = None) -> None:
        """Return at once."""

    def query(self) -> bool:
        """Return True: all work is done."""
        return True

    def synchronize(self) -> None:
        """Return at once."""

    def elapsed_time(self, end_event: Event) -> float:
        """Return made-up milliseconds between two recorded events; the conditions are those of the real one."""
        if not (self.enable_timing and end_event.enable_timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self._recorded is None or end_event._recorded is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return (end_event._recorded - self._recorded) * TICK_MS


class CurrentStream:
    """Which stream is current. One for all threads: nothing depends on it but what code reads back."""

    def __init__(self) -> None:
        self.default = Stream()
        self.default.stream_id = 0
        self.current = self.default


class StreamContext:
    """Stands in for `torch.cuda.stream(...)` and `torch.cuda.StreamContext`."""

    def __init__(self, stream: Stream | None, state: CurrentStream | None = None) -> None:
        self.stream = stream
        self._state = state or CurrentStream()
        self._previous = self._state.current

    def __enter__(self) -> Stream | None:
        self._previous = self._state.current
        if self.stream is not None:
            self._state.current = self.stream
        return self.stream

    def __exit__(self, *exc_info: object) -> None:
        self._state.current = self._previous
