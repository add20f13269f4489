"""What Inductor gives to others: jobs to its pool of compile workers, each a Triton kernel; tasks to its threads."""

from __future__ import annotations

import base64
import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors._inductor_runs import cache_folder

_IDLE = ("_get_ready",)
"""What is submitted to find out whether the pool is up."""


@dataclass(eq=False)
class Job:
    """One job: the kernel's name, the event, and when it was given away by the clock of files."""

    kernel: str
    submitted: float
    event: CompileEvent | None = None

    @classmethod
    def open(cls, job: Any, args: Sequence[Any]) -> Job | None:
        """Return a job for what is about to be submitted, None for what compiles nothing."""
        function: Any = job
        given = tuple(args)
        while isinstance(function, functools.partial):
            function, given = function.func, (*function.args, *given)
        name = getattr(function, "__name__", type(function).__name__)
        return None if name in _IDLE else cls(_kernel_name(given) or str(name), time.time())

    def watch(self, future: Any, guarded: Callable[..., Any], recorder: Recorder) -> None:
        """Close the event when the pool answers, before whoever waits for the answer goes on.

        Callbacks of a future run after that; they are for an answer that comes by another way: the pool is shut down.
        """

        def before(answer: Callable[[Any], None], end: Callable[[Recorder, Any], None]) -> Callable[[Any], None]:
            def answered(what: Any) -> None:
                guarded("a job", end, recorder, what)
                answer(what)

            return answered

        future.set_result = before(future.set_result, self.end)
        future.set_exception = before(future.set_exception, self.fail)
        future.add_done_callback(lambda done: guarded("a job", self.fail, recorder, "the pool did not answer"))

    def fail(self, recorder: Recorder, why: Any) -> None:
        """Close the event of a job that brought nothing."""
        if self.event is not None and self.event.status == "running":
            recorder.end(self.event, status="failed", detail=_first_line(why))

    def end(self, recorder: Recorder, result: Any) -> None:
        """Close the event with what came back from the worker: one hash for each variant that it compiled or found."""
        if self.event is None or self.event.status != "running":
            return
        variants = _variants(result)
        cold = [self._is_cold(variant) for variant in variants]
        kind = "cache_load" if cold and not any(cold) else "compile"
        first, *others = [_hash(variant) for variant in variants] or [""]
        recorder.end(self.event, kind=kind, artifact_hash=first or None, detail=_told(variants))
        for hash in dict.fromkeys(others):
            self._part(recorder, kind, hash)

    def _part(self, recorder: Recorder, kind: str, hash: str) -> None:
        """Announce one more variant: the worker has an event for each, and they are to be known for the same."""
        assert self.event is not None
        event = recorder.begin(
            self.event.system, self.kernel, "", kind=kind, started=self.event.started, parent=self.event.id
        )
        recorder.end(event, ended=self.event.ended, artifact_hash=hash)

    def _is_cold(self, variant: Any) -> bool:
        """Tell whether a variant was written after the job was given away; one that cannot be found counts as cold."""
        try:
            written = [file.stat().st_mtime for folder in _folders(_hash(variant)) for file in folder.iterdir()]
        except (OSError, ValueError):
            return True
        return not written or max(written) >= self.submitted


def _kernel_name(given: Sequence[Any]) -> str:
    """Return the kernel's name: the first argument of the function that loads its source, which is the job's first."""
    load = given[0] if given else None
    arguments = load.args if isinstance(load, functools.partial) else given
    name = arguments[0] if arguments else None
    return name if isinstance(name, str) and name.isidentifier() else ""


def _variants(result: Any) -> list[Any]:
    """Return the compiled variants in what a job returned: `(kernel, microseconds)`."""
    kernel = result[0] if isinstance(result, tuple) and result else result
    return [getattr(one, "kernel", one) for one in getattr(kernel, "compile_results", None) or ()]


def _hash(variant: Any) -> str:
    return str(getattr(variant, "hash", None) or getattr(getattr(variant, "metadata", None), "hash", None) or "")


def _folders(hash: str) -> list[Path]:
    """Return where a variant may lie: Triton's cache is where its variable says, else below Inductor's, by device."""
    name = base64.b32encode(bytes.fromhex(hash)).decode().rstrip("=")
    told = os.environ.get("TRITON_CACHE_DIR")
    roots = [Path(told)] if told else Path(cache_folder(), "triton").glob("*")
    return [folder for root in roots if (folder := root / name).is_dir()]


def _first_line(why: Any) -> str:
    """Return what a failure says: of a worker's, the last line of its traceback."""
    lines = [line.strip() for line in str(why).strip().splitlines() if line.strip()]
    return (lines[-1] if "Traceback" in str(why) else lines[0]) if lines else type(why).__name__


def _told(variants: Sequence[Any]) -> str:
    return f"{len(variants)} variants in one job of the worker pool" if len(variants) > 1 else ""


# -- threads -----------------------------------------------------------------------------------------------------------


def inside_of(recorder: Recorder, task: Callable[..., Any]) -> Callable[..., Any]:
    """Return a task that counts, on whatever thread, as part of what is under way on this one."""
    around = recorder.enclosing()
    if around is None:
        return task

    @functools.wraps(task)
    def handed_over(*args: Any, **kwargs: Any) -> Any:
        with recorder.inside(around):
            return task(*args, **kwargs)

    return handed_over


def handing_over(pool: Any, recorder: Recorder) -> Any:
    """Return a pool of threads, whose tasks count from now on as part of what is under way where they are submitted."""
    submit = pool.submit

    def submitted(task: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return submit(inside_of(recorder, task), *args, **kwargs)

    pool.submit = submitted
    return pool
