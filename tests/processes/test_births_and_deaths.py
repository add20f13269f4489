"""However a child is born and however it dies: what its journal holds, and that the census is complete."""

from __future__ import annotations

import os
import signal

import pytest

from tests.processes.conftest import GUARD, PROGRAMS, Run, events, kinds, role

BIRTHS = {
    # how: (Python processes in all, images in all, role of the child)
    "fork": (2, 2, "ForkProcess-1"),
    "spawn": (3, 3, "SpawnProcess-1"),  # and the resource tracker
    "forkserver": (4, 4, "ForkServerProcess-1"),  # and the resource tracker, and the server
    "subprocess": (2, 2, "child"),
    "subprocess -I": (2, 2, "child"),
    "other PYTHONPATH": (2, 2, "child"),
    "os.fork": (2, 2, "child"),
    "os.execv": (2, 3, "child"),  # the fork is an image of its own, until it executes
    "double fork": (3, 3, "child"),
}
DEATHS = {
    # how: (compiles, whether the child says goodbye)
    "clean": ({"first": "ok"}, True),
    "exception": ({"first": "ok"}, True),
    "os._exit": ({"first": "ok"}, False),
    "killed in a compile": ({"first": "ok", "cut_short": "running"}, False),
    "parent killed": ({"first": "ok", "after_parent": "ok"}, True),
}


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("birth", BIRTHS)
def test_a_child_reports_from_birth_to_death(birth: str, death: str, run: Run) -> None:
    processes, images, called = BIRTHS[birth]
    compiles, orderly = DEATHS[death]
    run(str(PROGRAMS / "births.py"), birth, death, code=-signal.SIGKILL if death == "parent killed" else 0)
    texts = run.journals
    (child,) = run.of("first")
    assert (len(texts), run.census.python, run.census.silent) == (images, processes, ())
    assert (events(child), child.ended) == (compiles, orderly)
    assert role(child) == called
    assert {text.hello["guard"] for text in texts} == {GUARD}
    assert run.records("trouble") == []
    starter = texts[0]
    assert starter.ended == (death != "parent killed")
    left = [text for text in texts if text not in (starter, child) and not text.ended]
    # The one between in a double fork ends by os._exit.
    assert len(left) == (birth == "double fork")


def test_an_executed_image_is_the_same_process(run: Run) -> None:
    run(str(PROGRAMS / "births.py"), "os.execv", "clean")
    starter, fork, child = run.journals
    same = ("host", "pid", "start")
    assert [fork.hello[name] for name in same] == [child.hello[name] for name in same]
    assert fork.hello["image"] != child.hello["image"]
    assert fork.ended, "a process that becomes another program has come to an orderly end"
    assert starter.hello["pid"] == fork.hello["ppid"]


def test_a_program_that_cannot_be_executed_leaves_the_process_as_it_was(run: Run) -> None:
    program = """
import fakejit, os
try: os.execv("/etc/hostname", ["x"])
except OSError: pass
try: os.execv("/tmp", ["x"])
except OSError: pass
try: os.execvp("no such program", ["x"])
except OSError: pass
fakejit.launch("k", n=1)
"""
    run("-c", program)
    (child,) = run.journals
    assert events(child) == {"k": "ok"}
    assert kinds(child)[-1] == "bye"


# -- what cannot report: the census names it ---------------------------------------------------------------------------

QUIET = {
    "-S": "subprocess.run([sys.executable, '-S', '-c', 'pass'])",
    "no environment": "subprocess.run([sys.executable, '-c', 'pass'], env={})",
    "death before hello": (
        "subprocess.run([sys.executable, '-c', 'pass'], preexec_fn=lambda: os.kill(os.getpid(), 9))"
    ),
    "posix_spawn": "os.waitpid(os.posix_spawn(sys.executable, [sys.executable, '-S', '-c', 'pass'], {}), 0)",
}


@pytest.mark.parametrize("how", QUIET)
def test_the_census_names_who_could_not_report(how: str, run: Run) -> None:
    run("-c", f"import os, subprocess, sys; {QUIET[how]}; subprocess.run([sys.executable, '-c', 'pass'])")
    (silent,) = run.census.silent
    assert len(run.journals) == 2
    assert silent.argv[-2:] == ("-c", "pass")
    assert run.census.sentence.startswith(f"1 of 3 Python processes did not report: {silent.argv[0]}")
    assert run.census.sentence.endswith(f"-c pass (pid {silent.pid})")


def test_the_census_names_a_child_of_another_user(run: Run) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to start a process as another user")
    program = "import subprocess, sys; subprocess.run(['/usr/bin/python3', '-c', 'pass'], user=65534)"
    done = run("-c", program, code=None)
    if done.returncode:
        pytest.skip(f"another user cannot run Python here: {done.stderr[-200:]}")
    (silent,) = run.census.silent
    assert silent.argv == ("/usr/bin/python3", "-c", "pass")
