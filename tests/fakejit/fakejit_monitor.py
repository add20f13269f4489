"""A monitor for fakejit, as a third party would write it."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable
from types import ModuleType
from typing import Any, ClassVar

from pytest_jitguard.core.events import Launch
from pytest_jitguard.core.keys import Component, SpecializationKey
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Monitor, PatchSet, Tells


class FakeMonitor(Monitor):
    name: ClassVar[str] = "fakejit"
    target: ClassVar[str] = "fakejit"
    tested: ClassVar[str] = "==1.*"
    tells: ClassVar[Tells] = Tells(identity="kernel", key="arguments", kinds=("compile", "cache_load"), cache_load=True)
    can_forget: ClassVar[bool] = True

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._patches = PatchSet()
        self._canary_seen = False
        self._announced: set[str] = set()
        self._parked: dict[Hashable, str] = {}

    def install(self, module: ModuleType) -> None:
        self._module = module
        self._announced |= set(module.CACHE)
        self._hook = self._patches.wrap(module, "_build", self._build)

    def uninstall(self) -> None:
        self._patches.undo()

    def _build(self, build: Any, name: str, arguments: dict[str, object]) -> str:
        if name == "jitguard_canary":
            self._canary_seen = True
            return "compile"
        self._announced.add(self._module._key(name, arguments))
        frames = tuple(_frames())
        launch = Launch(values={k: repr(v) for k, v in arguments.items()})
        event = self._guarded(self.recorder.begin, self.name, name, "fakejit", stack=frames, launch=launch)
        if event is None:
            return str(build(name, arguments))
        key = SpecializationKey(tuple(Component(k, "argument", "", str(v)) for k, v in sorted(arguments.items())))
        try:
            kind = build(name, arguments)
        except BaseException:
            self._guarded(self.recorder.end, event, status="failed", key=key)
            raise
        hash_ = self._module._key(name, arguments)
        cure = f"fakejit.compile_only({name!r})"
        self._guarded(self.recorder.end, event, kind=kind, key=key, artifact_hash=hash_, cure=cure)
        self.recorder.finished(event)
        return str(kind)

    def _guarded(self, action: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return action(*args, **kwargs)
        except OSError as error:
            self.blind(f"a compile could not be recorded: {error}")
            return None

    def prove(self) -> None:
        if self.state == "armed" and self._module._build is self._hook:
            return
        self._canary_seen = False
        self._module.compile_only("jitguard_canary")
        del self._module.CACHE["jitguard_canary()"]
        if self._canary_seen:
            self.state, self.has_seen = "armed", True
        else:
            self.blind("a canary through fakejit.compile_only was not seen")

    def refuse(self, on: bool) -> None:
        vars(self._module)["REFUSES"] = on

    def resident(self) -> dict[Hashable, str]:
        return {key: f"fakejit.{key.partition('(')[0]}" for key in self._module.CACHE} if self._is_in() else {}

    def _is_in(self) -> bool:
        return self.state not in ("waiting", "off")

    def reconcile(self) -> None:
        for key in self._module.CACHE:
            if key not in self._announced:
                self.blind(f"a resident variant {key} was announced by no event")

    def forget(self, tokens: Iterable[Hashable]) -> None:
        for token in tokens:
            self._parked[token] = self._module.CACHE.pop(token)

    def recall(self, tokens: Iterable[Hashable]) -> None:
        for token in tokens:
            if token in self._parked:
                self._module.CACHE.setdefault(token, self._parked.pop(token))


def _frames() -> Iterable[str]:
    frame: Any = sys._getframe(3)
    while frame is not None:
        if "fakejit" not in frame.f_code.co_filename:
            yield f"{frame.f_code.co_filename}:{frame.f_lineno}:{frame.f_code.co_name}"
        frame = frame.f_back
