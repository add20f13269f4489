"""The checks of a contract. Each takes the description of a monitor and runs in a process of its own."""

from __future__ import annotations

import copy
import functools
import gc
import sys
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pytest_jitguard._contract_bench import (
    ABSENT,
    Bench,
    HookPoint,
    counting_frames,
    expect,
    monitor_class,
    own_modules,
    passing_on,
    rehearsed,
)
from pytest_jitguard._contract_process import NotThere
from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.monitors import Tells

if TYPE_CHECKING:
    from pytest_jitguard.contract import MonitorContract


# -- what it is --------------------------------------------------------------------------------------------------------


def declares(subject: MonitorContract) -> None:
    """Declare name, target, versions and what is told; be imported without the library."""
    expect(
        not subject.target or subject.target not in sys.modules,
        f"{subject.target} was imported by the test module or by the monitor's: neither may, it is for library() to do",
    )
    kind = monitor_class(subject)
    expect(subject.target not in sys.modules, f"importing the monitor imported {subject.target}")
    expect(isinstance(getattr(kind, "name", None), str) and kind.name, "the monitor has no name")
    tells = getattr(kind, "tells", None)
    expect(isinstance(tells, Tells), "the monitor does not say what it tells: tells = Tells(identity=...)")
    assert isinstance(tells, Tells)
    expect(tells.identity, "tells.identity is empty: say what names a compile")
    if kind.tested:
        from packaging.specifiers import SpecifierSet

        SpecifierSet(kind.tested)


def installs(subject: MonitorContract) -> None:
    """Wait for the import, take hold when that is done, and see the first compile."""
    bench = Bench(subject).arm()
    waits = "waiting" if subject.target else "unproven"
    expect(bench.monitor.state == waits, f"before the import it should be {waits}: {bench.standing}")
    expect(not subject.target or bench.monitor.resident() == {}, "something is resident before the import")
    subject.bring()
    expect(bench.monitor.state in ("unproven", "armed"), f"after the import {bench.standing}")
    bench.look()
    bench.expect_one("the first compile after the import")


# -- what it sees ------------------------------------------------------------------------------------------------------


def sees_one_compile(subject: MonitorContract) -> None:
    """Tell a cold compile as one event, with name, kind, and seconds within the call's own time."""
    bench = Bench(subject).arm()
    bench.look()
    bench.news()
    began = monotonic()
    name = subject.compile_new()
    ended = monotonic()
    found = bench.news()
    expect(len(found) == 1, f"one compile gave {len(found)} events: {[e.full_name for e in found]}; {bench.standing}")
    _expect_told(found[0], name, began, ended)
    tells = getattr(monitor_class(subject), "tells", None)
    expect(not (tells and tells.key) or found[0].key, "it says that it tells keys, and the event has none")
    expect(not tells or found[0].kind in tells.kinds, f"kind {found[0].kind} is not among those that it tells")


def _expect_told(event: CompileEvent, name: str, began: float, ended: float) -> None:
    expect(event.system and event.kernel, "the event has no name")
    expect(not name or name in event.full_name, f"the event is called {event.full_name}, which does not have {name}")
    expect((event.kind, event.status) == ("compile", "ok"), f"the event is {event.kind}, {event.status}")
    expect(event.ended is not None, "the event did not end")
    assert event.ended is not None
    expect(began <= event.started, f"it began {began - event.started:.6f} s before the call")
    expect(event.ended <= ended, f"it ended {event.ended - ended:.6f} s after the call")
    expect(event.ended > event.started, "it took no time")


def begins_before_and_ends_after(subject: MonitorContract) -> None:
    """Write the begin record before the library compiles, the end record after."""
    calls: list[tuple[float, float]] = []

    def timed(function: Any, *args: Any, **kwargs: Any) -> Any:
        began = monotonic()
        try:
            return function(*args, **kwargs)
        finally:
            calls.append((began, monotonic()))

    for hook in [hook for hook in rehearsed(subject) if hook.is_function]:
        hook.surround(hook.original, timed)
    bench = Bench(subject).arm()
    bench.look()
    bench.news()
    calls.clear()
    bench.told.clear()
    subject.compile_new()
    within = list(calls)
    found = bench.news()
    expect(len(found) == 1, f"with a stranger below, one compile gave {len(found)} events; {bench.standing}")
    event = found[0]
    moments = [(t.moment, t.record["record"]) for t in bench.told if t.record.get("event") == event.id]
    expect([what for _, what in moments] == ["begin", "end"], f"records of the event: {moments}")
    (begin, _), (end, _) = moments
    expect(
        any(begin <= began and ended <= end for began, ended in within) or end - begin > 0.5 * (event.seconds or 0) > 0,
        f"begin and end were written {end - begin:.6f} s apart, around no function that was replaced; "
        f"the event lasted {event.seconds:.6f} s",
    )


def ignores_a_hit(subject: MonitorContract) -> None:
    """Tell nothing of what is in the process already."""
    bench = Bench(subject).arm()
    bench.expect_one("before the hits")
    for _ in range(3):
        subject.repeat()
    found = bench.news()
    expect(not found, f"an in-process hit gave {[e.kind + ' ' + e.full_name for e in found]}")
    expect(not bench.blind, f"after hits {bench.standing}")


def costs_nothing(subject: MonitorContract) -> None:
    """Over many hits no Python function of ours, or of the monitor's, is called."""
    bench = Bench(subject).arm()
    bench.look()
    with counting_frames(subject) as compiling:
        subject.compile_new()
    expect(compiling or not bench.hooks, "not one frame of the monitor was counted while it saw a compile")
    subject.repeat()
    gc.collect()
    gc.disable()  # what it collects may be watched, and is no hit
    try:
        with counting_frames(subject) as called:
            for _ in range(subject.hits):
                subject.repeat()
    finally:
        gc.enable()
    expect(not called, f"{len(called)} calls of ours over {subject.hits} hits, the first {called[:1]}")


def tells_a_failed_compile(subject: MonitorContract) -> None:
    """Tell a compile that raises as a failed event, and let it raise what it raises without a monitor."""
    bare = _outcome(subject.fail)
    bench = Bench(subject).arm()
    bench.look()
    bench.news()
    watched = _outcome(subject.fail)
    found = bench.news()
    expect(watched == bare, f"a compile that fails gave {watched}, without a monitor {bare}")
    expect([e.status for e in found] == ["failed"], f"a compile that raised gave {[e.status for e in found]}")
    expect(not bench.blind, f"after a compile that failed {bench.standing}")
    bench.expect_one("after a compile that failed")


def _outcome(action: Callable[[], object]) -> tuple[str, ...]:
    """Return what became of a compile that cannot succeed; there are libraries that return an error."""
    try:
        returned = action()
    except Exception as error:  # noqa: BLE001 - whatever the library raises
        text = "".join(c for c in str(error) if not c.isdigit())  # names may be numbered
        return type(error).__name__, text, type(error.__cause__).__name__
    return "returned", repr(returned)


def tells_a_load_from_disk(subject: MonitorContract, step: int) -> None:
    """Tell what another process left on disk as a `cache_load`; step 0 leaves it there."""
    bench = Bench(subject).arm()
    bench.look()
    bench.news()
    subject.load_from_disk()
    found = [event.kind for event in bench.news()]
    expected = "cache_load" if step else "compile"
    expect(found == [expected], f"process {step + 1} of 2 gave {found} instead of one {expected}; {bench.standing}")


def sees_threads(subject: MonitorContract) -> None:
    """Compiles on several threads at once are one event each, with the thread's name."""
    bench = Bench(subject).arm()
    bench.look()
    bench.news()
    # Each has a subject of its own: what `compile_new` keeps for `repeat` must not get mixed up.
    each = [copy.copy(subject) for _ in range(subject.threads)]
    threads = [threading.Thread(target=of.compile_new, name=f"thread-{n}") for n, of in enumerate(each)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = bench.news()
    expect(len(found) == len(threads), f"{len(threads)} threads compiled, {len(found)} events; {bench.standing}")
    expect(all(event.status == "ok" for event in found), f"statuses {[event.status for event in found]}")
    names = {event.thread for event in found}
    expect(names == {thread.name for thread in threads}, f"the events are said to be of {sorted(names)}")


# -- what it leaves ----------------------------------------------------------------------------------------------------


def uninstalls_without_trace(subject: MonitorContract) -> None:
    """Everything is back to the identical object, and nothing is seen any more."""
    before = _contents(sys.modules.get(subject.target))
    hooks = rehearsed(subject)
    _expect_restored(subject, hooks, before)
    bench = Bench(subject).arm()
    bench.look()
    bench.expect_one("before it is uninstalled")
    events = len(bench.recorder.events)
    bench.disarm()
    _expect_restored(subject, hooks, before)
    subject.compile_new()
    bench.monitors.settle()
    expect(len(bench.recorder.events) == events, "after it was uninstalled it still sees compiles")


def _contents(module: ModuleType | None) -> dict[str, Any]:
    return dict(vars(module)) if module is not None else {}


def _expect_restored(subject: MonitorContract, hooks: list[HookPoint], before: Mapping[str, Any]) -> None:
    left = [str(hook) for hook in hooks if hook.now is not hook.before]
    after, foreign = _contents(sys.modules.get(subject.target)), own_modules(subject)
    for name, value in after.items():
        if value is not before.get(name, ABSENT) and _is_of(value, foreign):
            left.append(f"{subject.target}.{name}")
    expect(not left, f"left behind: {', '.join(dict.fromkeys(left))}")


def _is_of(value: Any, modules: set[str]) -> bool:
    home = str(getattr(value, "__module__", ""))
    return home in modules or home.startswith("pytest_jitguard.") or hasattr(value, "_jitguard_link")


def lets_go_below_a_stranger(subject: MonitorContract) -> None:
    """Under a stranger's wrapper it cannot be taken out; then it sees nothing any more, and passes on."""
    bench = Bench(subject).arm()
    _surround_all(bench, passing_on)
    bench.disarm()
    events = len(bench.recorder.events)
    subject.compile_new()
    expect(len(bench.recorder.events) == events, "uninstalled below a stranger, it still sees compiles")


def survives_double_install(subject: MonitorContract) -> None:
    """Live in a guard within a guard: both see each compile once, and leave in any order."""
    hooks = rehearsed(subject)
    for first_leaves in (True, False):
        before = [hook.now for hook in hooks]
        outer = Bench(subject).arm()
        inner = Bench(subject).arm()
        inner.monitors.arm()  # the same set once more
        subject.compile_new()
        counts = (len(outer.news()), len(inner.news()))
        expect(counts == (1, 1), f"two sets saw {counts} events of one compile")
        leaves, stays = (outer, inner) if first_leaves else (inner, outer)
        leaves.disarm()
        stays.expect_one("after the other set has left")
        expect(not leaves.news(), "a set that has left still sees compiles")
        stays.disarm()
        expect(
            all(hook.now is value for hook, value in zip(hooks, before, strict=True)),
            f"two sets did not put back {[str(h) for h, v in zip(hooks, before, strict=True) if h.now is not v]}",
        )


def waits_for_half_imported_modules(subject: MonitorContract) -> None:
    """Leave a module alone whose import is under way."""
    spec = getattr(sys.modules.get(subject.target), "__spec__", None)
    if spec is None:
        raise NotThere("the target is no module that Python imported")
    hooks = rehearsed(subject)
    before = [hook.now for hook in hooks]
    spec._initializing = True
    bench = Bench(subject).arm()
    expect(bench.monitor.state == "waiting", f"with {subject.target} half imported {bench.standing}")
    expect(all(hook.now is v for hook, v in zip(hooks, before, strict=True)), "it touched a half imported module")
    spec._initializing = False
    bench.monitors.settle()
    bench.expect_one("after the import has finished")


# -- what goes wrong in us ---------------------------------------------------------------------------------------------


def keeps_its_failures_to_itself(subject: MonitorContract, record: str) -> None:
    """Keep from the library what cannot be recorded, and be blind."""
    bench = Bench(subject).arm()
    bench.look()
    bench.news()
    bench.refuse = functools.partial(_refuse, record)
    subject.compile_new()
    bench.refuse = lambda record: None
    _again(subject)
    expect(bench.blind, f"the {record} of a compile could not be written, and {bench.standing}")
    bench.disarm()
    subject.compile_new()


def _again(subject: MonitorContract) -> None:
    if "repeat" not in subject.not_there:
        subject.repeat()


def _refuse(kind: str, record: Mapping[str, Any]) -> None:
    if record.get("record") == kind:
        raise OSError(f"no {kind} can be written")


class _Complaint(Exception):
    """What the mode `raise` raises."""


def lets_the_mode_raise_through(subject: MonitorContract) -> None:
    """Raise in the mode `raise` as the very last act: no lock is held, nothing is left open."""
    bench = Bench(subject).arm()
    bench.look()
    bench.news()
    raised: list[str] = []

    def complain(event: CompileEvent) -> None:
        raised.append(event.kernel)
        raise _Complaint(event.kernel)

    bench.recorder.on_finished = complain
    try:
        subject.compile_new()
    except Exception as error:  # noqa: BLE001 - a library may wrap what its hooks raise
        expect(raised, f"raised by itself: {type(error).__name__}: {error}")
    expect(raised, "recorder.finished was not called for a compile")
    bench.recorder.on_finished = None
    expect([e.status for e in bench.news()] == ["ok"], "a compile that was complained of did not end as it was")
    after = threading.Thread(target=subject.compile_new, daemon=True)
    after.start()
    after.join(subject.limit / 2)
    expect(not after.is_alive(), "after the mode `raise` the library hangs: something is still held")
    expect(len(bench.news()) == 1, f"after the mode `raise` a compile was not seen; {bench.standing}")


# -- no false red ------------------------------------------------------------------------------------------------------


def is_not_blind_for_nothing(subject: MonitorContract) -> None:
    """Phases, canaries, compiles and hits in any order leave it armed."""
    bench = Bench(subject).arm()
    bench.look()
    for when in ("in the first phase", "in the second phase"):
        bench.expect_one(when)
        _again(subject)
        bench.look()
        expect(not bench.blind, f"{when} {bench.standing}")
    expect(not bench.news(), "a look at its liveness gave an event")


def finds_out_what_it_missed(subject: MonitorContract) -> None:
    """Be blind for a variant that became resident past the hook."""
    bench = Bench(subject).arm()
    bench.look()
    subject.sneak_in()
    found = bench.news()
    expect(found or bench.blind, f"something became resident past the hook, and {bench.standing}")


def is_blind_without_its_hook_point(subject: MonitorContract) -> None:
    """Where the library has no such function any more, it says so."""
    blind = []
    for hook in [hook for hook in rehearsed(subject) if hook.now is not ABSENT]:
        value = hook.now
        hook.put(ABSENT)
        bench = Bench(subject).arm()
        blind.append(bench.blind)
        bench.disarm()
        hook.put(value)
    expect(any(blind), "not one of its hook points is missed: without any of them it takes itself for alive")


def _surround_all(bench: Bench, around: Callable[..., Any]) -> None:
    for hook in bench.hooks:
        if hook.is_function:
            hook.surround(hook.now, around)


def list_hooks(subject: MonitorContract) -> None:
    """Answer with the names of the hook points."""
    raise NotThere("\n".join(str(hook) for hook in rehearsed(subject)))
