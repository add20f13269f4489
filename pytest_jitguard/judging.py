"""What became of a test's call: which of its events are violations, why, and what proves that a green is one."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from pytest_jitguard.attempts import Attempt, Launches
from pytest_jitguard.core.baseline import Baseline
from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.explain import Advice, Background, Explanation
from pytest_jitguard.core.kinship import doubles_of, mark_origins
from pytest_jitguard.core.phases import WARMING_PHASES, PhaseLog, Placed
from pytest_jitguard.core.policy import Allowance, Policy, matches
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.core.residency import SHARED
from pytest_jitguard.core.settings import Settings
from pytest_jitguard.core.verdicts import Served, Verdict, Violation, judge
from pytest_jitguard.monitors import MonitorSet
from pytest_jitguard.monitors.residents import Residents

_COUNTED = "triton"
"""The system whose launches the offline target counts; of others it is known what is resident."""

_MOST_REQUESTS = 3
"""How many of the requests under way an explanation names."""


class Judge:
    """Gives the verdicts of one process.

    `living` returns the ids of the processes that belong to this one and live. `test_files` are the files of the test
    suite, `baseline` is the debt that is known. `order_dependent` says that a test left variants behind that could not
    be forgotten.
    """

    def __init__(
        self,
        settings: Settings,
        recorder: Recorder,
        monitors: MonitorSet,
        phases: PhaseLog,
        residents: Residents,
        launches: Launches,
        *,
        baseline: Baseline,
        living: Callable[[], list[int]],
        root: str,
    ) -> None:
        self.test_files: Collection[str] = ()
        self.order_dependent = False
        self._settings = settings
        self._recorder = recorder
        self._monitors = monitors
        self._phases = phases
        self._residents = residents
        self._launches = launches
        self.baseline = baseline
        self._living = living
        self._root = root
        self._verdicts: dict[str, list[Verdict]] = {}
        self._warming: list[tuple[CompileEvent, str]] = []
        self._warming_known = 0
        self._first_owner: dict[object, str] = {}

    # -- where events belong -------------------------------------------------------------------------------------------

    def place(self, event: CompileEvent) -> Placed:
        """Return where an event began."""
        return self._phases.place(event.started, event.scope)

    def events_of(self, attempt: Attempt) -> list[tuple[CompileEvent, Placed]]:
        """Return the events that began in an attempt's windows."""
        placed = [(event, self.place(event)) for event in self._recorder.events[attempt.first_event :]]
        return [(e, p) for e, p in placed if p.owner == attempt.nodeid and p.attempt == attempt.number]

    def policy_of(self, attempt: Attempt) -> Policy | None:
        """Return the rules for an attempt, None for one that is not guarded."""
        if attempt.policy is None and self._phases.has_explicit_serving(attempt.nodeid, attempt.number):
            return attempt.policy_of_blocks
        return attempt.policy

    def default_policy(self) -> Policy:
        """Return the policy of a guarded test without a marker."""
        settings = self._settings
        return Policy(mode=settings.mode, fail_on=frozenset(settings.fail_on), allowances=self.allowances())

    def allowances(self) -> tuple[Allowance, ...]:
        """Return the allowances of the structured configuration."""
        return tuple(Allowance(pattern, reason) for pattern, reason in self._settings.structured.allow)

    # -- verdicts ------------------------------------------------------------------------------------------------------

    def judge_so_far(self, attempt: Attempt) -> Verdict:
        """Judge what was served until now."""
        policy = self.policy_of(attempt)
        verdict = Verdict(attempt.nodeid, "unguarded", attempt=attempt.number)
        if policy is not None:
            verdict.mode = policy.mode
            own = self.events_of(attempt)
            doubles = doubles_of([event for event, _ in own])
            served = [self._served(e, p) for e, p in own if p.served and e.id not in doubles]
            background = self._background(attempt) if served else Background()
            mark_origins((item.event for item in served), background.warmed)
            judge(verdict, served, policy, background, self._is_known, monotonic())
        return verdict

    def _served(self, event: CompileEvent, placed: Placed) -> Served:
        spans = self._phases.in_flight(event.started, event.scope) if event.scope else []
        texts = list(dict.fromkeys(span.text for span in spans if span.text))
        more = [f"{len(texts) - _MOST_REQUESTS} more"] if len(texts) > _MOST_REQUESTS else []
        return Served(event, placed.label, placed.allowed, "; ".join([*texts[:_MOST_REQUESTS], *more]))

    def judge(self, attempt: Attempt, *, completed: bool = True) -> Verdict:
        """Judge the call that just ended. An earlier attempt that was violated stays violated: this one was warm.

        A call that was not `completed`, for it skipped or failed, need not have reached the kernels it was to reach.
        """
        policy = self.policy_of(attempt)
        verdict = self.judge_so_far(attempt)
        if policy is not None:
            if completed:
                self._expect(verdict, attempt, policy)
            self._stick(verdict)
        verdict.evidence = self._evidence(attempt, policy)
        self.order_dependent = self.order_dependent or self._left_behind(attempt)
        self._verdicts.setdefault(attempt.nodeid, []).append(verdict)
        self._recorder.note(verdict.to_wire())
        return verdict

    def _stick(self, verdict: Verdict) -> None:
        """Keep a violated test violated: its second attempt is warm and proves nothing."""
        first = next((v for v in self._verdicts.get(verdict.nodeid, ()) if v.violated), None)
        if first is not None and not verdict.violated:
            verdict.verdict, verdict.violations = "violated", first.violations

    def _left_behind(self, attempt: Attempt) -> bool:
        """Tell whether a call left variants that cannot be forgotten: in another process, or in a library's hands."""
        living = set(self._living())
        forgetful = {monitor.name for monitor in self._monitors if monitor.can_forget}
        policy = self.policy_of(attempt) or attempt.policy_of_blocks
        served = [event for event, placed in self.events_of(attempt) if placed.served and policy.forbids(event)]
        return any(
            event.pid in living or (event.pid == os.getpid() and event.system not in forgetful) for event in served
        )

    # -- what explains them --------------------------------------------------------------------------------------------

    def _background(self, attempt: Attempt) -> Background:
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
        for event in self._recorder.events[self._warming_known :]:
            placed = self.place(event)
            if placed.phase in WARMING_PHASES and (event.scope or not placed.attempt):
                self._warming.append((event, placed.owner))
        self._warming_known = len(self._recorder.events)
        return self._warming

    def note_first(self, attempt: Attempt) -> None:
        """Note of an attempt that ends what it was the first to compile in this process."""
        for event in self._recorder.events[attempt.first_event :]:
            own = event.pid == os.getpid() and self.place(event).owner == attempt.nodeid
            if own and (identity := _identity(event)):
                self._first_owner.setdefault(identity, attempt.nodeid)

    def _earlier(self, attempt: Attempt) -> Callable[[CompileEvent], str]:
        def earlier(event: CompileEvent) -> str:
            # Only in this process are a test's variants forgotten when it ends.
            owner = self._first_owner.get(_identity(event), "") if event.pid == os.getpid() else ""
            return owner if owner != attempt.nodeid else ""

        return earlier

    def _is_known(self, event: CompileEvent, explanation: Explanation) -> bool:
        """Tell whether an event is accepted debt; a run that writes the baseline accepts whatever it sees."""
        return self._settings.update_baseline or self.baseline.knows(event, explanation)

    def _advice(self, system: str) -> Advice | None:
        monitor = self._monitors.named(system)
        return monitor.advice if monitor else None

    # -- what proves a green -------------------------------------------------------------------------------------------

    def _expect(self, verdict: Verdict, attempt: Attempt, policy: Policy) -> None:
        """Every expected kernel must have been launched in the call, or be resident where launches are not counted."""
        for pattern in policy.expect:
            if not self._reached(pattern, attempt):
                how = "launched" if self._launches.made() is not None else "resident"
                message = f"the test never reached its kernel: nothing that matches {pattern!r} was {how} in the call"
                verdict.violations.append(Violation(message))
                verdict.verdict = "violated"

    def _reached(self, pattern: str, attempt: Attempt) -> str:
        counted = self._launches.made() is not None
        hits = sum(n for name, n in self._served_launches(attempt).items() if _matches(pattern, _COUNTED, name))
        if counted and hits:
            return f"launched {hits} times"
        resident = [variant for variant in self._residents.names() if not (counted and variant[0] == _COUNTED)]
        if any(_matches(pattern, *variant) for variant in resident):
            return "resident"
        # Launches in other processes are not counted.
        return "resident in another process" if self._is_elsewhere(pattern, attempt) else ""

    def _served_launches(self, attempt: Attempt) -> Counter[str]:
        explicit = self._phases.has_explicit_serving(attempt.nodeid, attempt.number)
        return self._launches.served(attempt, explicit=explicit)

    def _is_elsewhere(self, pattern: str, attempt: Attempt) -> bool:
        """Tell whether another process that lives, of pytest's tree or of a server in use, has an expected kernel."""
        living = set(self._living())
        events = (event for event in self._recorder.events if event.pid in living and event.status == "ok")
        mine = (e for e in events if not e.scope or self._phases.uses(attempt.nodeid, attempt.number, e.scope))
        return any(matches(pattern, event.system, event.kernel, event.module) for event in mine)

    def _evidence(self, attempt: Attempt, policy: Policy | None) -> dict[str, Any]:
        made = None if self._launches.made() is None else sum(self._served_launches(attempt).values())
        return {
            "monitors_armed": self._monitors.proven(),
            "processes": [os.getpid(), *sorted(self._living())],
            "warmup_events": len(self._warming_events()),
            "launches": made,
            "expected": {p: self._reached(p, attempt) or "missing" for p in (policy.expect if policy else ())},
        }


def _matches(pattern: str, system: str, full_name: str) -> bool:
    module, _, kernel = full_name.rpartition(".")
    return matches(pattern, system, kernel, module)


def _identity(event: CompileEvent) -> object:
    """Return what two events of the same variant share."""
    if event.artifact_hash:
        return event.artifact_hash
    return (event.system, event.full_name, event.kind, event.key) if event.key else None
