"""One guarded run in one process: phases, residency, verdicts. Knows monitors and journal, but not pytest."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from pytest_jitguard.attempts import Attempt, Launches
from pytest_jitguard.core.baseline import Baseline
from pytest_jitguard.core.clock import monotonic, pause
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.phases import WARMING_PHASES, PhaseLog, Placed, Window
from pytest_jitguard.core.policy import Policy
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.core.residency import SHARED
from pytest_jitguard.core.settings import Settings
from pytest_jitguard.core.verdicts import Verdict
from pytest_jitguard.judging import Judge
from pytest_jitguard.monitors import MonitorSet
from pytest_jitguard.monitors.residents import Residents
from pytest_jitguard.processes.relatives import Relatives
from pytest_jitguard.scopes import Scope, Scopes

LONGEST_WAIT = 10.0
"""Seconds for which the end of a warmup or a test waits for compiles that it left running on other threads."""


_UNTIL_RESIDENT = 0.1
"""Seconds from the end of a compile, as its monitor is told, until its variant is resident: Triton calls its listener
first (3.6 to 3.9). Far more than it takes, for busy machines."""


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
        self.phases = PhaseLog()
        self.attempt: Attempt | None = None
        self.scopes = Scopes(self.phases, recorder.note)
        self.relatives = relatives
        self.fetch: Callable[[], None] = lambda: None
        self._judged: dict[tuple[str, int], Policy | None] = {}
        self._warming_groups: list[str] = []
        self._launches = Launches(launch_counts)
        self._residents = Residents(monitors, forget=settings.forget)
        self.judging = Judge(
            settings,
            recorder,
            monitors,
            self.phases,
            self._residents,
            self._launches,
            baseline=baseline or Baseline(),
            living=self._living,
            root=root,
        )
        self._noted: dict[str, dict[str, Any]] = {}
        self._attempts: dict[str, int] = {}
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
            with self._launches.counting(count), self.phase(phase, label, owner=group, attempt=0) as window:
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
            with self._launches.counting(self._count_of(window, around)), self._refusing(window):
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
            placed = self.judging.place(event)
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
        self._ever_armed |= set(self.monitors.proven())

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
        of_blocks = policy_of_blocks or self.judging.default_policy()
        self.attempt = Attempt(nodeid, number, len(self.recorder.events), policy, of_blocks, used)
        for group in used:
            self.use(group)
        return self.attempt

    def end_test(self) -> None:
        """End the attempt: note who compiled what first, and forget it."""
        attempt, self.attempt = self.attempt, None
        if attempt is None:
            return
        self.judging.note_first(attempt)
        self.monitors.settle()
        self._residents.forget_strays()

    @contextlib.contextmanager
    def test_phase(self, phase: str) -> Iterator[Window]:
        """Open the setup, serving or teardown window of the running attempt."""
        attempt = self.attempt
        assert attempt is not None
        window = self.open(phase, attempt.nodeid, owner=attempt.nodeid, attempt=attempt.number)
        if phase == "serving":
            self._launches.begin_call(attempt)
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
        guarded = self.attempt is not None and self.judging.policy_of(self.attempt) is not None
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

    def not_run(self, outcome: str) -> None:
        """Note that the attempt's setup failed or skipped: a guarded test whose call never came proves nothing."""
        if self.attempt is not None and self.attempt.policy is not None:
            word = "unguarded" if outcome == "skipped" else "error"
            verdict = Verdict(self.attempt.nodeid, word, self.attempt.policy.mode, self.attempt.number)
            verdict.evidence = {"not_run": "skipped" if outcome == "skipped" else "failed in setup"}
            self.recorder.note(verdict.to_wire())

    def judge(self, attempt: Attempt, *, completed: bool = True) -> Verdict:
        """Judge the call that just ended, whether or not it was `completed`, with what was heard until now."""
        self.hear()
        verdict = self.judging.judge(attempt, completed=completed)
        self._judged[attempt.nodeid, attempt.number] = self.judging.policy_of(attempt)
        return verdict

    def _living(self) -> list[int]:
        return [relative.pid for relative in self.relatives.living()] if self.relatives else []

    def finish(self) -> dict[str, Any]:
        """Return the record that sums this process up, for findings over all processes."""
        return {
            "record": "session",
            "monitors": [monitor.to_wire() for monitor in self.monitors],
            "ever_armed": sorted(self._ever_armed),
            "order_dependent": self._residents.order_dependent or self.judging.order_dependent,
            "launches": self._launches.made(),
        }
