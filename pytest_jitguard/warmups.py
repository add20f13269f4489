"""Runs warmups in one process: under a phase of their own, under limits, in turn with other workers, and on record."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from pytest_jitguard.assemble import Process
from pytest_jitguard.core.residency import SHARED
from pytest_jitguard.core.settings import WarmupCall
from pytest_jitguard.session import GuardSession
from pytest_jitguard.warmup import once
from pytest_jitguard.warmup.plan import Step, WarmupContext
from pytest_jitguard.warmup.progress import Progress
from pytest_jitguard.warmup.runner import WarmupResult, run


class Warmups:
    """The warmups of one process. `write` rewrites the progress line."""

    def __init__(self, process: Process, session: GuardSession, write: Callable[[str], None]) -> None:
        self._process = process
        self._session = session
        self._write = write

    def run(self, steps: Sequence[Step | WarmupCall], group: str = SHARED) -> WarmupResult:
        """Run steps whose variants count as warmed for the tests of a group, and record how it went."""
        settings, session = self._process.settings, self._session
        session.prove()
        turn = once.turn(self._process.folder / "turns", group or "session") if self._takes_turns() else None
        with session.warming("warmup", group or "session", group), self._progress() as progress:
            context = WarmupContext(settings.offline, settings, progress.message)
            result = run(steps, context, timeout=settings.warmup_timeout, turn=turn, file=self._process.stderr)
        session.recorder.note({"record": "warmup", "label": group, **result.to_wire()})
        return result

    def _takes_turns(self) -> bool:
        return self._process.role == "xdist worker"

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Progress]:
        progress, recorder = Progress(self._write), self._session.recorder
        recorder.on_begin, recorder.on_end = progress.begin, progress.end
        try:
            yield progress
        finally:
            recorder.on_begin = recorder.on_end = None
            progress.done()
