"""The baseline file: it comes back as it was written, and what is wrong with it is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_jitguard.core.baseline import (
    NEVER_WARMED,
    Baseline,
    BaselineError,
    Debt,
    debt_from_violation,
    debt_of,
    parse,
    render,
)
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.explain import Explanation
from pytest_jitguard.core.keys import Component, SpecializationKey, diff
from pytest_jitguard.core.verdicts import Violation

texts = st.text(max_size=12)
debts = st.builds(Debt, texts, texts, st.lists(texts, max_size=3).map(tuple))


@given(st.lists(debts, max_size=6))
def test_what_is_rendered_is_parsed_again(debts: list[Debt]) -> None:
    text = render(debts)
    assert parse(text).debts == frozenset(debts)
    assert render(reversed([*debts, *debts])) == text, "neither order nor repetition shows in the file"
    assert text.endswith("}\n")


def test_one_entry_a_line_and_sorted() -> None:
    text = render([Debt("triton", "m.b", ("n",)), Debt("triton", "m.a", ("×", "n"))])
    assert text.splitlines() == [
        *("{", '  "schema": 1,', '  "debt": ['),
        '    {"system": "triton", "kernel": "m.a", "components": ["×", "n"]},',
        '    {"system": "triton", "kernel": "m.b", "components": ["n"]}',
        *("  ]", "}"),
    ]
    assert render([]) == '{"schema": 1, "debt": []}\n'


ENTRY = {"system": "triton", "kernel": "m.k", "components": ["n"]}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("", "is not JSON"),
        (render([Debt("triton", "m.k", ("n",))])[:-4], "is not JSON"),
        ([], 'must be an object with "schema": 1'),
        ({"debt": []}, 'must be an object with "schema": 1'),
        ({"schema": 2, "debt": []}, 'must be an object with "schema": 1'),
        ({"schema": 1}, 'has no list "debt"'),
        ({"schema": 1, "debt": {}}, 'has no list "debt"'),
        ({"schema": 1, "debt": [ENTRY, "m.k"]}, "entry 2 must have exactly the keys system, kernel, components"),
        ({"schema": 1, "debt": [{"system": "s", "kernel": "k"}]}, "entry 1 must have exactly the keys"),
        ({"schema": 1, "debt": [{**ENTRY, "reason": "x"}]}, "entry 1 must have exactly the keys"),
        ({"schema": 1, "debt": [{**ENTRY, "system": 1}]}, "entry 1: system must be a str, not 1"),
        ({"schema": 1, "debt": [{**ENTRY, "kernel": None}]}, "entry 1: kernel must be a str, not None"),
        ({"schema": 1, "debt": [{**ENTRY, "components": "n"}]}, "entry 1: components must be a list, not 'n'"),
        ({"schema": 1, "debt": [{**ENTRY, "components": ["n", 1]}]}, "entry 1: components must be texts, not ['n', 1]"),
    ],
)
def test_each_corruption_is_named(document: Any, said: str) -> None:
    with pytest.raises(BaselineError) as caught:
        parse(document if isinstance(document, str) else json.dumps(document))
    assert said in str(caught.value)


def key(n: str, warps: str = "4") -> SpecializationKey:
    return SpecializationKey((Component("n", "argument", "i32", n), Component("num_warps", "option", "", warps)))


@pytest.mark.parametrize(
    ("explanation", "components"),
    [
        (Explanation("", changes=diff(key("1"), key("2"))), ("n",)),
        (Explanation("", changes=diff(key("1", "4"), key("2", "8"))), ("n", "num_warps")),
        (Explanation("", never_warmed=True), (NEVER_WARMED,)),
        (Explanation(""), ("cache_load",)),
    ],
)
@pytest.mark.parametrize("module", ["m", ""])
def test_an_event_and_its_violation_in_the_report_stand_for_one_debt(
    explanation: Explanation, components: tuple[str, ...], module: str
) -> None:
    event = CompileEvent("e", "triton", "k", module, 0.0, kind="cache_load", status="ok", ended=1.0)
    debt = debt_of(event, explanation)
    assert debt == Debt("triton", "m.k" if module else "k", components)
    assert debt_from_violation(Violation.of(event, explanation, 1.0).to_wire()) == debt
    assert Baseline(frozenset([debt])).knows(event, explanation)
    assert not Baseline(frozenset([Debt("triton", debt.kernel, ("other",))])).knows(event, explanation)
    assert not Baseline(frozenset([Debt("other", debt.kernel, components)])).knows(event, explanation)


def test_a_kernel_that_was_not_reached_is_no_debt() -> None:
    assert debt_from_violation(Violation("never reached").to_wire()) is None
