"""Replaced is not lost: whoever came on top of a hook and calls it is followed, whoever does not is found out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from pytest_jitguard.monitors._reach import leads_to


def hook(*args: Any) -> Any:
    return args


def by_closure() -> Callable[..., Any]:
    before = hook
    return lambda *args: before(*args)


def by_wraps() -> Callable[..., Any]:
    @functools.wraps(hook)
    def wrapper(*args: Any) -> Any:
        return wrapper.__wrapped__(*args)

    return wrapper


def by_default() -> Callable[..., Any]:
    return lambda *args, before=hook: before(*args)


def by_global() -> Callable[..., Any]:
    return lambda *args: hook(*args)


def by_nested_function() -> Callable[..., Any]:
    def outer(*args: Any) -> Any:
        def inner() -> Any:
            return hook(*args)

        return inner()

    return outer


class Rival:
    """Keeps what it replaced in an attribute, as vLLM's monitor of CuTe does."""

    def __init__(self, original: Any) -> None:
        self.original = original

    def __call__(self, *args: Any) -> Any:
        return self.original(*args)

    def method(self, *args: Any) -> Any:
        return self.original(*args)


class Slotted:
    __slots__ = ("chain",)

    def __init__(self, original: Any) -> None:
        self.chain = [print, original]

    def __call__(self, *args: Any) -> Any:
        return self.chain[1](*args)


CHAINS: dict[str, Callable[[], Any]] = {
    "itself": lambda: hook,
    "closure": by_closure,
    "wraps": by_wraps,
    "default": by_default,
    "global": by_global,
    "nested function": by_nested_function,
    "partial": lambda: functools.partial(hook, 1),
    "object": lambda: Rival(hook),
    "bound method": lambda: Rival(hook).method,
    "list in a slot": lambda: Slotted(hook),
    "three deep": lambda: Rival(functools.partial(Rival(hook))),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_followed(name: str) -> None:
    chained = CHAINS[name]()
    assert leads_to(chained, hook)


def stranger(*args: Any) -> Any:
    return args


@pytest.mark.parametrize("replaced", [stranger, Rival(stranger), functools.partial(stranger), None, print, 7, Rival])
def test_what_does_not_hold_it_does_not_lead_to_it(replaced: Any) -> None:
    assert not leads_to(replaced, hook)


def test_circles_and_crowds_end() -> None:
    circle = Rival(None)
    circle.original = circle
    assert not leads_to(circle, hook)
    assert not leads_to(Rival([Rival(number) for number in range(5_000)]), hook)
