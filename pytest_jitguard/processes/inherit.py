"""What a child process inherits from the guard: one environment variable, which says where to report and how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

VARIABLE = "JITGUARD_PARENT"
"""Set only while a guard is on. `_jitguard_start.py` and the `.pth` line look for it, and do nothing without it."""


class Inherited(NamedTuple):
    """The guard of a process tree, as its children know it.

    `folder` holds the run's journals. `guard` is the image of the pytest process whose phases count. `scope` is empty
    in pytest's own process tree, else the id of the server in whose tree the process is. `offline` is the name of the
    offline target, `gpus` the tables of GPUs that the user described, `placement` where offline tensors live. `targets`
    says what the monitors of others wait for.
    """

    folder: Path
    guard: str
    scope: str = ""
    monitors: tuple[str, ...] = ("auto",)
    targets: Mapping[str, str] = MappingProxyType({})
    waive: tuple[str, ...] = ()
    offline: str | None = None
    placement: str = "cpu"
    gpus: Mapping[str, Mapping[str, Any]] = MappingProxyType({})

    def variables(self) -> dict[str, str]:
        """Return the environment variable that makes a child report."""
        plain = {**self._asdict(), "folder": str(self.folder), "gpus": {k: dict(v) for k, v in self.gpus.items()}}
        plain["targets"] = dict(self.targets)
        return {VARIABLE: json.dumps(plain)}

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Inherited | None:
        """Read what this process inherited, None if nothing; ValueError, KeyError or TypeError if it is damaged."""
        text = environment.get(VARIABLE)
        if not text:
            return None
        told = json.loads(text)
        return cls(
            folder=Path(told["folder"]),
            guard=str(told["guard"]),
            scope=str(told["scope"]),
            monitors=tuple(str(name) for name in told["monitors"]),
            targets={str(name): str(target) for name, target in told["targets"].items()},
            waive=tuple(str(name) for name in told["waive"]),
            offline=None if told["offline"] is None else str(told["offline"]),
            placement=str(told["placement"]),
            gpus=dict(told["gpus"]),
        )
