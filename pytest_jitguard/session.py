"""One guarded run in one process: phases, residency, verdicts. Knows monitors and journal, but not pytest."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from pytest_jitguard.core.baseline import Baseline
from pytest_jitguard.core.clock import monotonic, pause
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.explain import Advice, Background, Explanation
from pytest_jitguard.core.kinship import doubles_of, mark_origins
from pytest_jitguard.core.phases import WARMING_PHASES, PhaseLog, Placed, Window
from pytest_jitguard.core.policy import Allowance, Policy, matches
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.core.residency import SHARED
from pytest_jitguard.core.settings import Settings
from pytest_jitguard.core.verdicts import Served, Verdict, Violation, judge
from pytest_jitguard.monitors import MonitorSet
from pytest_jitguard.monitors.residents import Residents
from pytest_jitguard.processes.relatives import Relative, Relatives
from pytest_jitguard.scopes import Scope, Scopes

LONGEST_WAIT = 10.0
"""Seconds for which the end of a warmup or a test waits for compiles that it left running on other threads."""


_COUNTED = "triton"
"""The system whose launches the offline target counts; of others it is known what is resident."""

_MOST_REQUESTS = 3
"""How many of the requests under way an explanation names."""

_UNTIL_RESIDENT = 0.1
"""Seconds from the end of a compile, as its monitor is told, until its variant is resident: Triton calls its listener
first (3.6 to 3.9). Far more than it takes, for busy machines."""


@dataclass
class Attempt:
    """One attempt of one test while it runs.

    `first_event` is where the recorder stood when it began. `policy` is None for a test that is not guarded, unless it
    calls `serving()`: then `policy_of_blocks` holds. `left_open` are blocks that setup opened around the call. Launches
    are counted before the call, in warmup blocks and fixtures inside it, and in `serving()` blocks. `failures` are
    those of requests that the test sent in the background and asked no more about.
    """

    nodeid: str
    number: int
    first_event: int
    policy: Policy | None
    policy_of_blocks: Policy
    groups: set[str] = field(default_factory=set)
    before_call: Counter[str] = field(default_factory=Counter)
    in_warmups: Counter[str] = field(default_factory=Counter)
    in_serving: Counter[str] = field(default_factory=Counter)
    left_open: list[Window] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)


class GuardSession:
    """The guard of one process, to be driven phase by phase; a test can drive it without pytest.

    `launch_counts` returns launches by `module.kernel` where they can be counted (offline), None elsewhere. Without
    `relatives` nothing is heard of other processes. `fetch` brings in journals that do not grow in the run's folder.
    """

    def __init__(
        self,
        settings: Settings,
        recorder: Recorder,
        monitors: MonitorSet,
        *,
        baseline: Baseline | None = None,
        launch_counts: Callable[[], dict[str, int]] | None = None,
        relatives: Relatives | None = None,
        root: str = "",
    ) -> None:
        self.settings = settings
        self.recorder = recorder
        self.monitors = monitors
        self.baseline = baseline or Baseline()
        self.phases = PhaseLog()
        self.verdicts: dict[str, list[Verdict]] = {}
        self.test_files: Collection[str] = ()
        self.attempt: Attempt | None = None
        self.scopes = Scopes(self.phases, recorder.note)
        self.relatives = relatives
        self.fetch: Callable[[], None] = lambda: None
        self._judged: dict[tuple[str, int], Policy | None] = {}
        self._warming_groups: list[str] = []
        self._order_dependent = False
        self._launch_counts = launch_counts
        self._root = root
        self._residents = Residents(monitors, forget=settings.forget)
        self._noted: dict[str, dict[str, Any]] = {}
        self._attempts: dict[str, int] = {}
        self._warming: list[tuple[CompileEvent, str]] = []
        self._warming_known = 0
        self._first_owner: dict[object, str] = {}
        self._ever_armed: set[str] = set()
        self._given_up: set[str] = set()
        self._settled = self._taken = 0
        self._refuses = False
        # The innermost block of the running thread or async task.
        self._block: ContextVar[Window | None] = ContextVar("block", default=None)

    # -- phases --------------------------------------------------------------------------------------------------------

    def open(self, phase: str, label: str = "", **details: Any) -> Window:
        """Open a window now, and tell the journal."""
        window = self.phases.open(phase, label, monotonic(), around=self._block.get(), **details)
        self.recorder.note(window.open_record())
        return window

    def close(self, window: Window) -> list[Window]:
        """Close a window now, and whatever is still open inside; return what was closed."""
        closed = self.phases.close(window, monotonic())
        for inner in closed:
            self.recorder.note(inner.close_record())
        return closed

    @contextlib.contextmanager
    def phase(self, phase: str, label: str = "", **details: Any) -> Iterator[Window]:
        """Open a window around a block; at its end the monitors settle what happened in it."""
        before = self._residents.snapshot() if phase in WARMING_PHASES else {}
        window = self.open(phase, label, **details)
        try:
            yield window
        finally:
            self.settle()
            self.close(window)
            if phase in WARMING_PHASES:
                # What a warming phase began on another thread is warmed by it, though it ends a little later.
                self.wait_for_running()
                self._residents.keep(before, window.owner)

    @contextlib.contextmanager
    def warming(self, phase: str, label: str, group: str, beside: Iterable[str] = ()) -> Iterator[Window]:
        """Open the window of what warms for a group of tests: a marker's warmup or a fixture of wider scope.

        Only what the session, this group and the groups `beside` warmed is in the lookups meanwhile: the group must not
        miss a variant for the reason that somebody else happened to have compiled it.
        """
        hidden = self._residents.leave_only({group, *beside})
        try:
            count = self.attempt.in_warmups if self.attempt else None
            self._warming_groups.append(group)
            with self._counting(count), self.phase(phase, label, owner=group, attempt=0) as window:
                yield window
        finally:
            self._warming_groups.pop()
            self._residents.put_back(hidden)
            self.use(group)

    @contextlib.contextmanager
    def block(self, phase: str = "", label: str = "", allowed: str = "") -> Iterator[Window]:
        """Open a block of the running test's own, by default of the phase around it; it warms for that test only."""
        mine = self._block.get()
        around = self.phases.inside(mine)
        kind, explicit = (phase, True) if phase else (around.phase, around.explicit) if around else ("between", False)
        window = self.open(kind, label, explicit=explicit, allowed=allowed, block=True)
        self._block.set(window)
        try:
            with self._counting(self._count_of(window, around)), self._refusing(window):
                yield window
        finally:
            self.settle()
            self.close(window)
            self._block.set(mine)

    def _count_of(self, window: Window, around: Window | None) -> Counter[str] | None:
        """Choose where the launches of a block are counted; one inside another of its kind is part of that."""
        if self.attempt is None or (around is not None and around.phase == window.phase and around.explicit):
            return None
        kinds = {"warmup": self.attempt.in_warmups, "serving": self.attempt.in_serving}
        return kinds.get(window.phase) if window.explicit else None

    def keep_shared(self) -> None:
        """Count as warmed for every test whatever is resident now."""
        self._residents.keep({}, SHARED)

    def settle(self) -> None:
        """Let the monitors catch up with what happened, prove themselves, and write down how they stand."""
        self.monitors.settle()
        self.hear()
        self.monitors.account()
        self._take_for_proofs()
        self.prove()
        self._note_monitors()

    def _take_for_proofs(self) -> None:
        """Take each event of this process for the proof of its monitor: not every library has a canary."""
        for event in self.recorder.events[self._taken :]:
            if event.pid == os.getpid():
                self.monitors.seen(event.system)
        self._taken = len(self.recorder.events)

    def hear(self) -> None:
        """Take in what other processes have reported since the last time."""
        if self.relatives is None:
            return
        self.fetch()
        for event in self.relatives.poll():
            self.recorder.events.append(event)
            placed = self.place(event)
            policy = self._judged.get((placed.owner, placed.attempt))
            if placed.served and policy is not None and policy.forbids(event):
                self._note_late(event, placed)

    def _note_late(self, event: CompileEvent, placed: Placed) -> None:
        """Say that a record came after the verdict over its test: rare, and never to be lost."""
        message = f"{event.kernel} ({event.system}) was served by {placed.owner}, whose verdict was given before pid "
        message += f"{event.pid} told of it"
        self.recorder.note({"record": "finding", "name": "late", "message": message, "remedy": "run it again"})

    def rest(self) -> None:
        """Between two tests: what the last one left running ends, and is forgotten like the rest of it."""
        self.wait_for_running()
        self._residents.forget_strays()

    def wait_for_running(self) -> None:
        """Wait for compiles on other threads, so that no later test finds their variants; not for ever."""
        until = monotonic() + LONGEST_WAIT
        while unsettled := [event for event in self._unsettled() if event.id not in self._given_up]:
            if monotonic() > until:
                self._given_up.update(event.id for event in unsettled)
                return
            pause(0.005)
            self.monitors.settle()
            self.hear()
            self.monitors.account()

    def _unsettled(self) -> list[CompileEvent]:
        """Return what still runs, or ended on another thread so lately that its variant may not be resident yet."""
        events, here = self.recorder.events, threading.current_thread().name
        lately = monotonic() - _UNTIL_RESIDENT
        found = [
            event
            for event in events[self._settled :]
            if event.status == "running" or (self._is_own(event, here) and (event.ended or 0.0) > lately)
        ]
        if not found:
            self._settled = len(events)
        return found

    def _is_own(self, event: CompileEvent, here: str) -> bool:
        """Tell whether an event is another thread's of this process."""
        return event.pid == os.getpid() and event.thread != here

    def _note_monitors(self) -> None:
        for monitor in self.monitors:
            state = monitor.to_wire()
            if self._noted.get(monitor.name) != state:
                self._noted[monitor.name] = state
                self.recorder.note({"record": "monitor", **state})

    def prove(self) -> None:
        """Run the canaries that are due, outside every window's judgement."""
        self.monitors.prove()
        self._ever_armed |= set(self._armed())

    def _armed(self) -> list[str]:
        """Return the systems that are watched, as some compile has shown: that hooks are in place proves nothing."""
        return sorted(monitor.name for monitor in self.monitors if monitor.state == "armed" and monitor.has_seen)

    def use(self, group: str) -> None:
        """Count what a group warmed as warmed for the running test, from now on; its servers are used by the test."""
        if self.attempt is not None:
            self.attempt.groups.add(group)
            for scope in self.scopes.of_group(group):
                self.scopes.use(scope, self.attempt.nodeid, self.attempt.number)
        self._residents.recall(group)

    def begin_scope(self, scope: Scope) -> None:
        """Note that a server is about to be started, by a fixture of wider scope or by the running test itself."""
        owner, attempt = "", 0
        if self._warming_groups:
            owner = scope.group = self._warming_groups[-1]
        elif self.attempt is not None:
            owner, attempt = self.attempt.nodeid, self.attempt.number
        self._listen_to(scope)
        self.scopes.begin(scope, owner, attempt)
        self.use_scope(scope)

    def attach_scope(self, scope: Scope, started: float, warmed: float) -> None:
        """Note that a server which another process started is used here."""
        scope.group = self._warming_groups[-1] if self._warming_groups else ""
        self._listen_to(scope)
        self.scopes.attach(scope, started, warmed)
        self.use_scope(scope)

    def _listen_to(self, scope: Scope) -> None:
        if self.relatives is not None:
            self.relatives.scopes.add(scope.id)

    def use_scope(self, scope: Scope) -> None:
        """Count a server as used by the running test, unless a fixture of wider scope is being set up."""
        if self.attempt is not None and not self._warming_groups:
            self.scopes.use(scope, self.attempt.nodeid, self.attempt.number)

    # -- tests ---------------------------------------------------------------------------------------------------------

    def begin_test(
        self,
        nodeid: str,
        policy: Policy | None,
        groups: Iterable[str] = (),
        *,
        policy_of_blocks: Policy | None = None,
    ) -> Attempt:
        """Begin an attempt of a test; without a policy it is recorded, not judged (unless it calls `serving()`).

        `groups` are the marker's warmups: what they warmed counts for the test. Fixtures join when they are used.
        """
        used = set(groups)
        self._residents.leave_only(used)
        self._attempts[nodeid] = number = self._attempts.get(nodeid, 0) + 1
        of_blocks = policy_of_blocks or self.default_policy()
        self.attempt = Attempt(nodeid, number, len(self.recorder.events), policy, of_blocks, used)
        for group in used:
            self.use(group)
        return self.attempt

    def end_test(self) -> None:
        """End the attempt: note who compiled what first, and forget it."""
        attempt, self.attempt = self.attempt, None
        if attempt is None:
            return
        for event in self.recorder.events[attempt.first_event :]:
            own = event.pid == os.getpid() and self.place(event).owner == attempt.nodeid
            if own and (identity := _identity(event)):
                self._first_owner.setdefault(identity, attempt.nodeid)
        self.monitors.settle()
        self._residents.forget_strays()

    @contextlib.contextmanager
    def test_phase(self, phase: str) -> Iterator[Window]:
        """Open the setup, serving or teardown window of the running attempt."""
        attempt = self.attempt
        assert attempt is not None
        window = self.open(phase, attempt.nodeid, owner=attempt.nodeid, attempt=attempt.number)
        if phase == "serving":
            attempt.before_call, attempt.in_warmups, attempt.in_serving = self._counted(), Counter(), Counter()
            self._reopen(attempt.left_open)
        try:
            with self._refusing(window):
                yield window
        finally:
            if phase == "serving":
                attempt.failures = self.scopes.drain(attempt.nodeid, attempt.number)
            self.settle()
            left = self.close(window)[:-1]
            attempt.left_open = list(self._held_for_call(reversed(left))) if phase == "setup" else []

    @contextlib.contextmanager
    def _refusing(self, window: Window) -> Iterator[None]:
        """Have libraries refuse to compile while a guarded test serves, as far as that was asked for."""
        names, before = self.settings.deny, self._refuses
        guarded = self.attempt is not None and self.policy_of(self.attempt) is not None
        # What the test prepares or excuses in a block of its own is let through; a block that serves is not the end.
        self._refuses = window.phase == "serving" and not window.allowed and guarded
        try:
            if names and self._refuses != before:
                self.monitors.refuse(names, self._refuses)
            yield
        finally:
            if names and self._refuses != before:
                self.monitors.refuse(names, before)
            self._refuses = before

    def _held_for_call(self, left: Iterable[Window]) -> Iterator[Window]:
        """Choose the blocks that setup left open around the call: a lenient one only if it is not another thread's."""
        mine = self._block.get()
        own = mine.ancestry() if mine else []
        for block in left:
            if block.block and (block in own or (block.phase == "serving" and not block.allowed)):
                yield block

    def _reopen(self, blocks: Iterable[Window]) -> None:
        """Carry on blocks that a fixture opened around its `yield`: they hold for the call as well."""
        for block in blocks:
            phase = "serving" if block.allowed and not block.explicit else block.phase
            again = self.open(phase, block.label, explicit=block.explicit, allowed=block.allowed, block=True)
            self._block.set(again)

    def launches(self) -> dict[str, int] | None:
        """Return launches by `module.kernel` so far, None where nobody counts."""
        return self._launch_counts() if self._launch_counts else None

    def _counted(self) -> Counter[str]:
        return Counter(self.launches() or {})

    @contextlib.contextmanager
    def _counting(self, into: Counter[str] | None) -> Iterator[None]:
        """Add the launches of a block to a count, if any."""
        before = self._counted() if into is not None else Counter()
        try:
            yield
        finally:
            if into is not None:
                into.update(self._counted() - before)

    def served_launches(self, attempt: Attempt) -> Counter[str]:
        """Return the launches of an attempt's call that count as served, by `module.kernel`."""
        if self.phases.has_explicit_serving(attempt.nodeid, attempt.number):
            return attempt.in_serving
        return self._counted() - attempt.before_call - attempt.in_warmups

    def place(self, event: CompileEvent) -> Placed:
        """Return where an event began."""
        return self.phases.place(event.started, event.scope)

    def events_of(self, attempt: Attempt) -> list[tuple[CompileEvent, Placed]]:
        """Return the events that began in an attempt's windows."""
        placed = [(event, self.place(event)) for event in self.recorder.events[attempt.first_event :]]
        return [(e, p) for e, p in placed if p.owner == attempt.nodeid and p.attempt == attempt.number]

    def judge_so_far(self, attempt: Attempt) -> Verdict:
        """Judge what was served until now."""
        policy = self.policy_of(attempt)
        verdict = Verdict(attempt.nodeid, "unguarded", attempt=attempt.number)
        if policy is not None:
            verdict.mode = policy.mode
            own = self.events_of(attempt)
            doubles = doubles_of([event for event, _ in own])
            served = [self._served(e, p) for e, p in own if p.served and e.id not in doubles]
            background = self.background(attempt) if served else Background()
            mark_origins((item.event for item in served), background.warmed)
            judge(verdict, served, policy, background, self._is_known, monotonic())
        return verdict

    def _served(self, event: CompileEvent, placed: Placed) -> Served:
        spans = self.phases.in_flight(event.started, event.scope) if event.scope else []
        texts = list(dict.fromkeys(span.text for span in spans if span.text))
        more = [f"{len(texts) - _MOST_REQUESTS} more"] if len(texts) > _MOST_REQUESTS else []
        return Served(event, placed.label, placed.allowed, "; ".join([*texts[:_MOST_REQUESTS], *more]))

    def judge(self, attempt: Attempt, *, completed: bool = True) -> Verdict:
        """Judge the call that just ended. An earlier attempt that was violated stays violated: this one was warm.

        A call that was not `completed`, for it skipped or failed, need not have reached the kernels it was to reach.
        """
        policy = self.policy_of(attempt)
        self.hear()
        verdict = self.judge_so_far(attempt)
        self._judged[attempt.nodeid, attempt.number] = policy
        if policy is not None:
            if completed:
                self._expect(verdict, attempt, policy)
            self._stick(verdict)
        verdict.evidence = self._evidence(attempt, verdict, policy)
        self._order_dependent = self._order_dependent or self._left_behind(attempt)
        self.verdicts.setdefault(attempt.nodeid, []).append(verdict)
        self.recorder.note(verdict.to_wire())
        return verdict

    def _left_behind(self, attempt: Attempt) -> bool:
        """Tell whether a call left variants that cannot be forgotten: in another process, or in a library's hands."""
        living = {relative.pid for relative in self._living()}
        forgetful = {monitor.name for monitor in self.monitors if monitor.can_forget}
        policy = self.policy_of(attempt) or attempt.policy_of_blocks
        served = [event for event, placed in self.events_of(attempt) if placed.served and policy.forbids(event)]
        return any(
            event.pid in living or (event.pid == os.getpid() and event.system not in forgetful) for event in served
        )

    def not_run(self, outcome: str) -> None:
        """Note that the attempt's setup failed or skipped: a guarded test whose call never came proves nothing."""
        if self.attempt is not None and self.attempt.policy is not None:
            word = "unguarded" if outcome == "skipped" else "error"
            verdict = Verdict(self.attempt.nodeid, word, self.attempt.policy.mode, self.attempt.number)
            verdict.evidence = {"not_run": "skipped" if outcome == "skipped" else "failed in setup"}
            self.recorder.note(verdict.to_wire())

    def policy_of(self, attempt: Attempt) -> Policy | None:
        """Return the rules for an attempt, None for one that is not guarded."""
        if attempt.policy is None and self.phases.has_explicit_serving(attempt.nodeid, attempt.number):
            return attempt.policy_of_blocks
        return attempt.policy

    def default_policy(self) -> Policy:
        """Return the policy of a guarded test without a marker."""
        settings = self.settings
        return Policy(mode=settings.mode, fail_on=frozenset(settings.fail_on), allowances=self.allowances())

    def allowances(self) -> tuple[Allowance, ...]:
        """Return the allowances of the structured configuration."""
        return tuple(Allowance(pattern, reason) for pattern, reason in self.settings.structured.allow)

    def background(self, attempt: Attempt) -> Background:
        """Return what the events of an attempt are explained against."""
        return Background(
            warmed=self._warmed(attempt),
            earlier=self._earlier(attempt),
            forgets=self._residents.forgets,
            test_files=self.test_files,
            advice=self._advice,
            root=self._root,
        )

    def _warmed(self, attempt: Attempt) -> list[CompileEvent]:
        """Return what was compiled, loaded or tuned in warming phases, or in this attempt before it served."""
        used = {SHARED, *attempt.groups}
        # What a server's warmup compiled is resident for whoever uses it.
        shared = [event for event, group in self._warming_events() if group in used or event.scope]
        own = [event for event, placed in self.events_of(attempt) if not placed.served]
        return [e for e in (*shared, *own) if e.status == "ok" and e.kind in ("compile", "cache_load", "autotune")]

    def _warming_events(self) -> list[tuple[CompileEvent, str]]:
        """Return the events of warming phases with their group, looking at each event once."""
        for event in self.recorder.events[self._warming_known :]:
            placed = self.place(event)
            if placed.phase in WARMING_PHASES and (event.scope or not placed.attempt):
                self._warming.append((event, placed.owner))
        self._warming_known = len(self.recorder.events)
        return self._warming

    def _earlier(self, attempt: Attempt) -> Callable[[CompileEvent], str]:
        def earlier(event: CompileEvent) -> str:
            # Only in this process are a test's variants forgotten when it ends.
            owner = self._first_owner.get(_identity(event), "") if event.pid == os.getpid() else ""
            return owner if owner != attempt.nodeid else ""

        return earlier

    def _is_known(self, event: CompileEvent, explanation: Explanation) -> bool:
        """Tell whether an event is accepted debt; a run that writes the baseline accepts whatever it sees."""
        return self.settings.update_baseline or self.baseline.knows(event, explanation)

    def _advice(self, system: str) -> Advice | None:
        monitor = self.monitors.named(system)
        return monitor.advice if monitor else None

    def _expect(self, verdict: Verdict, attempt: Attempt, policy: Policy) -> None:
        """Every expected kernel must have been launched in the call, or be resident where launches are not counted."""
        for pattern in policy.expect:
            if not self._reached(pattern, attempt):
                how = "launched" if self.launches() is not None else "resident"
                message = f"the test never reached its kernel: nothing that matches {pattern!r} was {how} in the call"
                verdict.violations.append(Violation(message))
                verdict.verdict = "violated"

    def _reached(self, pattern: str, attempt: Attempt) -> str:
        counted = self.launches() is not None
        hits = sum(n for name, n in self.served_launches(attempt).items() if _matches(pattern, _COUNTED, name))
        if counted and hits:
            return f"launched {hits} times"
        resident = [variant for variant in self._residents.names() if not (counted and variant[0] == _COUNTED)]
        if any(_matches(pattern, *variant) for variant in resident):
            return "resident"
        # Launches in other processes are not counted.
        return "resident in another process" if self._is_elsewhere(pattern, attempt) else ""

    def _is_elsewhere(self, pattern: str, attempt: Attempt) -> bool:
        """Tell whether another process that lives, of pytest's tree or of a server in use, has an expected kernel."""
        living = {relative.pid for relative in self._living()}
        events = (event for event in self.recorder.events if event.pid in living and event.status == "ok")
        mine = (e for e in events if not e.scope or self.phases.uses(attempt.nodeid, attempt.number, e.scope))
        return any(matches(pattern, event.system, event.kernel, event.module) for event in mine)

    def _stick(self, verdict: Verdict) -> None:
        """Keep a violated test violated: its second attempt is warm and proves nothing."""
        first = next((v for v in self.verdicts.get(verdict.nodeid, ()) if v.violated), None)
        if first is not None and not verdict.violated:
            verdict.verdict, verdict.violations = "violated", first.violations

    def _evidence(self, attempt: Attempt, verdict: Verdict, policy: Policy | None) -> dict[str, Any]:
        made = None if self.launches() is None else sum(self.served_launches(attempt).values())
        return {
            "monitors_armed": self._armed(),
            "processes": [os.getpid(), *sorted(relative.pid for relative in self._living())],
            "warmup_events": len(self._warming_events()),
            "launches": made,
            "expected": {p: self._reached(p, attempt) or "missing" for p in (policy.expect if policy else ())},
        }

    def _living(self) -> list[Relative]:
        return self.relatives.living() if self.relatives else []

    def finish(self) -> dict[str, Any]:
        """Return the record that sums this process up, for findings over all processes."""
        return {
            "record": "session",
            "monitors": [monitor.to_wire() for monitor in self.monitors],
            "ever_armed": sorted(self._ever_armed),
            "order_dependent": self._residents.order_dependent or self._order_dependent,
            "launches": self.launches(),
        }


def _matches(pattern: str, system: str, full_name: str) -> bool:
    module, _, kernel = full_name.rpartition(".")
    return matches(pattern, system, kernel, module)


def _identity(event: CompileEvent) -> object:
    """Return what two events of the same variant share."""
    if event.artifact_hash:
        return event.artifact_hash
    return (event.system, event.full_name, event.kind, event.key) if event.key else None
