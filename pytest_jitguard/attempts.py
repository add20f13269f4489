"""One attempt of one test while it runs, and the launches that are counted in it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pytest_jitguard.core.phases import Window
from pytest_jitguard.core.policy import Policy


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


class Launches:
    """Launches by `module.kernel`, where somebody counts them: `count` is None where nobody does."""

    def __init__(self, count: Callable[[], dict[str, int]] | None) -> None:
        self._count = count

    def made(self) -> dict[str, int] | None:
        """Return the launches so far, None where nobody counts."""
        return self._count() if self._count else None

    def counted(self) -> Counter[str]:
        """Return the launches so far; none where nobody counts."""
        return Counter(self.made() or {})

    @contextlib.contextmanager
    def counting(self, into: Counter[str] | None) -> Iterator[None]:
        """Add the launches of a block to a count, if any."""
        before = self.counted() if into is not None else Counter()
        try:
            yield
        finally:
            if into is not None:
                into.update(self.counted() - before)

    def begin_call(self, attempt: Attempt) -> None:
        """Note where the counts stand when the call of an attempt begins."""
        attempt.before_call, attempt.in_warmups, attempt.in_serving = self.counted(), Counter(), Counter()

    def served(self, attempt: Attempt, *, explicit: bool) -> Counter[str]:
        """Return the launches of an attempt's call that count as served; only its `serving()` blocks if `explicit`."""
        return attempt.in_serving if explicit else self.counted() - attempt.before_call - attempt.in_warmups
