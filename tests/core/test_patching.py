"""What is patched is put back if it is still ours, in whatever order; a wait for an import never causes it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pytest_jitguard.patching import PatchSet, when_imported


class Base:
    def greet(self) -> str:
        return "base"


def owner() -> Any:
    """Return a class of its own that inherits `greet` and has an `own`."""
    return type("Owner", (Base,), {"own": "original"})


def marking(mark: str) -> Callable[..., str]:
    return lambda original, *args: f"{mark}({original(*args)})"


def test_what_is_replaced_is_as_it_was_after_undo() -> None:
    here, patches = owner(), PatchSet()
    before = dict(vars(here))
    patches.replace(here, "own", "ours")
    patches.replace(here, "own", "ours again")
    patches.replace(here, "new", "ours")
    patches.replace(here, "greet", lambda self: "ours")
    assert (here.own, here.new, here().greet()) == ("ours again", "ours", "ours")
    patches.undo()
    assert dict(vars(here)) == before, "an inherited attribute is inherited again, a new one is gone"
    here.own = "a stranger's"
    patches.undo()
    assert here.own == "a stranger's", "undone once is undone"


def test_a_static_method_and_an_instance_can_be_replaced() -> None:
    here, patches = owner(), PatchSet()
    instance = SimpleNamespace(slot=None)
    patches.replace(here, "greet", staticmethod(lambda: "static"))
    patches.replace(instance, "slot", here)
    assert (here.greet(), instance.slot) == ("static", here)
    patches.undo()
    assert (here().greet(), instance.slot) == ("base", None)


def test_what_somebody_replaced_since_is_left_alone() -> None:
    here, patches = owner(), PatchSet()
    patches.replace(here, "own", "ours")
    here.own = "a stranger's"
    patches.undo()
    assert here.own == "a stranger's"


def test_undo_goes_backwards() -> None:
    here, patches, seen = owner(), PatchSet(), []
    patches.on_undo(lambda: seen.append(("first", here.own)))
    patches.replace(here, "own", "ours")
    patches.on_undo(lambda: seen.append(("last", here.own)))
    patches.undo()
    assert seen == [("last", "ours"), ("first", "original")]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_wrappers_of_several_sets_are_taken_out_in_any_order(order: tuple[int, ...]) -> None:
    here, sets = owner(), [PatchSet() for _ in range(3)]
    before = dict(vars(here))
    for mark, patches in zip("abc", sets, strict=True):
        patches.wrap(here, "greet", marking(mark))
    assert here().greet() == "c(b(a(base)))"
    left = {0: "a", 1: "b", 2: "c"}
    for index in order:
        sets[index].undo()
        del left[index]
        wanted = "base"
        for mark in left.values():
            wanted = f"{mark}({wanted})"
        assert here().greet() == wanted
    assert dict(vars(here)) == before


def test_a_wrapper_below_a_strangers_passes_calls_on() -> None:
    here, patches = owner(), PatchSet()
    patches.wrap(here, "greet", marking("ours"))
    below = here.greet
    here.greet = lambda self: f"stranger({below(self)})"
    assert here().greet() == "stranger(ours(base))"
    patches.undo()
    assert here().greet() == "stranger(base)"


def test_a_wait_for_an_import_does_not_cause_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from pytest_jitguard.patching import when_imported\ncalled = []\n"
    code += "half = when_imported(__name__, called.append), list(called)\nfinished = True\n"
    (tmp_path / "patched_late.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    imported: list[ModuleType] = []
    assert when_imported("patched_late", imported.append)
    assert (imported, "patched_late" in sys.modules) == ([], False)
    import patched_late  # type: ignore[import-not-found]

    try:
        assert imported == [patched_late]
        assert patched_late.finished
        assert patched_late.half == (False, []), "refused while half imported, and nothing was called"
        assert when_imported("patched_late", imported.append)
        assert imported == [patched_late, patched_late], "at once, where the import is over"
    finally:
        del sys.modules["patched_late"]
