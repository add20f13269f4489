"""The fake JIT's monitor keeps the contract."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pytest_jitguard.contract import MonitorContract
from tests.conftest import FAKEJIT


class TestFakeJit(MonitorContract):
    monitor = "fakejit_monitor:FakeMonitor"
    not_there: ClassVar[Mapping[str, str]] = {"reset": "fakejit has no reset"}

    def environment(self, folder: Path) -> Mapping[str, str]:
        return {"PYTHONPATH": f"{FAKEJIT}:{FAKEJIT.parent.parent}", "FAKEJIT_CACHE": ""}

    def compile_new(self) -> str:
        import fakejit

        number = self.number()
        self.last = f"kernel_{number}"
        time.sleep(number % self.threads / 50)  # other threads, each with a `self.last` of its own, come first
        fakejit.launch(self.last, seconds=0.01)
        return self.last

    def repeat(self) -> None:
        import fakejit

        fakejit.launch(self.last, seconds=0.01)

    def fail(self) -> None:
        import fakejit

        fakejit.launch(f"kernel_{self.number()}", fail=True)

    def load_from_disk(self) -> None:
        import os

        import fakejit

        os.environ["FAKEJIT_CACHE"] = str(self.folder / "cache")
        fakejit.launch("stored")

    def alias(self) -> Any:
        from fakejit import launch

        return lambda: launch(f"kernel_{self.number()}")

    def hide(self) -> None:
        import fakejit

        fakejit.hide_hook()

    def sneak_in(self) -> None:
        import fakejit

        fakejit.sneak_in("kernel")
