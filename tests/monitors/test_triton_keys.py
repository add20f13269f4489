"""Every rule of Triton's specialization has its words: two launches, and what the explanation says of the second."""

from __future__ import annotations

from typing import Any

import pytest
from forks import Watch, in_fork, tensor

Launch = tuple[str, str]


def explained(watch: Watch) -> tuple[list[str], str]:
    """Return what changed between the two events so far, and the cause in words."""
    from pytest_jitguard.core.explain import Background, explain

    warmed, served = [event for event in watch.news() if event.kind != "device_load"]
    why = explain(served, Background(warmed=[warmed]))
    assert not why.never_warmed
    return [str(change) for change in why.changes], why.cause


SAME = "same binary as a warmed variant: "

RULES = {
    "divisible": ("put(x, 16)", "put(x, 17)", ["value: divisible by 16 → not"]),
    "not divisible": ("put(x, 17)", "put(x, 16)", ["value: not divisible by 16 → divisible"]),
    "one": ("put(x, 1)", "put(x, 17)", ["value: 1 → other"]),
    "other to one": ("put(x, 17)", "put(x, 1)", ["value: other → 1"]),
    "wide": ("put(x, 17)", "put(x, 2**40 + 1)", ["value: i32 → i64"]),
    "unsigned": ("put(x, 17)", "put(x, 2**63 + 1)", ["value: i32 → u64"]),
    "wide and class": ("put(x, 17)", "put(x, 2**40)", ["value: i32, not divisible by 16 → i64, divisible by 16"]),
    "float": ("put(x, 17)", "put(x, 1.5)", ["value: i32, not divisible by 16 → fp32"]),
    "bool": ("put(x, True)", "put(x, 1.5)", ["value: u1 → fp32"]),
    "alignment": ("put(x, 5)", "put(x[1:], 5)", ["x: 16-byte aligned → unaligned"]),
    "dtype": ("put(x, 5)", "put(x.to(torch.float16), 5)", ["x: *fp32 → *fp16"]),
    "fp8": ("put(x, 5)", "put(x.to(torch.float8_e5m2), 5)", ["x: *fp32 → *fp8e5"]),
    "none": ("put(x, None)", "put(x, x)", ["value: None → *fp32, 16-byte aligned"]),
    "pointer to none": ("put(x, x)", "put(x, None)", ["value: *fp32, 16-byte aligned → None"]),
    "constexpr": ("put(x, 5, C=16)", "put(x, 5, C=64)", ["C: 16 → 64"]),
    "constexpr one": ("put(x, 5, C=1)", "put(x, 5, C=2)", ["C: 1 → 2"]),
    "constexpr dtype": ("put(x, 5, C=tl.float16)", "put(x, 5, C=tl.float32)", ["C: tl.float16 → tl.float32"]),
    "constexpr text": ("put(x, 5, C='a')", "put(x, 5, C='b')", ["C: 'a' → 'b'"]),
    "constexpr kernel": ("calls(x, F=helper)", "calls(x, F=helper2)", None),
    "warps": ("put(x, 5)", "put(x, 5, num_warps=8)", ["num_warps: 4 → 8"]),
    "stages": ("put(x, 5, num_stages=2)", "put(x, 5, num_stages=4)", ["num_stages: 2 → 4"]),
    "loose divisible": ("loose(x, 17)", "loose(x, 2**40)", ["n: i32 → i64"]),
    "loose pointer": ("loose_pointer(x, 5)", "loose_pointer(x.to(torch.int32), 5)", ["x: *fp32 → *i32"]),
    "annotated": ("annotated(x, 17)", "annotated(x, 16)", ["n: not divisible by 16 → divisible"]),
    "annotated one": ("annotated(x, 17)", "annotated(x, 1)", ["n: other → 1"]),
    "tuple": ("pair_sum(x, (1, 16), C=1)", "pair_sum(x, (1, 17), C=1)", ["pair[1]: divisible by 16 → not"]),
    "tuple pointer": ("pair_sum(x, (x, 5), C=1)", "pair_sum(x, (x[1:], 5), C=1)", None),
    "descriptor": ("described(d(16, 16), x, SIZE=1)", "described(d(32, 16), x, SIZE=1)", None),
}
WORDS = {
    "constexpr kernel": "F helper #",
    "tuple pointer": "pair[0] is unaligned, unlike in the nearest warmed variant",
    "descriptor": "descriptor tensordesc<fp16[16, 16]> → tensordesc<fp16[32, 16]>",
    "divisible": "value=17 is not divisible by 16, unlike in the nearest warmed variant",
    "not divisible": "value=16 is divisible by 16, unlike in the nearest warmed variant",
    "one": "value=17 is not 1, the only value that the nearest warmed variant is for",
    "warps": "num_warps 4 → 8",
    "alignment": "x is unaligned, unlike in the nearest warmed variant",
}


def perform(call: str, **more: Any) -> None:
    """Launch `kernel(arguments)` with one block."""
    import torch
    import triton_kernels
    from triton.tools.tensor_descriptor import TensorDescriptor

    def block(rows: int, columns: int) -> Any:
        return TensorDescriptor.from_tensor(torch.zeros(64, 64, dtype=torch.float16, device="cuda"), [rows, columns])

    name, arguments = call.split("(", 1)
    if name == "put" and "C=" not in arguments:
        arguments = arguments[:-1] + ", C=1)"
    kernel = getattr(triton_kernels, name)
    names = {"launch": kernel[(1,)], "x": tensor(), "torch": torch, "d": block, **vars(triton_kernels), **more}
    eval(f"launch({arguments}", names)


@pytest.mark.tells("triton", "key", "reason")
@pytest.mark.parametrize("rule", RULES)
@in_fork
def test_a_rule_in_words(watch: Watch, rule: str) -> None:
    import triton_kernels

    factory = triton_kernels.make_helper(2)
    warmed, served, expected = RULES[rule]
    perform(warmed)
    perform(served, helper2=factory)
    changes, cause = explained(watch)
    if expected is not None:
        assert changes == expected
    assert WORDS.get(rule, "") in cause


@pytest.mark.parametrize(
    ("warmed", "served", "words"),
    [
        (
            "put(x, 5, num_stages=2, num_warps=8)",
            "put(x, 5, num_warps=8, num_stages=2)",
            "the key differs only in option order, (num_stages=2, num_warps=8) → (num_warps=8, num_stages=2)",
        ),
        (
            "put(x, 5)",
            "put(x, 5, num_warps=4)",
            "the key differs only in how its options are spelled, () → (num_warps=4)",
        ),
    ],
)
@in_fork
def test_the_same_binary(watch: Watch, warmed: str, served: str, words: str) -> None:
    perform(warmed)
    perform(served)
    assert explained(watch) == ([], SAME + words)
    assert watch.events[1].kind == "cache_load"


@in_fork
def test_the_same_binary_for_another_kernel_object(watch: Watch) -> None:
    from triton_kernels import make_copy

    for _ in range(2):
        make_copy()[(1,)](tensor(), tensor(), 100, BLOCK=64)
    words = "it was evicted, or compiled for another kernel object of the same source"
    assert explained(watch) == ([], SAME + words)


@in_fork
def test_another_device(watch: Watch) -> None:
    import triton

    perform("put(x, 5)")
    triton.runtime.driver.active.get_current_device = lambda: 1
    perform("put(x, 5)")
    changes, cause = explained(watch)
    assert changes == ["device: 0 → 1"]
    assert cause == f"{SAME}the key differs only in the device, and each device has a lookup of its own"
    assert "with torch.cuda.device(1):\n    put.warmup(" in watch.events[1].cure


@in_fork
def test_a_range_on_hip(watch: Watch) -> None:
    import torch

    watch.on("hip:gfx942")
    perform("put(x, 5)")
    perform("put(y, 5)", y=torch.empty(2**29, device="meta"))
    changes, cause = explained(watch)
    assert changes == ["x: 16-byte aligned, under 2 GiB → 16-byte aligned"]
    assert "x 16-byte aligned, under 2 GiB → 16-byte aligned" in cause


@in_fork
def test_values_and_forms_of_a_launch_are_kept_as_text(watch: Watch) -> None:
    from triton_kernels import put_many

    put_many[(1,)](tensor(), tensor(64, "float16"), 17, 2**40, True, 0.5, None, C="c", D=3, num_stages=2)
    launch = watch.news()[0].launch
    assert launch.values == {
        **{"i": "17", "j": "1099511627776", "flag": "True", "number": "0.5", "nothing": "None", "D": "3"}
    }
    assert launch.tensors == {"x": "float32[256]", "y": "float16[64]"}
    assert launch.options == (("num_stages", "2"),)
    assert launch.path == "triton_kernels:put_many"


@pytest.mark.parametrize(
    ("warmed", "served", "advice"),
    [
        ("put(x, 16)", "put(x, 17)", "do_not_specialize=['value']"),
        ("put(x, 1)", "put(x, 17)", "do_not_specialize=['value']"),
        ("put(x, 5)", "put(x[1:], 5)", "do_not_specialize_on_alignment=['x']"),
        ("put(x, 16)", "put(x[1:], 17)", "do_not_specialize=['value'], do_not_specialize_on_alignment=['x']"),
        ("put(x, 17)", "put(x, 2**40)", ""),
        ("put(x, None)", "put(x, x)", ""),
        ("put(x, 16, C=1)", "put(x, 17, C=2)", ""),
        ("pair_sum(x, (1, 16), C=1)", "pair_sum(x, (1, 17), C=1)", ""),
    ],
)
@in_fork
def test_advice_is_given_where_it_would_work(watch: Watch, warmed: str, served: str, advice: str) -> None:
    from pytest_jitguard.core.keys import diff

    perform(warmed)
    perform(served)
    first, second = watch.news()
    text = watch.monitor.advice(diff(first.key, second.key))
    assert advice in text
    assert bool(text) == bool(advice)
    if advice:
        assert "can cost steady-state speed" in text


@in_fork
def test_the_range_of_a_pointer_needs_the_whole_specialization_off(watch: Watch) -> None:
    import torch

    from pytest_jitguard.core.keys import diff

    watch.on("hip:gfx942")
    perform("put(x, 5)")
    perform("put(y, 5)", y=torch.empty(2**29, device="meta"))
    first, second = watch.news()
    assert "do_not_specialize=['x']" in watch.monitor.advice(diff(first.key, second.key))
