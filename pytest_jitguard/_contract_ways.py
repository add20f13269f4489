"""The ways in which a monitor could go blind: in each it must see the next compile, or call itself blind."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pytest_jitguard._contract_bench import (
    ABSENT,
    Bench,
    HookPoint,
    expect,
    monitor_class,
    passing_on,
    rehearsed,
    rename,
)
from pytest_jitguard._contract_process import NotThere, answer, forked

if TYPE_CHECKING:
    from pytest_jitguard.contract import MonitorContract


class _Complaint(Exception):
    """What a stranger raises."""


# -- ten ways to go blind ----------------------------------------------------------------------------------------------


def renamed(subject: MonitorContract, number: int) -> None:
    """Rename the attribute in the library and wherever it uses it."""
    hook = _hook(subject, number)
    if hook.now is ABSENT or (hook.name.startswith("__") and hook.name.endswith("__")):
        raise NotThere(f"{hook} is inherited or the language's own name")
    rename(hook)
    bench = Bench(subject).arm()
    if bench.blind:
        return
    try:
        subject.compile_new()
    except Exception as error:
        raise NotThere(f"the library does not work without {hook}: {type(error).__name__}: {error}") from error
    bench.news()
    bench.expect_seen_or_blind(f"{hook} was renamed")


def replaced(subject: MonitorContract, number: int) -> None:
    """Somebody put something there that does not call what it replaced."""
    hook = _function(subject, number)
    bench = Bench(subject).arm()
    bench.look()
    hook.surround(hook.original, passing_on)
    bench.expect_seen_or_blind(f"{hook} was replaced by a stranger that does not call ours")


def put_back(subject: MonitorContract, number: int) -> None:
    """Somebody put back what was there before us."""
    hook = _hook(subject, number)
    bench = Bench(subject).arm()
    bench.look()
    hook.put(hook.before)
    bench.expect_seen_or_blind(f"{hook} was put back to what it was")


def chained(subject: MonitorContract, number: int, shape: str) -> None:
    """Somebody came on top and passes calls on: that is not blind."""
    hook = _function(subject, number)
    bench = Bench(subject).arm()
    bench.look()
    _SHAPES[shape](hook)
    bench.expect_one(f"a stranger came on top of {hook}")
    bench.look()
    expect(not bench.blind, f"{hook} was chained, and {bench.standing}")


def _by_function(hook: HookPoint) -> None:
    hook.surround(hook.now, passing_on)


def _by_wraps(hook: HookPoint) -> None:
    hook.surround(hook.now, passing_on)
    inner = getattr(hook.now, "__func__", hook.now)
    inner.__wrapped__ = hook.before


def _by_object(hook: HookPoint) -> None:
    if isinstance(hook.owner, type):
        raise NotThere("a method is replaced by functions only")
    hook.put(_Passing(hook.now))


def _by_partial(hook: HookPoint) -> None:
    if isinstance(hook.owner, type):
        raise NotThere("a method is replaced by functions only")
    hook.put(functools.partial(passing_on, hook.now))


class _Passing:
    """A stranger that is no function."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._inner(*args, **kwargs)


_SHAPES: Mapping[str, Callable[[HookPoint], None]] = {
    "function": _by_function,
    "wraps": _by_wraps,
    "object": _by_object,
    "partial": _by_partial,
}


def alias(subject: MonitorContract) -> None:
    """Somebody has imported the library's function by name before us."""
    compile_by_alias = subject.alias()
    bench = Bench(subject).arm()
    bench.look()
    bench.news()
    compile_by_alias()
    found = bench.news()
    bench.look()
    expect(found or bench.blind, f"a compile through a name taken before us was not seen; {bench.standing}")


def reset(subject: MonitorContract) -> None:
    """Call the library's own reset."""
    bench = Bench(subject).arm()
    bench.expect_one("before the reset")
    bench.look()
    subject.reset()
    bench.expect_seen_or_blind("after the library's reset")


def reload(subject: MonitorContract) -> None:
    """Import the library's module once more."""
    bench = Bench(subject).arm()
    bench.look()
    subject.reload()
    bench.expect_seen_or_blind(f"after a reload of {subject.target}")


def fork(subject: MonitorContract) -> None:
    """Fork: the child sees its own compiles, the parent its own."""
    bench = Bench(subject).arm()
    bench.look()
    bench.expect_one("before the fork")

    def child() -> None:
        bench.recorder.renew("forked", bench._sink)
        bench._known = 0
        bench.expect_seen_or_blind("in a forked process")

    _hand_on(forked(lambda: answer(child)))
    bench.expect_one("in the parent after a fork")


def _hand_on(told: Mapping[str, str]) -> None:
    expect("broken" not in told, told.get("broken", ""))
    if "not there" in told:
        raise NotThere(told["not there"])


def thread(subject: MonitorContract) -> None:
    """Compile on a thread that was there before us."""
    go, done = threading.Event(), threading.Event()

    def work() -> None:
        go.wait()
        subject.compile_new()
        done.set()

    threading.Thread(target=work, daemon=True).start()
    bench = Bench(subject).arm()
    bench.look()
    bench.news()
    go.set()
    expect(done.wait(subject.limit / 2), "a thread did not get through its compile")
    found = bench.news()
    expect(len(found) == 1 or bench.blind, f"a compile on an older thread: {len(found)} events; {bench.standing}")


def neighbour(subject: MonitorContract, number: int, position: str) -> None:
    """Have a stranger's hook raise: below ours, on top of it before it calls us, or after."""
    hook = _function(subject, number)
    switch: list[bool] = []

    def misbehaving(function: Any, *args: Any, **kwargs: Any) -> Any:
        if switch and position != "after":
            raise _Complaint(position)
        result = function(*args, **kwargs)
        if switch:
            raise _Complaint(position)
        return result

    if position == "below":
        hook.surround(hook.original, misbehaving)
    bench = Bench(subject).arm()
    bench.look()
    if position != "below":
        hook.surround(hook.now, misbehaving)
    bench.news()
    switch.append(True)
    try:
        subject.compile_new()
    except Exception:  # noqa: BLE001 - what becomes of the stranger's exception is the library's business
        pass
    switch.clear()
    open_ = [e.full_name for e in bench.news() if e.status == "running"]
    expect(not open_, f"left open by a stranger that raises: {open_}")
    bench.expect_one(f"after a stranger at {hook} has raised")


def imported_before(subject: MonitorContract) -> None:
    """Import the library, and compile with it, before the guard comes."""
    subject.compile_new()
    bench = Bench(subject).arm()
    bench.look()
    bench.expect_one("armed after the library was used")
    bench.look()
    expect(not bench.blind, f"armed after the library was used {bench.standing}")


def newer_version(subject: MonitorContract) -> None:
    """Try a version beyond those that were tested, and say so."""
    if not monitor_class(subject).tested:
        raise NotThere("the monitor names no tested versions")
    bench = Bench(subject)
    bench.monitor.version_of = lambda module: "9999.1"  # type: ignore[method-assign]
    bench.arm()
    expect(bench.monitor.state == "unproven", f"with version 9999.1 {bench.standing}")
    expect("9999.1" in bench.monitor.detail, f"the version is not said: {bench.standing}")
    bench.expect_one("with a version that was not tested")


def hidden(subject: MonitorContract) -> None:
    """Lose the hook in a way of the system's own."""
    bench = Bench(subject).arm()
    bench.look()
    subject.hide()
    bench.expect_seen_or_blind("after hide()")


def _hook(subject: MonitorContract, number: int) -> HookPoint:
    return rehearsed(subject)[number]


def _function(subject: MonitorContract, number: int) -> HookPoint:
    hook = _hook(subject, number)
    if not hook.is_function:
        raise NotThere(f"{hook} is no function")
    return hook
