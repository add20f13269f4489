"""Which moments of a run are warmup, which are serving, and whose they are."""

from __future__ import annotations

from tests.conftest import GuardedRun


def test_each_moment_of_a_test_is_warmup_serving_or_teardown(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        fakejit.launch("at_import")

        @pytest.fixture
        def set_up():
            fakejit.launch("in_setup")
            yield
            fakejit.launch("in_teardown")

        @pytest.mark.jitguard
        def test_warm(set_up):
            fakejit.launch("at_import")
            fakejit.launch("in_setup")

        @pytest.mark.jitguard
        def test_cold():
            fakejit.launch("cold")

        @pytest.mark.jitguard
        def test_another_tests_setup_does_not_count():
            fakejit.launch("in_setup")

        @pytest.mark.jitguard
        def test_another_tests_teardown_does_not_count():
            fakejit.launch("in_teardown")

        def test_unmarked():
            fakejit.launch("unmarked")

        def test_unmarked_that_serves(jitguard):
            fakejit.launch("prepared")
            with jitguard.serving("a request"):
                fakejit.launch("prepared")
                fakejit.launch("served")
        """
    )
    result = guarded.run()
    assert result.ret == 1
    assert guarded.verdicts() == {
        "test_warm": "clean",
        "test_cold": "violated",
        "test_another_tests_setup_does_not_count": "violated",
        "test_another_tests_teardown_does_not_count": "violated",
        "test_unmarked": "unguarded",
        "test_unmarked_that_serves": "violated",
    }
    assert [v["kernel"] for v in guarded.violations("test_unmarked_that_serves")] == ["served"]
    assert "while serving a request" in guarded.violations("test_unmarked_that_serves")[0]["message"]
    phases = {(event["kernel"], event["phase"]) for event in guarded.report["events"]}
    assert {
        ("at_import", "collect"),
        ("in_setup", "setup"),
        ("in_teardown", "teardown"),
        ("cold", "serving"),
        ("unmarked", "serving"),
        ("prepared", "setup"),
    } <= phases


def test_guarding_all_guards_unmarked_tests_too(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        def test_unmarked():
            fakejit.launch("unmarked")

        @pytest.mark.allow_jit("unmarked", reason="known to be lazy")
        def test_allowed():
            fakejit.launch("unmarked")
        """
    )
    assert guarded.run("--jitguard-guard=all").ret == 1
    assert guarded.verdicts() == {"test_unmarked": "violated", "test_allowed": "allowed"}


def test_conftest_import_counts_as_warmed(guarded: GuardedRun) -> None:
    guarded.pytester.makeconftest("import fakejit\nfakejit.launch('early')")
    guarded.suite(
        """
        @pytest.mark.jitguard
        def test_early():
            fakejit.launch("early")
        """
    )
    assert guarded.run().ret == 0
    assert guarded.verdicts() == {"test_early": "clean"}


def test_blocks_decide_what_is_judged(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        import threading

        @pytest.mark.jitguard
        def test_warmup_block(jitguard):
            with jitguard.warmup():
                fakejit.launch("k")
            fakejit.launch("k")

        @pytest.mark.jitguard
        def test_warmup_block_warms_its_own_test_only():
            fakejit.launch("k")

        @pytest.mark.jitguard
        def test_serving_inside_warmup(jitguard):
            with jitguard.warmup():
                fakejit.launch("outer")
                with jitguard.serving("inner"):
                    fakejit.launch("inner")

        @pytest.mark.jitguard
        def test_warmup_inside_serving(jitguard):
            with jitguard.serving("outer"):
                with jitguard.warmup():
                    fakejit.launch("inner")
                fakejit.launch("after")

        @pytest.mark.jitguard
        def test_allow(jitguard):
            with jitguard.allow("first request only"):
                fakejit.launch("k")

        @pytest.mark.jitguard
        def test_allow_ends_with_its_block(jitguard):
            with jitguard.allow("first request only"):
                fakejit.launch("k")
            fakejit.launch("l")

        def test_allow_around_serving(jitguard):
            with jitguard.allow("the whole request"):
                with jitguard.serving():
                    fakejit.launch("k")

        @pytest.mark.jitguard
        def test_only_serving_blocks_count_once_there_is_one(jitguard):
            fakejit.launch("before")
            with jitguard.serving():
                pass
            fakejit.launch("after")

        def test_allow_without_serving_does_not_guard(jitguard):
            with jitguard.allow("nothing to see"):
                fakejit.launch("k")
            fakejit.launch("l")

        @pytest.mark.jitguard
        def test_allow_needs_a_reason(jitguard):
            with pytest.raises(ValueError, match="needs a reason"):
                with jitguard.allow(" "):
                    pass

        @pytest.mark.jitguard
        def test_body_that_raises_in_a_block(jitguard):
            with pytest.raises(ZeroDivisionError):
                with jitguard.warmup():
                    1 / 0
            fakejit.launch("after")

        @pytest.mark.jitguard(mode="record")
        def test_events(jitguard):
            assert jitguard.enabled and [e.kernel for e in jitguard.events] == []
            fakejit.launch("one")
            fakejit.launch("two")
            assert [e.kernel for e in jitguard.events] == ["one", "two"]
        """
    )
    guarded.run()
    assert guarded.verdicts() == {
        "test_warmup_block": "clean",
        "test_warmup_block_warms_its_own_test_only": "violated",
        "test_serving_inside_warmup": "violated",
        "test_warmup_inside_serving": "violated",
        "test_allow": "allowed",
        "test_allow_ends_with_its_block": "violated",
        "test_allow_around_serving": "allowed",
        "test_only_serving_blocks_count_once_there_is_one": "clean",
        "test_allow_without_serving_does_not_guard": "unguarded",
        "test_allow_needs_a_reason": "clean",
        "test_body_that_raises_in_a_block": "violated",
        "test_events": "violated",
    }
    assert [v["label"] for v in guarded.violations("test_serving_inside_warmup")] == ["inner"]
    assert [v["kernel"] for v in guarded.violations("test_warmup_inside_serving")] == ["after"]
    assert [v["kernel"] for v in guarded.violations("test_allow_ends_with_its_block")] == ["l"]
    test = next(t for t in guarded.report["tests"] if t["nodeid"].endswith("::test_allow"))
    assert [(a["kernel"], a["reason"]) for a in test["allowed"]] == [("k", "first request only")]


def test_blocks_that_a_fixture_opens_hold_for_the_call(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        @pytest.fixture
        def served(jitguard):
            with jitguard.serving("from a fixture"):
                yield

        @pytest.fixture
        def warming(jitguard):
            with jitguard.warmup():
                yield

        @pytest.fixture
        def lenient(jitguard):
            with jitguard.allow("whole test"):
                yield

        def test_served(served):
            fakejit.launch("k")

        def test_served_again_after_a_teardown_that_closed_it(served):
            fakejit.launch("k")

        @pytest.mark.jitguard
        def test_next_test_is_not_in_that_block():
            fakejit.launch("k")

        @pytest.mark.jitguard
        def test_warming(warming, jitguard):
            fakejit.launch("k")
            with jitguard.serving():
                fakejit.launch("k")

        @pytest.mark.jitguard
        def test_lenient(lenient):
            fakejit.launch("k")

        @pytest.mark.jitguard
        def test_after_lenient():
            fakejit.launch("k")
        """
    )
    guarded.run()
    assert guarded.verdicts() == {
        "test_served": "violated",
        "test_served_again_after_a_teardown_that_closed_it": "violated",
        "test_next_test_is_not_in_that_block": "violated",
        "test_warming": "clean",
        "test_lenient": "allowed",
        "test_after_lenient": "violated",
    }
    assert guarded.violations("test_served")[0]["label"] == "from a fixture"
    assert guarded.violations("test_next_test_is_not_in_that_block")[0]["label"] == ""


def test_overlapping_blocks_of_tasks_and_threads_do_not_close_or_excuse_each_other(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        import asyncio, threading

        async def request(jitguard, label, leave, kernel=None):
            with jitguard.serving(label):
                await leave.wait()
                if kernel:
                    fakejit.launch(kernel)

        def test_task_still_serving_when_an_earlier_one_is_done(jitguard):
            async def both():
                first, second = asyncio.Event(), asyncio.Event()
                one = asyncio.create_task(request(jitguard, "one", first))
                two = asyncio.create_task(request(jitguard, "two", second, "late"))
                await asyncio.sleep(0)
                first.set()
                await one
                second.set()
                await two
            asyncio.run(both())

        def test_task_that_allows_does_not_excuse_the_other(jitguard):
            async def lenient(leave):
                with jitguard.allow("mine only"):
                    await leave.wait()
            async def both():
                leave, go = asyncio.Event(), asyncio.Event()
                one = asyncio.create_task(lenient(leave))
                await asyncio.sleep(0)
                go.set()
                await asyncio.create_task(request(jitguard, "strict", go, "k"))
                leave.set()
                await one
            asyncio.run(both())

        def test_task_that_warms_up_later_does_not_excuse_the_one_being_served(jitguard):
            async def both():
                inside, leave, go = asyncio.Event(), asyncio.Event(), asyncio.Event()
                async def lenient():
                    with jitguard.warmup():
                        go.set()
                        await leave.wait()
                one = asyncio.create_task(request(jitguard, "strict", go, "k"))
                await asyncio.sleep(0)
                two = asyncio.create_task(lenient())
                await one
                leave.set()
                await two
            asyncio.run(both())

        @pytest.fixture
        def thread_that_warms_up(jitguard):
            inside, leave = threading.Event(), threading.Event()
            def hold():
                with jitguard.warmup():
                    inside.set()
                    leave.wait()
            thread = threading.Thread(target=hold)
            thread.start()
            inside.wait()
            yield
            leave.set()
            thread.join()

        @pytest.mark.jitguard
        def test_thread_that_setup_left_warming_up_does_not_excuse_the_call(thread_that_warms_up):
            fakejit.launch("k")

        def test_thread_still_serving_when_an_earlier_one_is_done(jitguard):
            inside, leave = threading.Barrier(3), [threading.Event(), threading.Event()]
            def serve(number):
                with jitguard.serving(str(number)):
                    inside.wait()
                    leave[number].wait()
                    if number:
                        fakejit.launch("late")
            threads = [threading.Thread(target=serve, args=(n,)) for n in (0, 1)]
            [thread.start() for thread in threads]
            inside.wait()
            for thread, event in zip(threads, leave):
                event.set()
                thread.join()

        @pytest.mark.jitguard
        def test_block_left_open_by_a_thread(jitguard):
            global release
            release = threading.Event()
            def hold():
                with jitguard.allow("forever"):
                    inside.set()
                    release.wait()
            inside = threading.Event()
            threading.Thread(target=hold, daemon=True).start()
            inside.wait()

        @pytest.mark.jitguard
        def test_next_test_is_not_excused_by_it():
            fakejit.launch("k")
            release.set()
        """
    )
    guarded.run()
    verdicts = guarded.verdicts()
    assert verdicts.pop("test_block_left_open_by_a_thread") == "clean"
    assert set(verdicts.values()) == {"violated"}, verdicts


def test_fixture_does_nothing_while_the_guard_is_off(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        @pytest.mark.jitguard(warmup="nowhere:nothing", monitors="nobody", whatever=1)
        @pytest.mark.allow_jit
        def test_off(jitguard):
            assert not jitguard.enabled
            with jitguard.warmup(), jitguard.serving(label="x"), jitguard.allow(reason="y"):
                fakejit.launch("k")
            assert list(jitguard.events) == []
        """
    )
    assert guarded.run("--strict-markers", on=False).ret == 0
    assert guarded.run("--no-jitguard").ret == 0
    assert not (guarded.path / "report.json").exists()
