"""Who is told to refuse: every library that is denied, from whenever it is there, and each of them is let go again."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Monitor, MonitorSet, Tells

LIBRARY = "refusing_library"


class Refusing(Monitor):
    name = "refusing"
    target = LIBRARY
    tells = Tells(identity="nothing")
    told: list[bool]

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self.told = []

    def install(self, module: ModuleType) -> None:
        pass

    def uninstall(self) -> None:
        pass

    def prove(self) -> None:
        pass

    def refuse(self, on: bool) -> None:
        self.told.append(on)


class RefusingElsewhere(Refusing):
    """Its library is in other processes, whose compiler it reaches from here."""

    looks_always = True


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{LIBRARY}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, LIBRARY, raising=False)


def armed(kind: type[Refusing]) -> tuple[MonitorSet, Refusing]:
    monitors = MonitorSet([f"{__name__}:{kind.__name__}"], Recorder("image", lambda record: None))
    monitors.arm()
    (monitor,) = monitors.monitors
    assert isinstance(monitor, Refusing)
    return monitors, monitor


@pytest.mark.usefixtures("library")
def test_a_library_that_is_imported_while_a_test_serves_refuses_from_then_on() -> None:
    monitors, monitor = armed(Refusing)
    monitors.refuse(["refusing"], True)
    assert monitor.told == []
    __import__(LIBRARY)
    assert monitor.told == [True]
    monitors.refuse(["refusing"], False)
    assert monitor.told == [True, False]
    monitors.disarm()


@pytest.mark.usefixtures("library")
def test_one_that_was_never_told_to_refuse_is_not_told_to_stop() -> None:
    monitors, monitor = armed(Refusing)
    __import__(LIBRARY)
    monitors.refuse(["refusing"], False)
    assert monitor.told == []
    monitors.disarm()


@pytest.mark.usefixtures("library")
def test_one_that_went_blind_meanwhile_is_let_go() -> None:
    monitors, monitor = armed(Refusing)
    __import__(LIBRARY)
    monitors.refuse(["refusing"], True)
    monitor.blind("lost")
    monitors.refuse(["refusing"], False)
    assert monitor.told == [True, False]
    monitors.disarm()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("kind", "told"), [(Refusing, []), (RefusingElsewhere, [True, False])])
def test_a_library_in_other_processes_only_refuses_where_it_can_be_reached(
    kind: type[Refusing], told: list[bool]
) -> None:
    monitors, monitor = armed(kind)
    monitors.refuse(["refusing"], True)
    monitors.refuse(["refusing"], False)
    assert monitor.told == told
    monitors.disarm()
