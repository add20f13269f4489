"""The warmup entry is pasted into a fresh process, where the same launch is an in-process hit afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from forks import Watch, fork, in_fork
from test_triton_keys import perform

LAUNCHES = [
    "put(x, 17)",
    "put(x, 16)",
    "put(x, 0)",
    "put(x, -16)",
    "put(x, 1)",
    "put(x, 2**40)",
    "put(x, 2**40 + 1)",
    "put(x, 2**63)",
    "put(x, 2**63 + 1)",
    "put(x, True)",
    "put(x, 1.0)",
    "put(x, float('inf'))",
    "put(x, float('nan'))",
    "put(x, None)",
    "put(x, x)",
    "put(x[1:], x[4:])",
    "put(x.to(torch.float16)[1:], x.to(torch.bool))",
    "put(x.to(torch.bfloat16), x.to(torch.int8)[1:])",
    "put(x.to(torch.float8_e4m3fn), x.to(torch.float8_e5m2)[1:])",
    "put(x.to(torch.uint8), x.to(torch.int64))",
    "put(x.to(torch.float64), x.to(torch.uint16))",
    "put(x, 5, C=tl.float16)",
    "put(x, 5, C=tl.float8e4nv)",
    "put(x, 5, C=tl.int1)",
    "put(x, 5, C=torch.bfloat16)",
    "put(x, 5, C='a \"quoted\" text')",
    "put(x, 5, C=(1, (tl.float32, 's'), None))",
    "put(x, 5, C=(1,))",
    "put(x, 5, C=None)",
    "put(x, 5, C=float('-inf'))",
    "put(x, 5, C=Colour.BLUE)",
    "put(x, 5, C=Shape(3, tl.float32))",
    "put(x, 5, C=frozenset([3]))",
    "put(x, 5, C=Point(1, tl.float16))",
    "put(x, 5, C=helper)",
    "put(x, 5, C=Colour)",
    "put(x, 5, num_warps=8, num_stages=2)",
    "put(x, 5, num_stages=2, num_warps=8)",
    "put(x, 5, num_warps=4)",
    "put(x, 5, debug=True)",
    "put(x, 5, debug=True, num_warps=2)",
    "put(num_warps=2, value=5, x=x)",
    "put_many(x, x[1:], 1, 2**40, False, 0.5, None, C='c', D=tl.float32, num_warps=1)",
    "loose(x, 17)",
    "loose(x, 2**40)",
    "loose_pointer(x[1:], 5)",
    "annotated(x, 1)",
    "annotated(x, 16)",
    "annotated(x, 2**40 + 1)",
    "pair_sum(x, (1, 16), C=1)",
    "pair_sum(x, (x[1:], 2**40), C=1)",
    "pair_sum(x, (1.5, True), C=1)",
    "pair_sum(x, Point(x, 5), C=1)",
    "pair_sum(x, (None, (1, 17)), C=1)",
    "pair_sum(x, (5,) * 2, C=1)",
    "described(d(16, 16), x, SIZE=1)",
    "described(d(8, 8), x, SIZE=1)",
    "described(d(8, 4), x, SIZE=1)",
    "calls(x, F=helper)",
    "gluon_put(x, 5, C=1)",
    "gluon_put(x[1:], 16, C=2, num_warps=8)",
    "guessed(x, x, 100)",
    "guessed(x, x, 64, num_warps=8)",
]
UNSPEAKABLE = ["put(x, 5, C=Identity())", "put(x, 5, C=Verbose(1))", "put(x, 5, C=make_copy())"]


def news(watch: Watch) -> list[Any]:
    return [event for event in watch.news() if event.kind != "device_load"]


def missed(watch: Watch, launch: str, target: str, **more: Any) -> str:
    """Perform a launch in a process of its own and return the entry of the one event."""

    def cold() -> str:
        watch.on(target)
        perform(launch, **more)
        (event,) = news(watch)
        return str(event.cure)

    return str(fork(cold))


def paste(watch: Watch, entry: str) -> None:
    """Do what a user does with the entry: put it into a file and call it before serving."""
    path = watch.folder / "pasted.py"
    path.write_text(entry)
    exec(compile(entry, str(path), "exec"), {})


@pytest.mark.tells("triton", "cure")
@pytest.mark.parametrize("launch", LAUNCHES)
@in_fork
def test_the_pasted_entry_makes_the_launch_a_hit(watch: Watch, launch: str) -> None:
    entry = missed(watch, launch, "cuda:90")
    assert "FILL_IN" not in entry
    assert "instrumentation_mode" not in entry  # JITFunction.run adds that itself
    paste(watch, entry)
    assert len(news(watch)) == 1
    perform(launch)
    assert news(watch) == [], entry


@pytest.mark.parametrize("launch", ["put(x, 5)", "put(x[1:], 5)", "put(large, 5)"])
@in_fork
def test_on_hip(watch: Watch, launch: str) -> None:
    import torch

    large = torch.empty(2**29, device="meta")
    entry = missed(watch, launch, "hip:gfx942", large=large)
    watch.on("hip:gfx942")
    paste(watch, entry)
    assert len(news(watch)) == 1
    perform(launch, large=large)
    assert news(watch) == [], entry


@pytest.mark.parametrize("launch", UNSPEAKABLE)
@in_fork
def test_what_has_no_source_form_says_so_and_does_not_run(watch: Watch, launch: str) -> None:
    entry = missed(watch, launch, "cuda:90")
    assert "has no source form: fill it in" in entry
    with pytest.raises(NameError, match="FILL_IN_C"):
        paste(watch, entry)
    assert news(watch) == []


@in_fork
def test_an_unaligned_tensor_over_2_gib_on_hip_says_so(watch: Watch) -> None:
    import torch

    entry = missed(watch, "put(large[1:], 5)", "hip:gfx942", large=torch.empty(2**29 + 1, device="meta"))
    assert "x=an unaligned tensor of more than 2 GiB has no source form" in entry
    assert "FILL_IN_x" in entry


@in_fork
def test_a_kernel_of_a_factory_says_so(watch: Watch) -> None:
    def cold() -> str:
        from forks import tensor
        from triton_kernels import make_copy

        make_copy()[(1,)](tensor(), tensor(), 100, BLOCK=64)
        return str(news(watch)[0].cure)

    entry = fork(cold)
    assert "# copy cannot be imported from triton_kernels: take the kernel from its factory" in entry
    with pytest.raises(NameError, match="copy"):
        paste(watch, entry)


@in_fork
def test_gluons_descriptor_says_so(watch: Watch) -> None:
    def cold() -> str:
        import torch
        from triton.experimental.gluon import language as gl
        from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
        from triton_kernels import gluon_pass

        base = torch.zeros(64, 64, dtype=torch.float16, device="cuda")
        layout = gl.NVMMASharedLayout(swizzle_byte_width=32, element_bitwidth=16, rank=2)
        gluon_pass[(1,)](torch.zeros(1, device="cuda"), TensorDescriptor.from_tensor(base, [16, 16], layout), C=1)
        return str(news(watch)[0].cure)

    entry = fork(cold)
    assert "n=tensordesc<" in entry
    assert "has no source form" in entry


@in_fork
def test_autotuned_kernels(watch: Watch) -> None:
    def cold() -> list[str]:
        from forks import tensor
        from triton_kernels import tuned, tuned_guess

        tuned[(1,)](tensor(), tensor(), 100)
        tuned_guess[(1,)](tensor(), tensor(), 100)
        return [event.cure for event in news(watch) if event.kind != "autotune"]

    from forks import tensor
    from triton_kernels import tuned, tuned_guess

    entries = fork(cold)
    assert len(entries) == 4
    assert "tuned.fn.warmup(" in entries[0]
    assert "tuned_guess.fn.fn.warmup(" in entries[2]
    for entry in entries:
        paste(watch, entry)
    assert [event.kind for event in news(watch)] == ["cache_load"] * 4
    tuned[(1,)](tensor(), tensor(), 100)
    tuned_guess[(1,)](tensor(), tensor(), 100)
    # Nothing but running it chooses a config; the variants are there.
    assert [event.kind for event in news(watch)] == ["autotune", "autotune"]


@in_fork
def test_the_entry_of_an_autotune_run_runs_it(watch: Watch) -> None:
    def cold() -> list[str]:
        from forks import tensor
        from triton_kernels import tuned, tuned_guess

        tuned[(1,)](tensor(), tensor()[1:], 100)
        tuned_guess[lambda meta: (1,)](tensor(), tensor(), 100)
        return [event.cure for event in news(watch) if event.kind == "autotune"]

    from forks import tensor
    from triton_kernels import tuned, tuned_guess

    plain, guess = fork(cold)
    assert "its grid is computed by the caller" not in plain
    assert "its grid is computed by the caller" in guess
    for entry in (plain, guess):
        paste(watch, entry)
    assert [event.kind for event in news(watch)].count("autotune") == 2
    tuned[(1,)](tensor(), tensor()[1:], 100)
    tuned_guess[(1,)](tensor(), tensor(), 100)
    assert news(watch) == []


@in_fork
def test_an_async_compile_has_the_entry_of_its_launch(watch: Watch) -> None:
    def cold() -> str:
        from concurrent.futures import ThreadPoolExecutor

        import triton

        with ThreadPoolExecutor(1) as pool, triton.AsyncCompileMode(pool):
            perform("put(x, 5, num_stages=2, num_warps=8)")
        return str(news(watch)[0].cure)

    paste(watch, fork(cold))
    assert len(news(watch)) == 1
    perform("put(x, 5, num_stages=2, num_warps=8)")
    assert news(watch) == []


@in_fork
def test_several_entries_under_one_set_of_imports(watch: Watch) -> None:
    from pytest_jitguard.core.verdicts import merge_entries

    launches = ["put(x, 5, C=Shape(3, tl.float32))", "described(d(8, 8), x, SIZE=1)", "calls(x, F=helper)"]
    paste(watch, merge_entries([missed(watch, launch, "cuda:90") for launch in launches]))
    assert len(news(watch)) == 3
    for launch in launches:
        perform(launch)
    assert news(watch) == []


@in_fork
def test_in_an_interpreter_of_its_own(watch: Watch) -> None:
    """The fork above has an empty Triton; this is a new process altogether."""
    entry = missed(watch, "put_many(x, x[1:], 1, 2**40, False, 0.5, None, C='c', D=tl.float32)", "cuda:90")
    script = watch.folder / "script.py"
    script.write_text(
        f"""
from pathlib import Path
from forks import Watch
from test_triton_keys import perform
watch = Watch(Path({str(watch.folder)!r}))
watch.on("cuda:90")
watch.arm()
exec(Path({str(watch.folder / "entry.py")!r}).read_text(), {{}})
print(watch.told())
perform("put_many(x, x[1:], 1, 2**40, False, 0.5, None, C='c', D=tl.float32)")
print(watch.told())
"""
    )
    (watch.folder / "entry.py").write_text(entry)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert done.stdout.splitlines() == ["['cache_load put_many']", "[]"], done.stderr[-2000:]
