"""Children started against children heard: who counts, who is silent, and how that reads."""

from __future__ import annotations

from typing import Any

from pytest_jitguard.core.census import Census, conclude


def child(pid: int, started: float, *argv: str, host: str = "h", **more: Any) -> dict[str, Any]:
    told = {"host": host, "pid": pid, "how": "subprocess", "argv": list(argv), "python": True, "started": started}
    return {**told, **more}


def hello(pid: int, monotonic: float, *, start: int = 1, image: str = "c", host: str = "h") -> dict[str, Any]:
    return {"host": host, "pid": pid, "start": start, "monotonic": monotonic, "image": image, "guard": "g"}


def numbers(census: Census) -> tuple[int, int, list[int]]:
    return census.python, census.reported, [one.pid for one in census.silent]


def test_who_did_not_report_is_named_with_its_command() -> None:
    children = [child(pid, 10.0, "python", "worker.py") for pid in range(2, 10)]
    silent = child(4711, 10.0, "python", "-S", "a worker.py")
    census = conclude([*children, silent], [hello(pid, 10.1) for pid in range(2, 10)])
    assert numbers(census) == (9, 8, [4711])
    assert census.sentence == "1 of 9 Python processes did not report: python -S 'a worker.py' (pid 4711)"


def test_nothing_is_said_when_all_reported_or_nothing_was_started() -> None:
    assert conclude([child(2, 1.0, "python")], [hello(2, 1.1)]).sentence == ""
    assert conclude([], []) == Census(0, ())


def test_one_that_is_not_heard_at_all() -> None:
    assert conclude([child(2, 1.0, "python")], []).sentence == "1 of 1 Python process did not report: python (pid 2)"


def test_other_programs_do_not_count_and_who_cannot_be_told_counts_if_it_reports() -> None:
    children = [child(2, 1.0, "ls", python=False), child(3, 1.0, "sh", python=None), child(4, 1.0, "sh", python=None)]
    assert numbers(conclude(children, [hello(4, 1.5)])) == (1, 1, [])


def test_a_pid_that_is_used_again_is_another_process() -> None:
    first, second = child(2, 10.0, "python", "a"), child(2, 100.0, "python", "b")
    assert numbers(conclude([first, second], [hello(2, 10.2)])) == (2, 1, [2])
    assert conclude([first, second], [hello(2, 10.2)]).silent[0].argv == ("python", "b")
    assert conclude([first, second], [hello(2, 100.2)]).silent[0].argv == ("python", "a")
    assert numbers(conclude([second, first], [hello(2, 100.2, start=9), hello(2, 10.2)])) == (2, 2, [])


def test_a_hello_may_lie_a_moment_before_the_start_it_answers_but_not_long_before() -> None:
    assert numbers(conclude([child(2, 10.0, "python")], [hello(2, 9.5)])) == (1, 1, [])
    assert numbers(conclude([child(2, 10.0, "python")], [hello(2, 5.0)])) == (2, 1, [2])


def test_an_image_after_exec_is_the_same_process() -> None:
    images = [hello(2, 10.1, image="a"), hello(2, 60.0, image="b")]
    assert numbers(conclude([child(2, 10.0, "python")], images)) == (1, 1, [])
    assert numbers(conclude([], images)) == (1, 1, [])


def test_two_who_tell_of_one_start_tell_of_one_process() -> None:
    asked, forked = child(2, 10.0, "multiprocessing", "P-1"), child(2, 10.3, "python", how="fork")
    assert numbers(conclude([asked, forked], [])) == (1, 0, [2])
    shell, scanned = child(3, 10.0, "sh", python=None), child(3, 10.01, "python", how="scan")
    assert conclude([shell, scanned], []).silent[0].argv == ("python",)


def test_hosts_are_told_apart() -> None:
    children = [child(2, 10.0, "python", host="a"), child(2, 10.0, "python", host="b")]
    assert [one.host for one in conclude(children, [hello(2, 10.1, host="a")]).silent] == ["b"]


def test_the_guard_itself_is_no_child_unless_somebody_started_it() -> None:
    guard = {**hello(1, 1.0), "image": "g"}
    assert conclude([], [guard]) == Census(0, ())
    assert numbers(conclude([child(1, 0.9, "python")], [guard])) == (1, 1, [])
