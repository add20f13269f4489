from __future__ import annotations

from pathlib import Path

from report_builders import FakeProcess, gap, tuned

from pytest_jitguard.core.policy import Policy
from pytest_jitguard.reporters import markdown
from pytest_jitguard.reporters.model import build

GAP = """\
## jitguard: failed

3 tests: 2 violated, 1 clean. Warmup ok, 1 compiled, 0 loaded from disk, 0 autotuned.

| kernel | system | what happened | tests | time | why | launched at |
|---|---|---|--:|--:|---|---|
| `wna16_gemm` | triton | 2 compiles | 2 | 1.38 s | BLOCK\\_SIZE\\_M 16 → 64 | `examples/wna16_moe/layer.py:88` |

- monitor `triton` 3.9.0 armed
- compile caches: cold

<details><summary>wna16_gemm: 2 compiles in 2 tests, 1.38 s: BLOCK_SIZE_M 16 → 64 \
(examples/wna16_moe/layer.py:88)</summary>

Add this to the warmup:

```python
layer.wna16_gemm.warmup(BLOCK_SIZE_M=64)
```

```text
tests/test_moe.py::test_large:
  wna16_gemm (triton) compiled in 0.83 s while serving: BLOCK_SIZE_M 16 → 64
    changed  BLOCK_SIZE_M: 16 → 64
    launched examples/wna16_moe/layer.py:88:gemm

tests/test_moe.py::test_larger:
  wna16_gemm (triton) compiled in 0.55 s while serving: BLOCK_SIZE_M 16 → 64
    changed  BLOCK_SIZE_M: 16 → 64
    launched examples/wna16_moe/layer.py:88:gemm
```

</details>
"""


def test_a_gap_in_full() -> None:
    assert markdown.render(build([gap().raw])) == GAP


def test_findings_and_what_was_cut_short_come_before_the_table() -> None:
    process = FakeProcess().environment(waive=["blind:triton"]).monitor("blind", "a <b> | `c`\nd")
    process.test("a.py::test_1", 64)
    process.outcome("a.py::test_2", "setup", "failed")
    process.open("serving", "a.py::test[`x`]", owner="a.py::test[`x`]", attempt=1)
    text = markdown.render(build([process.raw]))
    assert (
        text.split("\n| kernel")[0]
        == """\
## jitguard: failed

3 tests: 1 violated, 1 error, 1 interrupted. No warmup.

- `blind:triton` (waived): the triton monitor went blind: a &lt;b&gt; \\| \\`c\\` d
- pytest (pid 100) ended without a goodbye: it was killed or crashed
- never came to an end: `` a.py::test[`x`] ``
- not judged, since its setup failed: `a.py::test_2`
"""
    )


def many(kernels: int) -> str:
    process = FakeProcess().environment().monitor()
    for number in range(kernels):
        process.test(f"a.py::test_{number}", 1, kernel=f"kernel|{number}")
    return markdown.render(build([process.finish().raw]), 60_000)


def test_it_stays_within_its_limit_and_says_what_it_left_out() -> None:
    text = many(300)
    assert len(text.encode()) <= 60_000
    assert "*… and 100 more kernels.*" in text
    left_out = 300 - text.count("<details>")
    assert f"*The details of {left_out} kernels are left out: the report would not fit.*" in text
    assert text.count("<details>") == text.count("</details>") > 0


def test_a_head_that_does_not_fit_is_cut_and_says_so() -> None:
    text = markdown.render(build([gap().raw]), 400)
    assert len(text.encode()) <= 400
    assert text.endswith("*Cut off here: the report is longer than fits.*\n")


def test_a_pipe_does_not_end_a_table_cell() -> None:
    assert "| `kernel\\|0` |" in many(1)


def test_a_cure_with_backticks_stays_in_its_block() -> None:
    process = FakeProcess().environment().monitor()
    process.test("a.py::test", 64)
    for record in process.records:
        if record["record"] == "verdict":
            record["violations"][0]["cure"] = "a\n```\nb"
    assert "````python\na\n```\nb\n````" in markdown.render(build([process.finish().raw]))


def test_append_keeps_what_is_there_and_leaves_room(tmp_path: Path) -> None:
    path = tmp_path / "new" / "summary.md"
    markdown.append(path, "one\n")
    markdown.append(path, "two \udc80\n")
    assert path.read_text() == "one\n\ntwo ?\n"
    assert markdown.room_in(path) == markdown.LIMIT - len("one\n\ntwo ?\n")


def test_imports_are_said_once_and_advice_once_for_a_kernel() -> None:
    process = FakeProcess().environment().monitor()
    process.test("a.py::test", 64, 128)
    for record in process.records:
        for number, violation in enumerate(record["violations"] if record["record"] == "verdict" else ()):
            violation |= {"cure": f"import torch\n\nk.warmup({number})", "advice": "possible instead"}
    text = markdown.render(build([process.finish().raw]))
    assert "```python\nimport torch\n\nk.warmup(0)\nk.warmup(1)\n```" in text
    assert text.count("possible instead") == 1


def test_an_autotune_run_is_counted_once() -> None:
    for policy, told in (
        (Policy(max_events=1), "- allowed: 1 autotune run of `tuned`"),
        (Policy(), "| 1 autotune run |"),
    ):
        text = markdown.render(build([tuned(policy).raw]))
        assert told in text
        assert "layer.tuned.warmup" not in text
        assert ("within   1 compile and 1 load from disk" in text) is (policy == Policy())
