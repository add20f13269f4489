"""Paths become callables or errors that name what is wrong; callables get what they ask for and nothing else."""

from __future__ import annotations

import functools
import subprocess
import sys
import typing
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_jitguard.core.settings import Settings, WarmupCall
from pytest_jitguard.warmup.plan import Step, WarmupContext, WarmupPathError, call_step, plan_step, resolve

MODULES = {
    "wp_good.py": "class Layers:\n  @staticmethod\n  def warm(): return 'warmed'\ndef warmup(): pass\nVALUE = 3\n",
    "wp_raises.py": "raise RuntimeError('no device')\n",
    "wp_lacks.py": "import wp_nowhere.other\n",
    "wp_pkg/__init__.py": "",
    "wp_pkg/inner.py": "def warm(): pass\n",
    "wp_broken_pkg/__init__.py": "import wp_missing_dependency\n",
    "wp_broken_pkg/inner.py": "def warm(): pass\n",
    "wp_from.py": "from wp_pkg import not_there\n",
    "wp_syntax.py": "def warm(:\n",
}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in MODULES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("wp_")]:
        del sys.modules[name]


@pytest.fixture
def context() -> WarmupContext:
    return WarmupContext("cuda:90", Settings(), lambda text: None)


class TestResolve:
    def test_walks_dotted_attributes(self, modules: Path) -> None:
        assert resolve("wp_good:Layers.warm")() == "warmed"
        assert resolve("wp_pkg.inner:warm").__module__ == "wp_pkg.inner"

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("wp_nothing:warm", "there is no module 'wp_nothing'"),
            ("wp_nothing.inner.deep:warm", "there is no module 'wp_nothing'"),
            ("wp_pkg.nothing:warm", "there is no module 'wp_pkg.nothing'"),
            ("wp_good.inner:warm", "there is no module 'wp_good.inner'"),
            ("wp_good:warmpu", "wp_good has no attribute 'warmpu' (did you mean 'warmup'?)"),
            ("wp_good:Layers.cool", "wp_good.Layers has no attribute 'cool'"),
            ("wp_good:VALUE", "wp_good.VALUE is of type int, which is not callable"),
            ("wp_good", "not of that form"),
            ("wp_good:", "not of that form"),
            ("wp good:warm", "not of that form"),
            ("wp_good:warm()", "not of that form"),
            (".wp_good:warm", "not of that form"),
        ],
    )
    def test_a_wrong_path_says_path_finding_and_what_is_accepted(self, modules: Path, path: str, said: str) -> None:
        with pytest.raises(WarmupPathError) as caught:
            resolve(path)
        assert str(caught.value).startswith(f"warmup {path!r}: {said}")
        assert str(caught.value).endswith("expected package.module:callable")

    @pytest.mark.parametrize(
        ("path", "error", "said"),
        [
            ("wp_raises:warm", RuntimeError, "no device"),
            ("wp_lacks:warm", ModuleNotFoundError, "wp_nowhere"),
            ("wp_broken_pkg.inner:warm", ModuleNotFoundError, "wp_missing_dependency"),
            ("wp_from:warm", ImportError, "not_there"),
            ("wp_syntax:warm", SyntaxError, "invalid syntax"),
        ],
    )
    def test_what_the_module_itself_raises_is_let_through(
        self, modules: Path, path: str, error: type[Exception], said: str
    ) -> None:
        with pytest.raises(error, match=said) as caught:
            resolve(path)
        assert not isinstance(caught.value, WarmupPathError)

    def test_plan_keeps_order_and_arguments(self, modules: Path) -> None:
        steps = [plan_step(WarmupCall("wp_good:warmup", {"size": 2})), plan_step(WarmupCall("wp_pkg.inner:warm"))]
        assert [(step.path, dict(step.kwargs)) for step in steps] == [
            ("wp_good:warmup", {"size": 2}),
            ("wp_pkg.inner:warm", {}),
        ]


def got(call: Callable[..., Any], context: WarmupContext, kwargs: Mapping[str, Any] | None = None) -> Any:
    """Call through call_step and return what the callable noted down."""
    seen: list[Any] = []

    @functools.wraps(call)
    def noting(*args: Any, **given: Any) -> None:
        seen.append(call(*args, **given))

    call_step(Step("here:fn", noting, kwargs or {}), context)
    return seen[0]


class TestCall:
    def test_asking_for_nothing(self, context: WarmupContext) -> None:
        def nothing() -> str:
            return "ran"

        def optional(size: int = 3) -> int:
            return size

        def rest(*args: Any, **kwargs: Any) -> Any:
            return args, kwargs

        assert got(nothing, context) == "ran"
        assert got(optional, context) == 3
        assert got(rest, context) == ((), {})

    def test_asking_by_position(self, context: WarmupContext) -> None:
        def one(anything: Any) -> Any:
            return anything

        def only(anything: Any, /) -> Any:
            return anything

        def later(size: int, ctx: Any) -> Any:
            return size, ctx

        assert got(one, context) is context
        assert got(only, context) is context
        assert got(later, context, {"size": 4}) == (4, context)

    def test_asking_by_name_or_annotation(self, context: WarmupContext) -> None:
        def named(size: int = 1, *, jitguard: Any = None) -> Any:
            return size, jitguard

        def optional(context: Any = None) -> Any:
            return context

        def annotated(size: int = 1, c: WarmupContext | None = None) -> Any:
            return size, c

        def second(size: int, context: Any) -> Any:
            return size, context

        assert got(named, context, {"size": 2}) == (2, context)
        assert got(optional, context) is context
        assert got(annotated, context) == (1, context)
        assert got(second, context, {"size": 5}) == (5, context)
        with pytest.raises(WarmupPathError, match="missing a required argument: 'size'"):
            got(second, context)

    def test_annotations_that_are_no_strings(self, context: WarmupContext) -> None:
        def plain(size: int = 1, c: Any = None) -> Any:
            return c

        plain.__annotations__ = {"c": WarmupContext}
        assert got(plain, context) is context
        plain.__annotations__ = {"c": typing.Optional[WarmupContext]}  # noqa: UP045
        assert got(plain, context) is context

    def test_a_configured_argument_is_never_replaced(self, context: WarmupContext) -> None:
        def named(context: str) -> str:
            return context

        assert got(named, context, {"context": "mine"}) == "mine"

    def test_methods_classes_partials_and_builtins(self, context: WarmupContext) -> None:
        seen: list[Any] = []

        class Layer:
            def __init__(self, context: Any) -> None:
                seen.append(context)

            def warm(self, size: int) -> None:
                seen.append(size)

        call_step(Step("here:Layer", Layer), context)
        call_step(Step("here:warm", Layer(1).warm, {"size": 7}), context)
        call_step(Step("here:partial", functools.partial(Layer.warm, Layer(2), 8)), context)
        call_step(Step("here:builtin", dict, {"a": 1}), context)
        assert seen == [context, 1, 7, 2, 8]

    @pytest.mark.parametrize(
        ("kwargs", "lacking"), [({}, "'size'"), ({"size": 1, "depth": 2}, "'depth'"), ({"model": 1, "size": 1}, "")]
    )
    def test_a_signature_that_needs_more_is_named(
        self, context: WarmupContext, kwargs: dict[str, int], lacking: str
    ) -> None:
        calls: list[int] = []

        def warm(model: Any, size: int) -> None:
            calls.append(size)

        step = Step("pkg.mod:Layers.warm", warm, kwargs)
        if not lacking:
            call_step(step, context)
            assert calls == [1]
            return
        with pytest.raises(WarmupPathError) as caught:
            call_step(step, context)
        text = str(caught.value)
        assert text.startswith("warmup 'pkg.mod:Layers.warm': Layers.warm(model: 'Any', size: 'int') -> 'None' cannot")
        assert lacking in text
        assert f"(given: {', '.join(kwargs) or 'none'})" in text
        assert calls == []

    def test_async_callables_run_to_their_end(self, context: WarmupContext) -> None:
        import asyncio

        seen: list[Any] = []

        async def warm(context: Any, size: int) -> None:
            await asyncio.sleep(0)
            seen.append((context, size))

        call_step(Step("here:warm", warm, {"size": 3}), context)
        assert seen == [(context, 3)]

    def test_a_type_error_of_the_body_is_not_taken_for_a_wrong_signature(self, context: WarmupContext) -> None:
        def warm() -> None:
            raise TypeError("from within")

        with pytest.raises(TypeError, match="from within"):
            call_step(Step("here:warm", warm), context)

    def test_generators_would_run_nothing(self, context: WarmupContext) -> None:
        def warm() -> Iterator[int]:
            yield 1

        async def awarm() -> AsyncIterator[int]:
            yield 1

        for call in (warm, awarm):
            with pytest.raises(WarmupPathError, match="generator"):
                call_step(Step("here:warm", call), context)


def test_the_subpackage_imports_neither_pytest_nor_filelock() -> None:
    code = (
        "import sys\n"
        "import pytest_jitguard.warmup.runner, pytest_jitguard.warmup.progress\n"
        "print(sorted({'pytest', '_pytest', 'filelock', 'torch', 'triton'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
