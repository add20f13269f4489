"""What the in-process caches of all watched libraries hold, for whom it is warmed, and who must not see it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable

from pytest_jitguard.core.residency import SHARED, Residency
from pytest_jitguard.monitors import Monitor, MonitorSet

Snapshot = dict[Monitor, set[Hashable]]


class Residents:
    """Applies the rules of `Residency` to every monitor. A monitor that fails in here is blind, and raises nothing.

    `forget` is the setting of that name. `order_dependent` says that something could not, or was not to, be taken out
    of a lookup: then verdicts may depend on the order of tests.
    """

    def __init__(self, monitors: MonitorSet, *, forget: bool) -> None:
        self.order_dependent = False
        self._forget_allowed = forget
        self._residency: dict[Monitor, Residency] = {monitor: Residency() for monitor in monitors}

    def snapshot(self) -> Snapshot:
        """Return what is resident now."""
        return {monitor: set(_resident_in(monitor)) for monitor in self._residency}

    def names(self) -> set[tuple[str, str]]:
        """Return (system, `module.kernel`) of what is resident now."""
        return {(monitor.name, name) for monitor in self._residency for name in _resident_in(monitor).values()}

    def keep(self, before: Snapshot, group: str = SHARED) -> None:
        """Count as warmed by a group what is resident now and was not before."""
        for monitor, residency in self._residency.items():
            residency.keep(_resident_in(monitor), before.get(monitor, ()), group)

    def leave_only(self, groups: Collection[str]) -> Snapshot:
        """Leave in the lookups exactly what is warmed for users of these groups; return what was taken out."""
        hidden: Snapshot = {}
        for monitor, residency in self._residency.items():
            hidden[monitor] = residency.foreign(_resident_in(monitor), groups)
            self._forget(monitor, hidden[monitor])
            _quietly(monitor, monitor.recall, residency.of(groups))
        return hidden

    def put_back(self, hidden: Snapshot) -> None:
        """Put back what `leave_only` took out."""
        for monitor, tokens in hidden.items():
            _quietly(monitor, monitor.recall, tokens)

    def recall(self, group: str) -> None:
        """Put back what a group warmed."""
        for monitor, residency in self._residency.items():
            _quietly(monitor, monitor.recall, residency.of([group]))

    def forget_strays(self) -> None:
        """Take out what no group warmed: a test's own compiles, and those between tests."""
        for monitor, residency in self._residency.items():
            self._forget(monitor, residency.stray(_resident_in(monitor)))

    def forgets(self, system: str) -> bool:
        """Tell whether a system's variants are taken out of its lookup when the test ends that compiled them."""
        return self._forget_allowed and any(m.name == system and m.can_forget for m in self._residency)

    def _forget(self, monitor: Monitor, tokens: set[Hashable]) -> None:
        if not tokens:
            return
        if self._forget_allowed and monitor.can_forget:
            _quietly(monitor, monitor.forget, tokens)
        else:
            self.order_dependent = True


def _resident_in(monitor: Monitor) -> dict[Hashable, str]:
    try:
        return monitor.resident()
    except Exception as error:  # noqa: BLE001 - a monitor that fails is blind, and must not fail the user's test
        monitor.blind(f"resident() failed: {type(error).__name__}: {error}")
        return {}


def _quietly(monitor: Monitor, action: Callable[[Iterable[Hashable]], None], tokens: Iterable[Hashable]) -> None:
    try:
        action(tokens)
    except Exception as error:  # noqa: BLE001 - as above
        monitor.blind(f"{action.__name__}() failed: {type(error).__name__}: {error}")
