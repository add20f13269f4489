"""Fixtures of wider scope: a phase of their own, and warmed for exactly the tests that use them, in any order."""

from __future__ import annotations

import pytest

from tests.conftest import GuardedRun

ENGINES = """
@pytest.fixture(scope="session")
def engine():
    fakejit.launch("engine")

@pytest.fixture(scope="module")
def module_engine():
    fakejit.launch("module_engine")

@pytest.fixture(scope="module", autouse=True)
def always():
    fakejit.launch("always")

@pytest.fixture(scope="module")
def outer(engine):
    fakejit.launch("outer")

@pytest.fixture(scope="module")
def dynamic_outer(request):
    request.getfixturevalue("module_engine")
    fakejit.launch("dynamic_outer")

@pytest.fixture(scope="module", params=["fp16", "bf16"])
def dtype(request):
    fakejit.launch("weights", dtype=request.param)
    return request.param

@pytest.fixture(scope="module")
def layer(dtype):
    fakejit.launch("layer", dtype=dtype)

@pytest.fixture(scope="module")
def greedy():
    fakejit.launch("own")

"""

USERS = {
    "test_uses_it": ("engine", 'fakejit.launch("engine")', "clean"),
    "test_does_not_use_it": ("", 'fakejit.launch("engine")', "violated"),
    "test_autouse": ("", 'fakejit.launch("always")', "clean"),
    "test_through_another": ("outer", 'fakejit.launch("engine"); fakejit.launch("outer")', "clean"),
    "test_through_a_dynamic_one": ("dynamic_outer", 'fakejit.launch("module_engine")', "clean"),
    "test_module_engine": ("module_engine", 'fakejit.launch("module_engine")', "clean"),
    "test_in_the_call": ("request", 'request.getfixturevalue("engine"); fakejit.launch("engine")', "clean"),
    "test_too_late": ("request", 'fakejit.launch("engine"); request.getfixturevalue("engine")', "violated"),
    "test_own_compile_first": ("request", 'fakejit.launch("own"); request.getfixturevalue("greedy")', "violated"),
    "test_greedy": ("greedy", 'fakejit.launch("own")', "clean"),
    "test_layer": ("layer, dtype", 'fakejit.launch("layer", dtype=dtype)', "clean"),
    "test_other_layer": ("layer, dtype", 'fakejit.launch("layer", dtype="bf16")', "violated"),
    "test_other_weights": ("layer, dtype", 'fakejit.launch("weights", dtype="fp16")', "violated"),
}


def _module(names: list[str]) -> str:
    tests = (f"@pytest.mark.jitguard\ndef {name}({USERS[name][0]}):\n    {USERS[name][1]}\n" for name in names)
    return ENGINES + "\n".join(tests)


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_verdicts_follow_use_and_not_order(guarded: GuardedRun, backwards: bool) -> None:
    guarded.suite(_module(sorted(USERS, reverse=backwards)))
    guarded.run()
    verdicts = guarded.verdicts()
    assert verdicts.pop("test_other_layer[bf16]") == verdicts.pop("test_other_weights[fp16]") == "clean"
    assert {name.partition("[")[0]: verdict for name, verdict in verdicts.items()} == {
        name: verdict for name, (_, _, verdict) in USERS.items()
    }
    assert guarded.report["order_dependent"] is False


def test_a_wide_fixtures_compile_is_its_own_phase(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        @pytest.fixture(scope="class")
        def engine():
            fakejit.launch("engine")
            yield
            fakejit.launch("shutdown")

        class TestEngine:
            @classmethod
            def setup_class(cls):
                fakejit.launch("xunit")

            @pytest.mark.jitguard
            def test_first(self, request):
                request.getfixturevalue("engine")
                fakejit.launch("xunit")

            @pytest.mark.jitguard
            def test_second(self, engine):
                fakejit.launch("engine")
        """
    )
    assert guarded.run().ret == 0
    events = {event["kernel"]: event for event in guarded.report["events"]}
    assert {name: event["phase"] for name, event in events.items()} == {
        "engine": "fixture",
        "xunit": "fixture",
        "shutdown": "teardown",
    }
    assert guarded.verdicts() == {"test_first": "clean", "test_second": "clean"}


def test_fixtures_of_one_name_in_two_modules_are_two(guarded: GuardedRun) -> None:
    for name, kernel in (("test_one", "one"), ("test_two", "two")):
        guarded.suite(
            f"""
            @pytest.fixture(scope="module")
            def engine():
                fakejit.launch("{kernel}")

            @pytest.mark.jitguard
            def {name}(engine):
                fakejit.launch("{kernel}")

            @pytest.mark.jitguard
            def {name}_takes_the_others(engine):
                fakejit.launch("one")
                fakejit.launch("two")
            """,
            name,
        )
    guarded.run()
    assert guarded.verdicts() == {
        "test_one": "clean",
        "test_two": "clean",
        "test_one_takes_the_others": "violated",
        "test_two_takes_the_others": "violated",
    }


def test_a_wide_fixture_that_fails_keeps_its_error_and_its_tests_are_errors(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        @pytest.fixture(scope="module")
        def engine():
            fakejit.launch("engine", fail=True)

        @pytest.mark.jitguard
        def test_first(engine):
            pass

        @pytest.mark.jitguard
        def test_second(engine):
            pass

        @pytest.mark.jitguard
        def test_without():
            pass
        """
    )
    result = guarded.run()
    result.assert_outcomes(errors=2, passed=1)
    result.stdout.fnmatch_lines(["*CompileError: engine"])
    assert guarded.verdicts() == {"test_first": "error", "test_second": "error", "test_without": "clean"}


@pytest.mark.parametrize("first", ["a", "b"])
def test_what_a_fixture_warms_counts_for_that_set_up_of_it_only(guarded: GuardedRun, first: str) -> None:
    guarded.pytester.makeconftest(
        """
        import fakejit, pytest

        @pytest.fixture(scope="class")
        def warm(request):
            for n in request.cls.WARMED:
                fakejit.launch("k", n=n)

        @pytest.fixture(scope="module")
        def engine(request):
            for n in request.param:
                fakejit.launch("e", n=n)
        """
    )
    bodies = {
        "a": ("[16, 32]", "(16, 32)"),
        "b": ("[16]", "(16,)"),
    }
    for name, (warmed, engine) in bodies.items():
        guarded.suite(
            f"""
            @pytest.mark.jitguard
            @pytest.mark.usefixtures("warm")
            class Test{name.upper()}:
                WARMED = {warmed}
                def test_class_{name}(self):
                    fakejit.launch("k", n=32)

            @pytest.mark.jitguard
            @pytest.mark.parametrize("engine", [{engine}], indirect=True)
            def test_parameter_{name}(engine):
                fakejit.launch("e", n=32)
            """,
            f"test_{name}.py",
        )
    second = "b" if first == "a" else "a"
    guarded.run(f"test_{first}.py", f"test_{second}.py")
    verdicts = {name.partition("[")[0]: verdict for name, verdict in guarded.verdicts().items()}
    assert verdicts == {
        "test_class_a": "clean",
        "test_parameter_a": "clean",
        "test_class_b": "violated",
        "test_parameter_b": "violated",
    }
