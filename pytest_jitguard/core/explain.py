"""Why an event happened, in words: the nearest warmed variant, what changed, where, and what would cure it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from pytest_jitguard.core.events import GUARDS, CompileEvent, process_name
from pytest_jitguard.core.keys import NOT, Change, diff, nearest
from pytest_jitguard.core.kinds import listed

Advice = Callable[[Sequence[Change]], str]

_UNLIKE = ", unlike in the nearest warmed variant"


@dataclass(frozen=True)
class Explanation:
    """The answer to "why now": `cause` is one clause, the rest is the detail under it."""

    cause: str
    changes: tuple[Change, ...] = ()
    never_warmed: bool = False
    launch_site: str = ""
    called_from: str = ""
    cure: str = ""
    advice: str = ""


@dataclass(frozen=True)
class Background:
    """What an event is explained against.

    `warmed` are the events that made variants resident before serving, `earlier` maps an artifact hash to the test
    that compiled it first, `forgets` says of a system whether a test's variants are forgotten when the test ends,
    `test_files` are the files of the test suite, `root` the folder that paths are shown
    relative to.
    """

    warmed: Sequence[CompileEvent] = ()
    earlier: Callable[[CompileEvent], str] = lambda event: ""
    forgets: Callable[[str], bool] = lambda system: False
    test_files: Collection[str] = ()
    root: str = ""
    advice: Callable[[str], Advice | None] = lambda system: None


def explain(event: CompileEvent, background: Background) -> Explanation:
    """Explain one event; an event whose key is not known (yet) is explained as far as it goes."""
    same_kernel = [
        w
        for w in background.warmed
        if (w.system, w.full_name, w.scope) == (event.system, event.full_name, event.scope)
        and w.started <= event.started
    ]
    comparable = [w for w in same_kernel if w.key and w.status == "ok" and _comparable(w, event)]
    closest = nearest(event.key, [w.key for w in comparable if w.key]) if event.key else None
    changes = diff(closest, event.key) if closest and event.key else ()
    advise = background.advice(event.system)
    return Explanation(
        cause=_cause(event, changes, comparable, background),
        changes=changes,
        never_warmed=not comparable,
        launch_site=_relative(event.stack[0], background.root) if event.stack else "",
        called_from=_relative(_called_from(event, background.test_files), background.root),
        cure=event.cure,
        advice=advise(changes) if advise and changes else "",
    )


def _comparable(warmed: CompileEvent, event: CompileEvent) -> bool:
    """Tuning keys and specialization keys name different things; a load is comparable to what it is a load of."""
    return _is_tuning(warmed) == _is_tuning(event)


def _is_tuning(event: CompileEvent) -> bool:
    return event.kind == "autotune" or (event.key is not None and any(c.role == "tuning" for c in event.key.components))


def _called_from(event: CompileEvent, test_files: Collection[str]) -> str:
    # The stack of a forked process goes on where it was forked, which says nothing about this call.
    stack = event.stack if event.role in GUARDS else ()
    return next((frame for frame in stack if frame.rsplit(":", 2)[0] in test_files), "")


def _relative(frame: str, root: str) -> str:
    return frame.removeprefix(f"{root}/")


def _cause(
    event: CompileEvent, changes: Sequence[Change], warmed: Sequence[CompileEvent], background: Background
) -> str:
    if event.status == "running":
        return "its key is known when that is over"
    cause = _cause_by_key(event, changes, warmed)
    earlier = background.earlier(event)
    if not earlier:
        return cause
    forgotten = ", whose variants were forgotten when it ended" if background.forgets(event.system) else ""
    return f"{cause}; first served by {earlier}{forgotten}"


def _cause_by_key(event: CompileEvent, changes: Sequence[Change], warmed: Sequence[CompileEvent]) -> str:
    if event.reason:
        return event.reason
    if not warmed:
        return (
            "this kernel was never tuned by the warmup" if event.kind == "autotune" else "this kernel was never warmed"
        )
    equal = [w for w in warmed if event.artifact_hash and w.artifact_hash == event.artifact_hash]
    # Of several processes that built it, the event's own tells most.
    same = max(equal, key=lambda w: (w.pid == event.pid, w.started), default=None)
    if same is not None:
        return f"same binary as a warmed variant: {_same_binary(event, same, changes)}"
    if not event.key:
        return "its key is not known"
    if not changes:
        return "no component of the key differs from a warmed variant: it was evicted, or compiled for another object"
    told = [_sentence(change, event) for change in sorted(changes, key=_importance)[:2]]
    if all(sentence.endswith(_UNLIKE) for sentence in told):
        told = [*(sentence.removesuffix(_UNLIKE) for sentence in told[:-1]), told[-1]]
    rest = len(changes) - len(told)
    return listed([*told, *([f"{rest} more"] if rest else [])], ", and ")


def _same_binary(event: CompileEvent, warmed: CompileEvent, changes: Sequence[Change]) -> str:
    """Say what besides the binary makes up the in-process key, as far as both launches were seen."""
    if (event.pid, event.host) != (warmed.pid, warmed.host):
        return f"the warmup built it in {process_name(warmed)}, and it was not resident in this process"
    if event.launch and warmed.launch and event.launch.options != warmed.launch.options:
        served, before = (_spelled(launch.options) for launch in (event.launch, warmed.launch))
        same_set = sorted(event.launch.options) == sorted(warmed.launch.options)
        how = "option order" if same_set else "how its options are spelled"
        return f"the key differs only in {how}, {before} → {served}"
    if any(change.component == "device" for change in changes):
        return "the key differs only in the device, and each device has a lookup of its own"
    if event.launch and warmed.launch:
        return "it was evicted, or compiled for another kernel object of the same source"
    return "the key differs only in option order, spelling or device"


def _spelled(options: Sequence[tuple[str, str]]) -> str:
    return f"({', '.join(f'{name}={value}' for name, value in options)})"


def _importance(change: Change) -> int:
    """Tell first what the author of a call chose; divisibility often just follows from it."""
    if change.warmed is None or change.served is None or change.warmed.type != change.served.type:
        return 0
    return 1 if change.served.role in ("constexpr", "option") else 2


def _sentence(change: Change, event: CompileEvent) -> str:
    """Put one change into words, with the value that the caller passed where it was seen."""
    value = event.launch.values.get(change.component) if event.launch else None
    subject = f"{change.component}={value}" if value is not None else change.component
    if change.warmed is None or change.served is None or change.served.role != "argument":
        return f"{change.component} {change.transition()}"
    served, warmed = change.served.value, change.warmed.value
    if served == "1":
        return f"{change.component}=1 has a variant of its own, the nearest warmed one is for other values"
    if warmed == "1":
        return f"{subject} is not 1, the only value that the nearest warmed variant is for"
    if change.served.type != change.warmed.type:
        return f"{subject}: {change.transition()}" if value is not None else f"{subject} {change.transition()}"
    if served and (served == NOT + warmed or warmed == NOT + served):
        return f"{subject} is {served}{_UNLIKE}"
    if {served, warmed} == {"16-byte aligned", "unaligned"}:
        return f"{change.component} is {served}{_UNLIKE}"
    return f"{subject}: {change.transition()}" if value is not None else f"{change.component} {change.transition()}"
