"""Items of other kinds, other ways to import them, and a guarded pytest inside a guarded pytest."""

from __future__ import annotations

from tests.conftest import GuardedRun


def test_doctests_and_tests_in_classes(guarded: GuardedRun) -> None:
    guarded.pytester.maketxtfile(
        test_text="""
        >>> import fakejit
        >>> _ = fakejit.launch("k")
        """
    )
    guarded.suite(
        '''
        def documented():
            """
            >>> import fakejit
            >>> _ = fakejit.launch("k")
            """

        def clean():
            """
            >>> 1 + 1
            2
            """

        class TestClass:
            def setup_method(self): fakejit.launch("own")
            def test_warm(self): fakejit.launch("own")

        class TestOuter:
            class TestInner:
                def test_cold(self): fakejit.launch("k")
        '''
    )
    guarded.run("--doctest-modules", "--jitguard-guard=all")
    assert guarded.verdicts() == {
        "test_text.txt": "violated",
        "test_suite.documented": "violated",
        "test_suite.clean": "clean",
        "test_cold": "violated",
        "test_warm": "clean",
    }


def test_import_mode_importlib_and_fixtures_that_only_a_conftest_has(guarded: GuardedRun) -> None:
    guarded.pytester.mkpydir("pkg")
    (guarded.path / "pkg" / "conftest.py").write_text(
        "import pytest, fakejit\n"
        "@pytest.fixture(scope='package')\ndef engine(): fakejit.launch('engine')\n"
        "@pytest.fixture\ndef served(jitguard, engine):\n    with jitguard.serving(): yield\n"
    )
    (guarded.path / "pkg" / "test_one.py").write_text(
        "import fakejit\ndef test_warm(served): fakejit.launch('engine')\ndef test_cold(served): fakejit.launch('k')\n"
    )
    guarded.suite("@pytest.mark.jitguard\ndef test_outside(): fakejit.launch('engine')")
    guarded.run("--import-mode=importlib")
    assert guarded.verdicts() == {"test_warm": "clean", "test_cold": "violated", "test_outside": "violated"}
    assert guarded.violations("test_cold")[0]["called_from"] == "pkg/test_one.py:3:test_cold"


def test_a_guarded_run_inside_a_guarded_test(guarded: GuardedRun) -> None:
    guarded.suite(
        '''
        pytest_plugins = ["pytester"]
        fakejit.launch("warm")
        guard = pytest.mark.jitguard

        INNER = """
        import fakejit, pytest
        @pytest.mark.jitguard
        def test_inner_warm(): fakejit.launch("warm")
        @pytest.mark.jitguard
        def test_inner_cold(): fakejit.launch({kernel!r})
        """

        def run(pytester, kernel):
            hook = fakejit._build
            pytester.makepyfile(INNER.format(kernel=kernel))
            args = ["-p", "pytest_jitguard.plugin", "--jitguard", "--jitguard-monitors=fakejit_monitor:FakeMonitor"]
            pytester.inline_run("-p", "no:terminal", *args).assertoutcome(passed=1, failed=1)
            assert fakejit._build is hook

        @guard
        def test_compile_inside_is_seen_outside(pytester):
            run(pytester, "k")

        @guard
        def test_allowed_outside(pytester, jitguard):
            with jitguard.allow("the inner run is meant to compile"):
                run(pytester, "l")

        @guard
        def test_guard_still_works():
            fakejit.launch("warm")
            fakejit.launch("m")
        '''
    )
    guarded.run()
    assert guarded.verdicts() == {
        "test_compile_inside_is_seen_outside": "violated",
        "test_allowed_outside": "allowed",
        "test_guard_still_works": "violated",
    }
    assert [v["kernel"] for v in guarded.violations("test_guard_still_works")] == ["m"]
    assert guarded.report["findings"] == []
