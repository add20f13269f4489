"""Runs the steps of a warmup and says how it went."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.settings import WarmupCall
from pytest_jitguard.core.verdicts import duration
from pytest_jitguard.warmup.limit import Limit, WarmupTimeout, limit
from pytest_jitguard.warmup.once import Turn, WarmupHung
from pytest_jitguard.warmup.plan import Step, WarmupContext, WarmupPathError, call_step, plan_step

_HERE = str(Path(__file__).parent)
_LONGEST_ERROR = 300
_SETTINGS = " (set by --jitguard-warmup, a [[warmup]] table or the marker's warmup=)"


@dataclass
class StepResult:
    """How one step went: `status` is `ok`, `failed` or `timeout`, `error` one line, `traceback` all of it.

    `unusable` marks a step that failed because its path or signature is a mistake in the configuration.
    """

    path: str
    status: str
    seconds: float
    error: str = ""
    traceback: str = ""
    unusable: bool = False

    def to_wire(self) -> dict[str, Any]:
        """Return the result as plain types."""
        return {
            "path": self.path,
            "status": self.status,
            "seconds": self.seconds,
            "error": self.error,
            "traceback": self.traceback,
        }


@dataclass
class WarmupResult:
    """How a warmup went: `ok`, `failed`, `timeout`; `none` is a warmup without steps.

    Waiting for other processes is not part of `seconds`. `error` and `traceback` say why not even the first step was
    tried; otherwise the last of `steps` knows.
    """

    status: str
    seconds: float = 0.0
    waited: float = 0.0
    steps: list[StepResult] = field(default_factory=list)
    error: str = ""
    traceback: str = ""

    @property
    def usage_error(self) -> str:
        """What is wrong with a step's path or signature, which is a mistake in the configuration; empty otherwise."""
        return next((step.error for step in self.steps if step.unusable), "")

    @property
    def cause(self) -> str:
        """Why it failed, in one line; empty if it did not."""
        if self.status in ("ok", "none"):
            return ""
        if self.error:
            return f"warmup not started: {self.error}"
        step = self.steps[-1]
        if step.unusable:
            return step.error
        what = f"failed after {duration(step.seconds)}" if step.status == "failed" else "was stopped"
        return f"warmup {step.path} {what}: {step.error}"

    @property
    def detail(self) -> str:
        """The traceback (or the stacks) that belongs to the cause."""
        return self.traceback or (self.steps[-1].traceback if self.steps else "")

    def to_wire(self) -> dict[str, Any]:
        """Return the result as plain types."""
        return {
            "status": self.status,
            "seconds": self.seconds,
            "waited": self.waited,
            "cause": self.cause,
            "detail": self.detail,
            "steps": [step.to_wire() for step in self.steps],
        }


def run(
    steps: Sequence[Step | WarmupCall],
    context: WarmupContext,
    *,
    timeout: float | None = None,
    turn: AbstractContextManager[Turn | None] | None = None,
    grace: float = 30.0,
    file: Any = None,
) -> WarmupResult:
    """Run the steps in order until one fails. Only KeyboardInterrupt passes.

    A WarmupCall is resolved when its turn comes, so that an import that hangs, raises or compiles is part of the
    warmup. `timeout` is for all steps together; see `limit` for what happens at its end and `grace` later. The time
    spent waiting for `turn` does not count. With a turn the stacks of a hanging process go into its marker, so that
    the next process (or `once.hung`) tells them; without one they go to `file`.
    """
    if not steps:
        return WarmupResult("none")
    try:
        with turn or nullcontext() as mine:
            waited, file = (mine.waited, mine.file) if mine else (0.0, file)
            result = _run_steps(steps, context, _Clock(timeout, grace, file))
            result.waited = waited
            if mine and result.status == "ok":
                mine.succeeded()
            return result
    except WarmupHung as error:
        return WarmupResult("failed", error=str(error), traceback=error.stacks)
    except OSError as error:
        return WarmupResult("failed", error=f"cannot take turns, {_one_line(error)}", traceback=_full_text(error))


class _Clock:
    """The limit of a whole warmup, handed out step by step."""

    def __init__(self, timeout: float | None, grace: float, file: Any) -> None:
        self.timeout = timeout
        self._grace = grace
        self._file = file
        self._started = monotonic()

    @property
    def elapsed(self) -> float:
        return monotonic() - self._started

    def limit(self) -> Limit:
        left = None if self.timeout is None else max(0.001, self.timeout - self.elapsed)
        return limit(left, self._grace, self._file)


def _run_steps(steps: Sequence[Step | WarmupCall], context: WarmupContext, clock: _Clock) -> WarmupResult:
    result = WarmupResult("ok")
    for number, step in enumerate(steps, 1):
        context.progress(f"step {number} of {len(steps)}, {step.path}")
        outcome = _run_step(step, context, clock)
        result.steps.append(outcome)
        if outcome.status != "ok":
            result.status = outcome.status
            break
    result.seconds = clock.elapsed
    return result


def _run_step(step: Step | WarmupCall, context: WarmupContext, clock: _Clock) -> StepResult:
    started, limited = clock.elapsed, clock.limit()
    status, error, text, unusable = "ok", "", "", False
    try:
        with limited:
            call_step(step if isinstance(step, Step) else plan_step(step), context)
    except KeyboardInterrupt:
        raise
    except WarmupTimeout as timeout:
        status, error, text = "timeout", _say_timeout(timeout, clock.timeout), _full_text(timeout)
    except WarmupPathError as mistake:
        status, error, text, unusable = "failed", f"{mistake}{_SETTINGS}", _full_text(mistake), True
    except BaseException as failure:  # noqa: BLE001  pytest's outcomes and SystemExit are no Exceptions
        status, error, text = "failed", _one_line(failure), _full_text(failure)
    finally:
        limited.close()
    return StepResult(step.path, status, clock.elapsed - started, error, text, unusable)


def _say_timeout(error: WarmupTimeout, timeout: float | None) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_HERE)]
    where = f", in {frames[-1].name} ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"over its limit of {timeout or 0:g} s{where}"


def _one_line(error: BaseException) -> str:
    if isinstance(error, WarmupPathError):
        return str(error)
    lines = [line for line in "".join(traceback.format_exception_only(error)).splitlines() if line.strip()]
    # A syntax error shows its place first and its message last; anything else begins with its message.
    line = (lines[-1] if isinstance(error, SyntaxError) else lines[0])[:_LONGEST_ERROR]
    return line if isinstance(error, Exception) else f"{line} (a warmup step must return, or raise an Exception)"


def _full_text(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, _without_our_frames(error.__traceback__)))


def _without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    inner = trace
    while inner is not None and inner.tb_frame.f_code.co_filename.startswith(_HERE):
        inner = inner.tb_next
    return inner or trace
