"""The two markers: what they take, how stacked ones merge, and what is wrong with them, for all items at once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pytest

from pytest_jitguard.core.settings import BY_NAME, SettingsError, check_path


@dataclass(frozen=True)
class JitguardMark:
    """The arguments of `@pytest.mark.jitguard`; None means not given. Of stacked marks the closest wins, one by one."""

    warmup: Any = None
    mode: str | None = None
    fail_on: tuple[str, ...] | None = None
    max_events: int | None = None
    max_seconds: float | None = None
    monitors: tuple[str, ...] | None = None
    expect: tuple[str, ...] | None = None

    @property
    def warmups(self) -> tuple[Any, ...]:
        """The warmup entries as a tuple."""
        if self.warmup is None:
            return ()
        return tuple(self.warmup) if isinstance(self.warmup, (list, tuple)) else (self.warmup,)


def guard_mark(item: pytest.Item) -> JitguardMark | None:
    """Return the merged jitguard mark of an item, None if it has none. The marks were checked at collection."""
    marks = list(item.iter_markers("jitguard"))
    if not marks:
        return None
    merged: dict[str, Any] = {}
    for mark in reversed(marks):
        merged |= {name: _value(name, value) for name, value in mark.kwargs.items() if value is not None}
    return JitguardMark(**merged)


def allow_marks(item: pytest.Item) -> Iterator[tuple[str, str]]:
    """Yield (pattern, reason) of every allow_jit mark on the item."""
    for mark in item.iter_markers("allow_jit"):
        for pattern in mark.args:
            yield str(pattern), str(mark.kwargs["reason"])


def complaints(items: Sequence[pytest.Item], monitors: Sequence[str]) -> list[str]:
    """Return what is wrong with the marks of all items, each complaint once, with the first item that has it.

    `monitors` are the names of those that this run has.
    """
    found: dict[str, list[str]] = {}
    for item in items:
        for mark in item.iter_markers():
            check = _CHECKS.get(mark.name)
            for complaint in (*check(mark), *_unwatched(mark, monitors)) if check else ():
                found.setdefault(complaint, []).append(item.nodeid)
    return [_with_items(complaint, nodeids) for complaint, nodeids in found.items()]


def _with_items(complaint: str, nodeids: list[str]) -> str:
    others = len(set(nodeids)) - 1
    return f"{nodeids[0]}{f' (and {others} more)' if others else ''}: {complaint}"


def _check_jitguard(mark: pytest.Mark) -> Iterator[str]:
    if mark.args:
        yield f"jitguard takes keywords only, not {mark.args[0]!r}"
    for name, value in mark.kwargs.items():
        if name not in _KNOWN:
            yield f"jitguard has no keyword {name!r}{_did_you_mean(name, _KNOWN)}; known are {', '.join(_KNOWN)}"
            continue
        try:
            if value is not None:
                _value(name, value)
        except (ValueError, TypeError) as error:
            yield f"jitguard({name}={value!r}): {error}"


def _unwatched(mark: pytest.Mark, monitors: Sequence[str]) -> Iterator[str]:
    """Complain of a test that asks for a monitor which this run has not: nothing would ever fail it."""
    names = mark.kwargs.get("monitors") if mark.name == "jitguard" else None
    for name in [names] if isinstance(names, str) else names if isinstance(names, (list, tuple)) else ():
        if name not in (*monitors, "unattributed"):
            known = ", ".join(monitors) or "none"
            yield f"jitguard(monitors={names!r}): no monitor {name!r} in this run; it has {known}"


def _check_allow_jit(mark: pytest.Mark) -> Iterator[str]:
    for name in mark.kwargs:
        if name != "reason":
            yield f"allow_jit has no keyword {name!r}; known is reason"
    reason = mark.kwargs.get("reason")
    if not isinstance(reason, str) or not reason.strip():
        yield 'allow_jit needs a reason: @pytest.mark.allow_jit("triton:kernel", reason="why it may compile")'
    if not mark.args:
        yield "allow_jit needs at least one pattern, such as 'triton:my_kernel' or '*:my_package.*'"
    for pattern in mark.args:
        if not isinstance(pattern, str) or not pattern.strip():
            yield f"allow_jit takes patterns as text, not {pattern!r}"


_CHECKS: dict[str, Callable[[pytest.Mark], Iterator[str]]] = {
    "jitguard": _check_jitguard,
    "allow_jit": _check_allow_jit,
}
_KNOWN = tuple(field.name for field in fields(JitguardMark))


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _value(name: str, value: Any) -> Any:
    """Check one keyword and bring it to its form; ValueError says what is accepted."""
    if name in ("mode", "fail_on"):
        return _setting(name, value)
    if name == "warmup":
        return _warmup(value)
    if name == "max_events":
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError("expected a whole number from 0")
        return value
    if name == "max_seconds":
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ValueError("expected a number of seconds from 0")
        return float(value)
    return _texts(value)


def _setting(name: str, value: Any) -> Any:
    try:
        return BY_NAME[name].parse(value, name)
    except SettingsError:
        raise ValueError(f"expected {BY_NAME[name].expects()}") from None


def _texts(value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("expected a text or a list of texts")
    return texts


def _warmup(value: Any) -> Any:
    for entry in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(entry, str):
            try:
                check_path(entry, "warmup")
            except SettingsError:
                raise ValueError("expected package.module:callable, a callable, or a list of them") from None
        elif not callable(entry):
            raise ValueError("expected package.module:callable, a callable, or a list of them")
    return value
