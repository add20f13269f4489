"""The cause of an event in one clause, without any JIT library."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_jitguard.core.events import CompileEvent, Launch
from pytest_jitguard.core.explain import Background, explain
from pytest_jitguard.core.keys import Component, SpecializationKey


def event(value: str = "divisible by 16", *, type: str = "i32", options: Any = None, **more: Any) -> CompileEvent:
    key = SpecializationKey(
        (
            Component("n", "argument", type, value),
            Component("BLOCK", "constexpr", "", more.pop("block", "64")),
            Component("num_warps", "option", "", more.pop("warps", "4")),
            Component("device", "device", "", more.pop("device", "0")),
        )
    )
    launch = None if options is None else Launch(values=more.pop("values", {}), options=options)
    fields: dict[str, Any] = {"kernel": "k", "module": "m", "status": "ok", "artifact_hash": str(key), **more}
    return CompileEvent("e", "triton", started=0.0, ended=1.0, key=key, launch=launch, **fields)


def cause(served: CompileEvent, *warmed: CompileEvent, **more: Any) -> str:
    return explain(served, Background(warmed=warmed, **more)).cause


def test_never_warmed() -> None:
    served = event()
    others = [event(kernel="other"), event(module="elsewhere"), event(status="failed"), event(kind="autotune")]
    why = explain(served, Background(warmed=others))
    assert (why.cause, why.never_warmed, why.changes) == ("this kernel was never warmed", True, ())
    assert cause(event(kind="autotune"), event()) == "this kernel was never tuned by the warmup"


def test_what_was_warmed_later_explains_nothing() -> None:
    later = event(block="64")
    later.started = 2.0
    assert cause(event(block="128"), later) == "this kernel was never warmed"


def test_still_running() -> None:
    assert cause(event(status="running"), event()) == "its key is known when that is over"


@pytest.mark.parametrize(
    ("served", "words"),
    [
        (event("not divisible by 16"), "n is not divisible by 16, unlike in the nearest warmed variant"),
        (
            event("not divisible by 16", options=(), values={"n": "17"}),
            "n=17 is not divisible by 16, unlike in the nearest",
        ),
        (event("1", type=""), "n=1 has a variant of its own, the nearest warmed one is for other values"),
        (event(block="128"), "BLOCK 64 → 128"),
        (event("not divisible by 16", block="128"), "BLOCK 64 → 128, and n is not divisible by 16"),
        (event("not divisible by 16", block="128", warps="8"), ", and 1 more"),
        (event(type="i64"), "n i32 → i64"),
        (
            event("not divisible by 16", block="128", warps="8", type="i64"),
            "n i32, divisible by 16 → i64, not divisible by 16, BLOCK 64 → 128, and 1 more",
        ),
    ],
)
def test_the_cause_names_what_differs(served: CompileEvent, words: str) -> None:
    assert words in cause(served, event())


def test_the_first_named_is_what_the_author_of_the_call_chose() -> None:
    assert cause(event("not divisible by 16", type="i64", block="128"), event()).startswith("n i32, divisible by 16 →")


@pytest.mark.parametrize(
    ("served", "warmed", "words"),
    [
        (
            event(options=(("a", "1"), ("b", "2"))),
            event(options=(("b", "2"), ("a", "1"))),
            "the key differs only in option order, (b=2, a=1) → (a=1, b=2)",
        ),
        (event(options=(("a", "1"),)), event(options=()), "only in how its options are spelled, () → (a=1)"),
        (event(options=()), event(options=()), "it was evicted, or compiled for another kernel object"),
        (event(), event(), "the key differs only in option order, spelling or device"),
        (
            event(device="1", artifact_hash="same"),
            event(artifact_hash="same"),
            "the key differs only in the device, and each device has a lookup of its own",
        ),
    ],
)
def test_the_same_binary(served: CompileEvent, warmed: CompileEvent, words: str) -> None:
    assert cause(served, warmed).startswith("same binary as a warmed variant: ")
    assert words in cause(served, warmed)


def test_another_binary_with_the_same_key() -> None:
    assert "no component of the key differs" in cause(event(artifact_hash="a"), event(artifact_hash="b"))


def test_who_was_first() -> None:
    told = cause(event(block="1"), event(), earlier=lambda _: "t.py::first", forgets=lambda system: system == "triton")
    assert told.endswith("; first served by t.py::first, whose variants were forgotten when it ended")


def test_who_was_first_where_nothing_is_forgotten() -> None:
    told = cause(event(block="1"), event(), earlier=lambda _: "t.py::first", forgets=lambda system: False)
    assert told.endswith("; first served by t.py::first")


def test_where_it_happened() -> None:
    stack = ("/site/vllm/moe.py:7:apply", "/repo/tests/helper.py:3:call", "/repo/tests/test_a.py:9:test_a")
    why = explain(event(stack=stack), Background(test_files={"/repo/tests/test_a.py"}, root="/repo"))
    assert (why.launch_site, why.called_from) == ("/site/vllm/moe.py:7:apply", "tests/test_a.py:9:test_a")
    nowhere = explain(event(), Background())
    assert (nowhere.launch_site, nowhere.called_from) == ("", "")


def test_advice_comes_with_changes_only() -> None:
    def advise(system: str) -> Any:
        return lambda changes: f"{system}: {len(changes)}"

    assert explain(event(block="1"), Background(warmed=[event()], advice=advise)).advice == "triton: 1"
    assert explain(event(), Background(warmed=[event()], advice=advise)).advice == ""


def test_the_nearest_of_many_is_compared() -> None:
    warmed = [event(block="16", warps="8"), event(block="128"), event("not divisible by 16", block="16", warps="1")]
    assert cause(event("not divisible by 16", block="128"), *warmed) == (
        "n is not divisible by 16, unlike in the nearest warmed variant"
    )


def test_what_two_values_have_in_common_is_said_once() -> None:
    def pair(class_: str) -> CompileEvent:
        key = SpecializationKey(tuple(Component(name, "argument", "i32", class_) for name in ("m", "n")))
        return CompileEvent("e", "triton", "k", "m", 0.0, ended=1.0, status="ok", key=key, artifact_hash=class_)

    assert cause(pair("not divisible by 16"), pair("divisible by 16")) == (
        "m is not divisible by 16, and n is not divisible by 16, unlike in the nearest warmed variant"
    )
    assert cause(pair("divisible by 16"), pair("not divisible by 16")) == (
        "m is divisible by 16, and n is divisible by 16, unlike in the nearest warmed variant"
    )


def test_an_event_without_a_key_is_not_said_to_be_the_same() -> None:
    served = CompileEvent("e", "triton", "k", "m", 0.0, kind="autotune", ended=1.0, status="failed")
    assert cause(served, event(kind="autotune")) == "its key is not known"


def test_a_stored_tuning_result_is_compared_to_tuning_results() -> None:
    def tuned(n: str, kind: str) -> CompileEvent:
        tuning = event(kind=kind, artifact_hash=None)
        tuning.key = SpecializationKey((Component("n", "tuning", "", n),))
        return tuning

    served = tuned("80", "cache_load")
    assert explain(served, Background(warmed=[event()])).never_warmed
    assert cause(served, event(), tuned("64", "autotune")) == "n 64 → 80"
