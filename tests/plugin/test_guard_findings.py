"""What makes a whole session's green worth nothing, and how each of it is lifted; and known debt."""

from __future__ import annotations

import json

import pytest

from tests.conftest import GuardedRun

HIDDEN = """
@pytest.mark.jitguard
def test_before(): pass

@pytest.mark.jitguard
def test_hides():
    fakejit.hide_hook()

@pytest.mark.jitguard
def test_after():
    fakejit.launch("unseen")
"""
SNEAKED = """
@pytest.mark.jitguard
def test_sneaks():
    fakejit.sneak_in("unseen")
"""
CASES = {
    "unmarked tests": ("nothing-guarded", "def test_unmarked(): pass", []),
    "skipped tests": ("nothing-guarded", "@pytest.mark.jitguard\n@pytest.mark.skip\ndef test_skipped(): pass", []),
    "empty warmup": ("warmup-empty", "@pytest.mark.jitguard\ndef test_it(): pass", ["--jitguard-warmup=warm:empty"]),
    "hook replaced": ("blind:fakejit", HIDDEN, []),
    "resident without event": ("blind:fakejit", SNEAKED, []),
    "monitor that fails": (
        "blind:broken",
        "@pytest.mark.jitguard\ndef test_it(): pass",
        ["--jitguard-monitors=broken_monitor:Broken"],
    ),
    "monitor that cannot tell what is resident": (
        "blind:puzzled",
        "@pytest.mark.jitguard\ndef test_it(): pass",
        ["--jitguard-monitors=broken_monitor:Puzzled"],
    ),
}


@pytest.fixture
def watched(guarded: GuardedRun) -> GuardedRun:
    guarded.pytester.makepyfile(
        warm="def empty(): pass",
        broken_monitor="""
        import fakejit_monitor

        class Broken(fakejit_monitor.FakeMonitor):
            name = "broken"
            def install(self, module): raise AttributeError("no hook point in this version")

        class Puzzled(fakejit_monitor.FakeMonitor):
            name = "puzzled"
            def resident(self): raise KeyError("a cache of another shape")
        """,
    )
    return guarded


@pytest.mark.parametrize("case", CASES)
def test_a_finding_fails_the_session_unless_waived_by_name(watched: GuardedRun, case: str) -> None:
    name, body, args = CASES[case]
    watched.suite(body)
    result = watched.run(*args)
    assert result.ret == 1
    assert not {"failed", "errors"} & set(result.parseoutcomes())
    assert [f["name"] for f in watched.report["findings"] if not f["waived"]] == [name]
    assert watched.report["verdict"] == "failed"
    assert watched.report["reasons"][0].startswith(f"{name}: ")
    section = result.stdout.str().partition("= jitguard =")[2].splitlines()
    assert name in section[1]
    waived = watched.run(*args, f"--jitguard-waive={name}")
    assert waived.ret == 0
    assert [f["name"] for f in watched.report["findings"] if f["waived"]] == [name]
    assert watched.run(*args, "--jitguard-waive=paid-debt").ret == 1


def test_nothing_watched_where_the_library_is_never_imported(guarded: GuardedRun) -> None:
    guarded.pytester.makepyfile("import pytest\n@pytest.mark.jitguard\ndef test_it(): pass")
    guarded.pytester.makepyfile(
        lazy_monitor="""
        from pytest_jitguard.monitors import Monitor
        class Lazy(Monitor):
            name = target = "a_jit_that_nobody_imports"
        """
    )
    args = ("--jitguard-monitors=lazy_monitor:Lazy",)
    assert guarded.run(*args, fake=False).ret == 1
    assert [f["name"] for f in guarded.report["findings"]] == ["nothing-watched"]
    assert guarded.run(*args, "--jitguard-waive=nothing-watched", fake=False).ret == 0


def test_a_chained_hook_is_not_blind(guarded: GuardedRun) -> None:
    guarded.suite(
        """
        @pytest.mark.jitguard
        def test_chains(): fakejit.chain_hook()

        @pytest.mark.jitguard
        def test_still_seen(): fakejit.launch("k")
        """
    )
    guarded.run()
    assert guarded.verdicts() == {"test_chains": "clean", "test_still_seen": "violated"}
    assert guarded.report["findings"] == []


def test_a_failed_warmup_cannot_be_waived(guarded: GuardedRun) -> None:
    guarded.suite("@pytest.mark.jitguard\ndef test_it(): pass")
    assert guarded.run("--jitguard-warmup=fakejit:gate", "--jitguard-waive=warmup-failed").ret == 4


def test_a_stopped_run_is_not_accused_of_what_it_did_not_come_to(guarded: GuardedRun) -> None:
    guarded.suite("def test_stops(): pytest.exit('enough', returncode=0)")
    guarded.run()
    assert guarded.report["verdict"] == "interrupted"
    assert guarded.report["findings"] == []


DEBT = """
@pytest.mark.jitguard
def test_old(): fakejit.launch("old", n=1)

@pytest.mark.jitguard
def test_older(): fakejit.launch("older")
"""


def test_known_debt_passes_new_debt_fails_and_paid_debt_must_be_struck(guarded: GuardedRun) -> None:
    baseline = "--jitguard-baseline=debt.json"
    guarded.suite(DEBT)
    assert guarded.run(baseline).ret == 4
    assert guarded.run(baseline, "--jitguard-update-baseline").ret == 0
    assert [e["kernel"] for e in json.loads((guarded.path / "debt.json").read_text())["debt"]] == [
        "fakejit.old",
        "fakejit.older",
    ]
    assert guarded.run(baseline).ret == 0
    assert guarded.verdicts() == {"test_old": "known", "test_older": "known"}
    assert [d["kernel"] for d in guarded.report["debt"]["known"]] == ["fakejit.old", "fakejit.older"]

    guarded.suite(DEBT + '\n@pytest.mark.jitguard\ndef test_new(): fakejit.launch("new")\n')
    assert guarded.run(baseline).ret == 1
    assert guarded.verdicts() == {"test_old": "known", "test_older": "known", "test_new": "violated"}

    guarded.suite('fakejit.launch("older")\n' + DEBT)
    result = guarded.run(baseline)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*paid-debt*fakejit.older*"])
    assert guarded.run(baseline, "--jitguard-waive=paid-debt").ret == 0
    assert guarded.run(baseline, "test_suite.py::test_old").ret == 0
    assert guarded.run(baseline, "-k", "not older").ret == 0
    assert guarded.run(baseline, "--jitguard-update-baseline").ret == 0
    assert guarded.run(baseline).ret == 0


def test_mode_raise_lets_known_debt_pass(guarded: GuardedRun) -> None:
    guarded.suite(DEBT)
    guarded.run("--jitguard-baseline=debt.json", "--jitguard-update-baseline", "--jitguard-mode=raise")
    assert guarded.run("--jitguard-baseline=debt.json", "--jitguard-mode=raise").ret == 0
