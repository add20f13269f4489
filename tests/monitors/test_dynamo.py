"""Dynamo, real, with a backend that compiles nothing: why it compiles, how often, and what it does when it gives up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from torch_programs import DYNAMO, INDUCTOR, Ran, run_program

from pytest_jitguard.contract import MonitorContract
from pytest_jitguard.core.keys import Change, Component
from pytest_jitguard.monitors._dynamo_cure import advice_on
from pytest_jitguard.monitors._dynamo_reasons import in_words
from tests.conftest import GuardedRun

pytest.importorskip("torch")

ONE = "2 <= x.size()[0]"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One process that goes through everything that makes Dynamo compile."""
    return run_program("dynamo", tmp_path_factory.mktemp("dynamo"))


@pytest.fixture(scope="module")
def threads(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One process with threads, a fork, refusals, and the monitor taken out again."""
    return run_program("threads", tmp_path_factory.mktemp("threads"))


@pytest.mark.tells("dynamo", "compile", "name", "seconds", "hit")
def test_a_first_compile_is_one_event_and_a_hit_is_none(ran: Ran) -> None:
    event = ran.one("first")
    assert (event["kind"], event["status"]) == ("compile", "ok")
    assert event["full_name"] == "torch_programs.scale"
    assert 0 < event["seconds"] <= ran.seconds("first")
    assert event["reason"] == ""
    assert "torch_programs.py" in event["stack"][0]
    assert ran.events("hit") == []
    assert ran.told["unended"] == []


@pytest.mark.tells("dynamo", "key")
def test_the_key_is_what_the_function_was_called_with(ran: Ran) -> None:
    assert ran.one("first")["key"] == [
        ["x", "argument", "float32", "[32]"],
        ["k", "constexpr", "int", "2"],
        ["flag", "constexpr", "bool", "True"],
        ["grad mode", "option", "", "on"],
    ]
    assert ran.component("gradient", "x") == ["x", "argument", "float32", "[9] with gradient"]
    assert ran.component("mode", "grad mode")[3] == "off"


@pytest.mark.tells("dynamo", "reason")
@pytest.mark.parametrize(
    ("step", "reasons"),
    [
        ("second size", ["a recompile, because x has size 64 at dim 0, not 32"]),
        (
            "one",
            [f"the guard {ONE} failed (Dynamo gives 0 and 1 variants of their own", "x has size 1 at dim 0, not 32"],
        ),
        ("dtype", ["x has dtype Double, not Float"]),
        ("number", ["the guard k == 2 failed (torch_programs.py:", "x has size 9 at dim 0, not 1 or 32"]),
        ("gradient", ["x needs a gradient", "x has dtype Float, not Double"]),
        ("mode", ["grad_mode changed since"]),
        ("static other", ["x has size 100 at dim 0, not 64 or 32"]),
        ("after reset", ["nothing is left of its earlier compiles: reset() was called"]),
    ],
)
def test_a_recompile_names_every_guard_that_failed(ran: Ran, step: str, reasons: list[str]) -> None:
    said = ran.one(step)["reason"]
    for reason in reasons:
        assert reason in said


def test_sizes_that_vary_become_dynamic_by_themselves_and_then_cost_nothing(ran: Ran) -> None:
    assert ran.one("second size")["detail"].startswith("x at dim 0 changed, so the new variant is for all values there")
    assert ran.events("any size") == []
    assert ran.one("one")["detail"] == ""


def test_without_dynamic_shapes_every_size_is_one_event(ran: Ran) -> None:
    assert len(ran.events("static")) == 2
    assert ran.one("static other")["kind"] == "compile"


@pytest.mark.tells("dynamo", "fallback")
def test_the_limit_is_one_fallback_and_then_nothing_is_heard(ran: Ran) -> None:
    assert [event["kind"] for event in ran.events("to the limit")] == ["compile"] * 3
    event = ran.one("limit")
    assert (event["kind"], event["status"]) == ("fallback", "ok")
    assert event["reason"] == "recompile_limit (3) is hit: x has size 5 at dim 0, not 4, 3 or 2"
    assert "run uncompiled" in event["detail"]
    assert ran.events("after the limit") == []


def test_the_limit_of_what_must_be_one_graph_fails(ran: Ran) -> None:
    event = ran.one("limit of one graph")
    assert (event["kind"], event["status"]) == ("compile", "failed")
    assert event["reason"].startswith("recompile_limit (3) is hit: y has size 5")
    assert ran.step("limit of one graph")["raised"] == "FailOnRecompileLimitHit"


def test_a_graph_break_is_several_compiles(ran: Ran) -> None:
    names = [event["kernel"] for event in ran.events("break")]
    assert names[0] == "broken"
    assert names[1].startswith("torch_dynamo_resume_in_broken_at_")
    assert len(names) == 2
    assert "a graph break" in ran.events("break")[1]["cure"]


def test_what_dynamo_cannot_compile_falls_back(ran: Ran) -> None:
    event = ran.one("unsupported")
    assert (event["kind"], event["status"]) == ("fallback", "ok")
    assert event["reason"].startswith("Dynamo cannot compile it: ")
    assert "raised" not in ran.step("unsupported")


def test_an_attempt_at_nothing_is_an_attempt_all_the_same(ran: Ran) -> None:
    event = ran.one("nothing")
    assert (event["kind"], event["detail"]) == ("compile", "nothing to compile was found in it")


@pytest.mark.tells("dynamo", "failed")
@pytest.mark.parametrize(
    ("step", "raised", "detail"),
    [("one graph", "Unsupported", "Unsupported: "), ("backend", "BackendCompilerFailed", "backend='fails' raised")],
)
def test_a_compile_that_fails_is_a_failed_event_and_raises_the_same(
    ran: Ran, step: str, raised: str, detail: str
) -> None:
    event = ran.one(step)
    assert (event["kind"], event["status"]) == ("compile", "failed")
    assert detail in event["detail"]
    assert ran.step(step)["raised"] == raised


def test_names_are_those_of_the_source(ran: Ran) -> None:
    assert ran.one("closure")["kernel"].endswith("inner")
    assert ran.one("module")["kernel"].endswith("forward")
    assert "x has size 4 at dim 0, not 2" in ran.one("module other")["reason"]


def test_the_cure_is_the_call(ran: Ran) -> None:
    assert ran.one("one")["cure"].splitlines() == [
        "import torch",
        "from torch_programs import compiled_scale",
        "",
        'compiled_scale(x=torch.zeros([1], dtype=torch.float32, device="cpu"), k=2, flag=True)',
    ]
    assert "with torch.no_grad():" in ran.one("mode")["cure"]


def test_the_advice_helps(ran: Ran) -> None:
    assert ran.one("marked")["status"] == "ok"
    assert ran.events("any size once marked") == []


def test_what_is_resident_is_accounted_for(ran: Ran) -> None:
    assert ran.told["resident"] == ["scale"]
    assert ran.told["states"] == {"dynamo": "armed"}


@pytest.mark.tells("dynamo", "threads")
def test_threads_are_told_apart(threads: Ran) -> None:
    found = {event["kernel"]: event["thread"] for event in threads.events("threads")}
    assert found == {f"apart_{n}": f"worker-{n}" for n in range(4)}
    assert len(threads.events("threads")) == 4


@pytest.mark.tells("dynamo", "no_frames")
def test_hits_run_no_python_of_ours(threads: Ran) -> None:
    assert threads.told["frames"] == 0
    assert threads.events("hits") == []


@pytest.mark.tells("dynamo", "children")
def test_a_forked_child_sees_its_own(threads: Ran) -> None:
    assert threads.told["forked"] == ["torch_programs.scale"]


@pytest.mark.tells("dynamo", "refuse")
def test_what_the_stance_refuses_is_told_on_every_thread(threads: Ran) -> None:
    for step in ("refused", "refused on a thread"):
        event = threads.one(step)
        assert event["status"] == "failed"
        assert event["reason"] == "a recompile, because x has size 4 at dim 0, not 3"
        assert "fail_on_recompile" in event["detail"]
        assert threads.step(step)["raised"] == "RuntimeError"
    assert threads.events("hit while refusing") == []
    assert threads.one("not refused")["status"] == "ok"
    assert threads.told["stance"] == "default"


@pytest.mark.tells("dynamo", "uninstall")
def test_it_leaves_no_trace(threads: Ran) -> None:
    assert threads.told["restored"] == [True, True, True]
    assert threads.events("disarmed") == []
    assert "blind" not in threads.told["before_disarming"]["dynamo"]


@pytest.mark.tells("dynamo", "blind")
def test_it_says_when_it_is_no_longer_reached(tmp_path: Any) -> None:
    ran = run_program("blind", tmp_path)
    assert ran.told["blind"] == {
        "chained": "unproven",
        "unseen": "blind a compiled variant of scale was announced by no event",
        "replaced": "blind torch._dynamo.convert_frame._compile was replaced by something that does not call what it "
        "replaced",
        "gone": ran.told["blind"]["gone"],
    }
    assert "there is no _compile" in ran.told["blind"]["gone"]


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("guards", "words"),
    [
        ([], ""),
        (
            ["0/0: tensor 'x' size mismatch at index 0. expected 32, actual 1", "0/1: L['k'] == 2  # return x * k"],
            "x has size 1 at dim 0, not 32; the guard L['k'] == 2 failed",
        ),
        (["!1/0/1: tensor 'x' rank mismatch. expected 1, actual 2"], "x has 2 dims, not 1"),
        (["0/0: tensor 'x' stride mismatch at index 1. expected 1, actual 4"], "x has stride 4 at dim 1, not 1"),
        (["0/0: tensor 'x' requires_grad mismatch. expected requires_grad=1"], "x needs no gradient"),
        (
            ["0/0: ___check_type_id(k, 140585587801312), type=<class 'int'>  # code  # a.py:3 in f (HINT: type int)"],
            "k is no int",
        ),
        (["Unable to find recompilation reasons"], "the guard Unable to find recompilation reasons failed"),
    ],
)
def test_guards_in_words(guards: list[str], words: str) -> None:
    assert in_words(guards).startswith(words)
    assert bool(in_words(guards)) == bool(words)


def _change(before: str, after: str, type_: str = "float32") -> Change:
    return Change(
        "x", "argument", Component("x", "argument", "float32", before), Component("x", "argument", type_, after)
    )


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ([_change("[32, 8]", "[100, 8]")], "torch._dynamo.mark_dynamic(x, 0)"),
        ([_change("[32, 8]", "[1, 8]")], ""),
        ([_change("[32]", "[32, 8]")], ""),
        ([_change("[32]", "[64]", "float64")], ""),
        ([], ""),
    ],
)
def test_a_dynamic_dimension_is_offered_where_it_helps(changes: list[Change], advice: str) -> None:
    assert advice in advice_on(changes)
    assert bool(advice_on(changes)) == bool(advice)


# -- guarded -----------------------------------------------------------------------------------------------------------

SUITE = """
    import torch

    def wave(x):
        return (x * 2 + 1).sin()

    def shifted(x):
        return wave(x) + 1

    dynamic = torch.compile(wave, backend="eager")
    static = torch.compile(shifted, backend="eager", dynamic=False)

    @pytest.fixture(scope="session", autouse=True)
    def warm():
        for size in (32, 64):
            dynamic(torch.ones(size)), static(torch.ones(size))

    def test_any_size():
        dynamic(torch.ones(100))

    def test_one():
        dynamic(torch.ones(1))

    def test_static():
        static(torch.ones(100))
"""


def test_a_guarded_run_names_the_guard(guarded: GuardedRun) -> None:
    guarded.suite(SUITE)
    monitors = f"--jitguard-monitors={DYNAMO},{INDUCTOR}"
    guarded.run("--jitguard-guard=all", monitors, fake=False, timeout=240).assert_outcomes(passed=1, failed=2)
    assert guarded.violations("test_any_size") == []
    (one,) = guarded.violations("test_one")
    assert f"while serving: a recompile, because the guard {ONE} failed" in one["message"].splitlines()[0]
    (static,) = guarded.violations("test_static")
    assert "x has size 100 at dim 0, not 64 or 32" in static["message"].splitlines()[0]
    assert "mark_dynamic(x, 0)" in static["advice"]


# -- the contract ------------------------------------------------------------------------------------------------------


class TestContract(MonitorContract):
    """What every monitor keeps."""

    monitor = DYNAMO
    requires = ("torch",)
    not_there: ClassVar[dict[str, str]] = {
        "load_from_disk": "Dynamo has no cache on disk; what Inductor loads makes it a load, see its tests",
        "alias": "_compile is looked up by name where it is called",
    }
    _last: Any = None

    def prepare(self) -> None:
        """Import what Dynamo imports at its first compile."""
        import torch

        torch.compile(made("first", 0), backend="eager")(torch.ones(2))

    def compile_new(self) -> str:
        """Compile a function that nobody has seen."""
        import torch

        number = self.number()
        compiled, x = torch.compile(made("kernel", number), backend="eager"), torch.ones(3)
        self._last = lambda: compiled(x)
        compiled(x)
        return f"kernel_{number}"

    def repeat(self) -> None:
        """Call the last one again."""
        self._last()

    def fail(self) -> None:
        """Compile with a backend that raises."""
        import torch

        def backend(graph: Any, inputs: Any) -> Any:
            raise ValueError("no backend today")

        torch.compile(made("failing", self.number()), backend=backend)(torch.ones(3))

    def reset(self) -> None:
        """Forget everything that was compiled, and every callback."""
        import torch

        torch._dynamo.reset()

    def sneak_in(self) -> None:
        """Compile past the hook."""
        from torch._dynamo import convert_frame

        ours = convert_frame._compile
        convert_frame._compile = ours.__wrapped__
        self.compile_new()
        convert_frame._compile = ours

    hide = sneak_in


def made(name: str, number: int) -> Callable[[Any], Any]:
    """Return a function with a code object of its own."""
    space: dict[str, Any] = {"__name__": "made"}
    source = f"def {name}_{number}(x):\n    return x * {number + 3}\n"
    exec(compile(source, f"{name}_{number}.py", "exec"), space)
    function: Callable[[Any], Any] = space[f"{name}_{number}"]
    return function


def test_an_argument_is_described_without_running_its_code() -> None:
    from pytest_jitguard.monitors._dynamo_keys import describe

    torch = pytest.importorskip("torch")

    class Lazy:
        @property
        def training(self) -> bool:
            raise RuntimeError("not loaded yet")

    assert describe(Lazy())[1] == ""
    assert describe(torch.nn.ReLU().eval())[1] == "evaluation"
