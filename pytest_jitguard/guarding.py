"""What a guarded process lends to its servers. Light: most sessions have none, and do not import what servers need."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_jitguard.processes.inherit import Inherited
    from pytest_jitguard.serving import GuardedServer
    from pytest_jitguard.session import GuardSession
    from pytest_jitguard.sharing import Meeting


@dataclass
class Guarding:
    """What a guarded process lends to its servers: phases, what their trees inherit, a folder for their logs."""

    session: GuardSession
    inherited: Inherited | None
    folder: Path
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    shared: list[tuple[GuardedServer, Meeting]] = field(default_factory=list)

    def leave_shared(self) -> None:
        """At the end of the session: leave what others started, then wait for the guests of one's own servers."""
        for _, meeting in self.shared:
            meeting.leave()
        for server, meeting in self.shared:
            if not server.is_attached:
                meeting.wait_for_guests()
            if server.is_running:
                server.stop()
        self.shared.clear()


GUARDING_KEY = pytest.StashKey[Guarding]()
