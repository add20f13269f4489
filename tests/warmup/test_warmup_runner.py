"""Steps run in order until one fails; every way to fail has one line that says it and a text that shows it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pytest_jitguard.core.settings import Settings, WarmupCall
from pytest_jitguard.warmup.once import turn
from pytest_jitguard.warmup.plan import Step, WarmupContext
from pytest_jitguard.warmup.runner import WarmupResult, run


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def context(said: list[str]) -> WarmupContext:
    return WarmupContext(None, Settings(), said.append)


def steps(*calls: Callable[..., object]) -> list[Step]:
    return [Step(f"m:{call.__name__}", call) for call in calls]


def fine() -> None:
    pass


def bad() -> None:
    raise ValueError("no such shape\nsecond line")


def test_no_steps_is_none(context: WarmupContext, tmp_path: Path) -> None:
    result = run([], context, turn=turn(tmp_path / "turns", "w"))
    assert (result.status, result.cause, result.steps) == ("none", "", [])
    assert not (tmp_path / "turns").exists()


def test_steps_run_in_order_with_their_arguments(context: WarmupContext, said: list[str]) -> None:
    seen: list[Any] = []

    def first(size: int) -> None:
        seen.append(size)

    def second(ctx: WarmupContext) -> None:
        ctx.progress("half way")
        seen.append(ctx)

    result = run([Step("m:first", first, {"size": 2}), Step("m:second", second)], context, turn=nullcontext())
    assert seen == [2, context]
    assert (result.status, result.cause, result.detail) == ("ok", "", "")
    assert [(step.path, step.status, step.error) for step in result.steps] == [
        ("m:first", "ok", ""),
        ("m:second", "ok", ""),
    ]
    assert said == ["step 1 of 2, m:first", "step 2 of 2, m:second", "half way"]


def test_the_first_failure_stops_it(context: WarmupContext) -> None:
    result = run(steps(fine, bad, fine), context)
    assert [step.status for step in result.steps] == ["ok", "failed"]
    assert result.status == "failed"
    assert result.cause.startswith("warmup m:bad failed after ")
    assert result.cause.endswith(": ValueError: no such shape")
    assert "second line" in result.detail
    assert "in bad" in result.detail
    assert "pytest_jitguard/warmup" not in result.detail  # nobody is helped by our own frames
    assert json.loads(json.dumps(result.to_wire()))["steps"][1]["error"] == "ValueError: no such shape"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SystemExit(3), "SystemExit: 3 (a warmup step must return, or raise an Exception)"),
        (GeneratorExit(), "GeneratorExit (a warmup step must return, or raise an Exception)"),
        (pytest.skip.Exception("no GPU"), "Skipped: no GPU (a warmup step must return, or raise an Exception)"),
        (pytest.fail.Exception("bad"), "Failed: bad (a warmup step must return, or raise an Exception)"),
        (Unprintable(), "<exception str() failed>"),
        (ValueError("x" * 1000), "ValueError: " + "x" * 288),
        (SyntaxError("odd", ("f.py", 1, 1, "a b")), "SyntaxError: odd"),
    ],
)
def test_odd_ways_to_fail(context: WarmupContext, error: BaseException, line: str) -> None:
    def odd() -> None:
        raise error

    result = run(steps(odd), context)
    assert result.status == "failed"
    assert result.steps[0].error.endswith(line)
    assert len(result.steps[0].error) <= 370
    assert "in odd" in result.detail


def test_ctrl_c_passes(context: WarmupContext, tmp_path: Path) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(steps(interrupted), context, timeout=5, turn=turn(tmp_path, "w"))
    assert run(steps(fine), context, turn=turn(tmp_path, "w")).status == "ok"


class TestUnresolvedSteps:
    """What the configuration names is imported when its turn comes: as part of the warmup, under its limit."""

    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
        monkeypatch.syspath_prepend(str(tmp_path))

        def write(name: str, text: str) -> None:
            (tmp_path / f"{name}.py").write_text(text)

        return write

    def test_it_is_called(self, context: WarmupContext, module: Callable[[str, str], None]) -> None:
        module("wr_good", "seen = []\ndef warm(size): seen.append(size)\n")
        assert run([WarmupCall("wr_good:warm", {"size": 4})], context).status == "ok"
        assert sys.modules["wr_good"].seen == [4]

    def test_a_wrong_path(self, context: WarmupContext) -> None:
        result = run([WarmupCall("wr_nowhere:warm")], context)
        assert result.status == "failed"
        assert result.cause.startswith("warmup 'wr_nowhere:warm': there is no module 'wr_nowhere'")
        assert result.cause.endswith("(set by --jitguard-warmup, a [[warmup]] table or the marker's warmup=)")
        assert result.cause == result.usage_error

    def test_a_module_that_raises(self, context: WarmupContext, module: Callable[[str, str], None]) -> None:
        module("wr_raises", "import wr_other\n")
        result = run([WarmupCall("wr_raises:warm")], context)
        assert result.steps[0].error == "ModuleNotFoundError: No module named 'wr_other'"

    def test_a_module_that_hangs(self, context: WarmupContext, module: Callable[[str, str], None]) -> None:
        module("wr_hangs", "import time\ntime.sleep(20)\n")
        result = in_thread_free_process("[WarmupCall('wr_hangs:warm')]", Path(sys.path[0]))
        assert result["status"] == "timeout"
        assert "wr_hangs.py:2" in result["cause"]


def in_thread_free_process(what: str, folder: Path) -> dict[str, Any]:
    """Run steps under a limit in a process of its own (signals) and return the result's wire form."""
    code = f"""
    import asyncio, json, sys, time
    sys.path.insert(0, {str(folder)!r})
    from pytest_jitguard.core.settings import Settings, WarmupCall
    from pytest_jitguard.warmup.plan import Step, WarmupContext
    from pytest_jitguard.warmup.runner import run
    def fine(): time.sleep(0.15)
    def hang(): time.sleep(20)
    def stubborn():
        while True:
            try: time.sleep(20)
            except Exception: pass
    async def ahang(): await asyncio.sleep(20)
    def steps(*calls): return [Step(f"m:{{call.__name__}}", call) for call in calls]
    result = run({what}, WarmupContext(None, Settings(), lambda text: None), timeout=0.25)
    print(json.dumps(result.to_wire()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=10, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


class TestTimeout:
    @pytest.mark.parametrize("call", ["hang", "stubborn", "ahang"])
    def test_a_hanging_step(self, call: str, tmp_path: Path) -> None:
        result = in_thread_free_process(f"steps({call}, fine)", tmp_path)
        assert result["status"] == "timeout"
        assert [step["status"] for step in result["steps"]] == ["timeout"]
        assert result["cause"].startswith(f"warmup m:{call} was stopped: over its limit of 0.25 s, in ")
        # A coroutine that waits is not on the stack; the event loop is.
        assert f"in {call if call != 'ahang' else 'select'}" in result["steps"][0]["traceback"]

    def test_the_limit_is_for_all_steps_together(self, tmp_path: Path) -> None:
        result = in_thread_free_process("steps(fine, fine, fine)", tmp_path)
        assert [step["status"] for step in result["steps"]] == ["ok", "timeout"]
        assert "over its limit of 0.25 s, in fine" in result["cause"]

    def test_outside_the_main_thread(self, context: WarmupContext) -> None:
        results: list[WarmupResult] = []

        def spin() -> None:
            while True:
                time.sleep(0.01)

        thread = threading.Thread(target=lambda: results.append(run(steps(spin), context, timeout=0.1)))
        thread.start()
        thread.join(5)
        assert results[0].status == "timeout"
        assert results[0].steps[0].seconds < 2


def test_folder_that_cannot_be_used(context: WarmupContext, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(steps(fine), context, turn=turn(tmp_path / "file", "w"))
    assert result.status == "failed"
    assert result.cause.startswith("warmup not started: cannot take turns, ")
    assert result.steps == []
