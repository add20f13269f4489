"""Bad input: each with a message that names the setting, the value and what is accepted, and no test run by half."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_jitguard.core.settings import SETTINGS, Setting
from pytest_jitguard.options import read_settings
from tests.conftest import GuardedRun

# -- values ------------------------------------------------------------------------------------------------------------

REFUSED = {
    "enabled": "maybe",
    "guard": "some",
    "mode": "strict",
    "fail_on": "compile,compiel",
    "monitors": " , ",
    "witness": "nsight",
    "deny": "deep-gemm",
    "warmup": "a.b.c",
    "warmup_timeout": "0",
    "cache": "warm",
    "offline": "  ",
    "offline_tensors": "gpu",
    "children": "some",
    "forget": "2",
    "waive": "nothing",
    "baseline": " ",
    "update_baseline": "x",
    "json": " ",
    "markdown": " ",
    "journal": " ",
}
CULPRIT = {"fail_on": "compiel", "monitors": ""}


CASES = [
    pytest.param(setting, source, id=f"{setting.name}-{source}")
    for setting in SETTINGS
    for source in ("option", "environment", "ini")
    # A flag takes no value on the command line, and an ini file cannot say blanks.
    if not (source == "option" and setting.form == "flag")
    and not (source == "ini" and not REFUSED[setting.name].strip(" ,"))
]


@pytest.mark.parametrize(("setting", "source"), CASES)
def test_a_refused_value_is_named_with_its_setting_and_what_is_accepted(
    setting: Setting, source: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    value, args = REFUSED[setting.name], []
    if source == "environment":
        monkeypatch.setenv(setting.variable, value)
    elif source == "ini":
        pytester.makeini(f"[pytest]\n{setting.key} = {value}\n")
    else:
        args = [f"{setting.option}={value}"]
    name = {"option": setting.option, "environment": setting.variable, "ini": setting.key}[source]
    with pytest.raises(pytest.UsageError) as caught:
        read_settings(pytester.parseconfig("-p", "pytest_jitguard.plugin", *args))
    message = str(caught.value)
    assert message.startswith("jitguard: ")
    assert name in message
    assert CULPRIT.get(setting.name, value) in message
    assert f"expected {setting.expects()}" in message


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon", "1e999"])
def test_a_limit_must_be_a_number_of_seconds(
    seconds: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    with pytest.raises(pytest.UsageError, match=f"--jitguard-warmup-timeout: '{seconds}'"):
        read_settings(pytester.parseconfig("-p", "pytest_jitguard.plugin", f"--jitguard-warmup-timeout={seconds}"))


XDIST_ARGS = ("-p", "xdist", "-n", "2")
XDIST = pytest.param(XDIST_ARGS, id="xdist")
PLAIN = pytest.param((), id="plain")
both = pytest.mark.parametrize("extra", [PLAIN, XDIST])


def refused(guarded: GuardedRun, *args: str, parts: tuple[str, ...], **kwargs: Any) -> pytest.RunResult:
    """Run pytest, which must refuse with exit code 4, saying it once; return the result."""
    result = guarded.run(*args, **kwargs)
    assert result.ret == pytest.ExitCode.USAGE_ERROR, result.stdout.str() + result.stderr.str()
    shown = result.stdout.str() + result.stderr.str()
    assert shown.count("ERROR: jitguard:") == 1
    for part in parts:
        assert shown.count(part) == 1, part
    assert "INTERNALERROR" not in shown
    assert "Traceback" not in shown
    return result


def ran(guarded: GuardedRun) -> bool:
    """Tell whether the suite's tests ran."""
    return (guarded.path / "ran").exists()


SUITE = """
    from pathlib import Path

    @pytest.mark.jitguard
    def test_a(): Path("ran").touch()
"""


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (("--jitguard-mode=strict",), ("--jitguard-mode: 'strict'", "fail, warn, record, raise")),
        (("--jitguard-monitors=trition",), ("--jitguard-monitors: unknown monitor 'trition'", "auto, triton")),
        (("--jitguard-monitors=no_such.module:Class",), ("--jitguard-monitors: ", "'no_such.module:Class' cannot be")),
        (("--jitguard-monitors=fakejit:launch",), ("--jitguard-monitors: ", "not a subclass of")),
        (("--jitguard-monitors=fakejit:nothing",), ("--jitguard-monitors: ", "cannot be imported", "no attribute")),
        (("--jitguard-offline=h1000",), ("--jitguard-offline: ", "'h1000'", "h100,", "cuda:90 or hip:gfx942")),
        (("--jitguard-warmup=no_colon",), ("--jitguard-warmup: 'no_colon'", "package.module:callable")),
        (("--jitguard-baseline=none.json",), ("--jitguard-baseline: ", "none.json does not exist", "create it with")),
        (("--jitguard-update-baseline",), ("--jitguard-update-baseline: needs --jitguard-baseline=FILE",)),
    ],
)
def test_a_wrong_setting_ends_the_run_before_any_test(
    args: tuple[str, ...], parts: tuple[str, ...], guarded: GuardedRun
) -> None:
    guarded.suite(SUITE)
    # The controller of xdist finds the one as pytest itself finds the other.
    extra = ["-p", "xdist", "-n", "2"] if len(parts) == 1 else []
    refused(guarded, *args, *extra, parts=parts, fake=False)
    assert not ran(guarded)


def test_a_wrong_setting_shows_also_where_only_collection_was_asked_for(guarded: GuardedRun) -> None:
    guarded.suite(SUITE)
    refused(guarded, "--jitguard-cache=warm", "--collect-only", parts=("--jitguard-cache: 'warm'",))


def test_help_is_given_whatever_is_set(guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITGUARD_CACHE", "warm")
    assert guarded.run("--help").ret == 0
    assert guarded.run("--version").ret == 0


def test_a_wrong_value_is_no_matter_while_the_guard_is_off(
    guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JITGUARD_CACHE", "warm")
    guarded.suite(SUITE)
    guarded.run(on=False).assert_outcomes(passed=1)


# -- structured configuration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("allow = [", ("jitguard.toml: is not valid TOML",)),
        ("\xff", ("jitguard.toml: is not valid TOML",)),
        ("mode = 'warn'", ("unknown key 'mode'", "expected allow, budgets, gpus, warmup", "jitguard_...")),
        ("allow = 'x'", ("allow must be a list of tables [[allow]], not 'x'",)),
        ("[[allow]]\npattern = 'x'", ("[[allow]] needs exactly the texts pattern and reason", "'x'")),
        ("[[allow]]\npattern = 'x'\nreason = ''", ("[[allow]] needs exactly the texts pattern and reason",)),
        ("[[warmup]]\ncall = 3", ("[[warmup]] takes call = 'package.module:callable' and kwargs", "{'call': 3}")),
        ("[[warmup]]\ncall = 'a.b'", ("[[warmup]] call: 'a.b' is not accepted; expected package.module:callable",)),
        ("[[warmup]]\ncall = 'a:b'\nkwarg = {}", ("[[warmup]] takes call", "'kwarg'")),
        ("budgets = 1", ("budgets must be a table of seconds, such as nccl_watchdog = 600, not 1",)),
        ("[budgets]\nprobe = 0", ("budgets.probe must be a number of seconds above 0, not 0",)),
        ("[budgets]\nprobe = true", ("budgets.probe must be a number of seconds above 0, not True",)),
        ("gpus = 1", ("gpus must be tables [gpus.NAME], not 1",)),
    ],
)
def test_a_wrong_jitguard_toml_is_a_usage_error(text: str, parts: tuple[str, ...], guarded: GuardedRun) -> None:
    (guarded.path / "jitguard.toml").write_bytes(text.encode("latin-1"))
    guarded.suite(SUITE)
    refused(guarded, parts=parts)
    assert not ran(guarded)


def test_a_gpu_of_ones_own_is_checked(guarded: GuardedRun) -> None:
    (guarded.path / "jitguard.toml").write_text("[gpus.mine]\nlike = 'h100'\nwheels = 4\n")
    guarded.suite(SUITE)
    pytest.importorskip("triton")
    refused(guarded, "--jitguard-offline=mine", parts=("--jitguard-offline: ", "'mine'", "unknown key 'wheels'"))


def test_structure_in_both_places_is_a_usage_error(guarded: GuardedRun) -> None:
    (guarded.path / "jitguard.toml").write_text("")
    guarded.pytester.makepyprojecttoml("[tool.jitguard]\n")
    guarded.suite(SUITE)
    refused(guarded, parts=("both jitguard.toml and [tool.jitguard] of pyproject.toml exist", "keep one"))


def test_a_pyproject_of_strange_shape_is_no_internal_error(guarded: GuardedRun) -> None:
    guarded.pytester.makepyprojecttoml("[tool]\njitguard = 1\n")
    guarded.suite(SUITE)
    refused(guarded, parts=("[tool.jitguard] must be a table, not 1",))


# -- markers -----------------------------------------------------------------------------------------------------------

BAD_MARKS = """
    from pathlib import Path

    def test_ran(): Path("ran").touch()

    @pytest.mark.jitguard(warmpu="a:b")
    def test_keyword(): pass

    @pytest.mark.jitguard(mode="strict", max_events=-1)
    def test_values(): pass

    @pytest.mark.jitguard("triton")
    def test_positional(): pass

    @pytest.mark.jitguard(warmup="no_colon")
    def test_warmup(): pass

    @pytest.mark.jitguard(fail_on=["compiel"])
    def test_kinds(): pass

    @pytest.mark.allow_jit("*")
    def test_reason(): pass

    @pytest.mark.allow_jit("*", reason="")
    def test_empty_reason(): pass

    @pytest.mark.allow_jit(reason="why")
    def test_pattern(): pass

    @pytest.mark.allow_jit("*", reason="why", because="x")
    def test_allow_keyword(): pass
"""


@both
def test_all_complaints_about_all_markers_come_at_once(extra: tuple[str, ...], guarded: GuardedRun) -> None:
    guarded.suite(BAD_MARKS)
    parts = (
        "test_suite.py::test_keyword: jitguard has no keyword 'warmpu' (did you mean 'warmup'?); known are ",
        "jitguard(mode='strict'): expected fail, warn, record, raise",
        "jitguard(max_events=-1): expected a whole number from 0",
        "test_suite.py::test_positional: jitguard takes keywords only, not 'triton'",
        "jitguard(warmup='no_colon'): expected package.module:callable, a callable, or a list of them",
        "jitguard(fail_on=['compiel']): expected any of compile, cache_load",
        "test_suite.py::test_reason (and 1 more): allow_jit needs a reason",
        "allow_jit needs at least one pattern",
        "allow_jit has no keyword 'because'; known is reason",
    )
    refused(guarded, *extra, parts=parts)
    assert not ran(guarded)
    report = guarded.report
    assert report["verdict"] == "usage-error"
    assert "warmpu" in report["reasons"][0]


def test_markers_are_not_checked_while_the_guard_is_off(guarded: GuardedRun) -> None:
    guarded.suite(BAD_MARKS)
    guarded.run(on=False).assert_outcomes(passed=10)


# -- warmups -----------------------------------------------------------------------------------------------------------

WARMUPS = """
    import fakejit, time

    NUMBER = 3

    def good(): fakejit.launch("warmed")

    def empty(): pass

    def raises(): raise RuntimeError("no weights here")

    def hangs():
        while True: time.sleep(0.01)

    def two(a, b): pass
"""


@pytest.fixture
def warmups(guarded: GuardedRun) -> GuardedRun:
    guarded.pytester.makepyfile(warmups=WARMUPS)
    guarded.pytester.makeini("[pytest]\npythonpath = .\n")
    guarded.suite("""
        from pathlib import Path

        @pytest.mark.jitguard
        def test_guarded(): Path("ran").touch()

        def test_plain(): pass
    """)
    return guarded


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("no_such_module:run", ("there is no module 'no_such_module'", "expected package.module:callable")),
        ("warmups:god", ("warmups has no attribute 'god' (did you mean 'good'?)",)),
        ("warmups:NUMBER", ("warmups.NUMBER is of type int, which is not callable",)),
        ("warmups:two", ("two(a, b) cannot be called",)),
    ],
)
def test_a_warmup_path_that_leads_nowhere_is_a_usage_error(
    path: str, parts: tuple[str, ...], warmups: GuardedRun
) -> None:
    extra = ("-p", "xdist", "-n", "2") if path.endswith(":god") else ()
    named = (f"ERROR: jitguard: warmup '{path}'", "(set by --jitguard-warmup, a [[warmup]] table or")
    refused(warmups, f"--jitguard-warmup={path}", *extra, parts=(*named, *parts))
    assert warmups.report["verdict"] == "usage-error"
    assert not ran(warmups)


@pytest.mark.parametrize(
    ("path", "cause", "extra"),
    [
        ("warmups:raises", "warmup warmups:raises failed after *: RuntimeError: no weights here", XDIST_ARGS),
        ("warmups:hangs", "warmup warmups:hangs was stopped: over its limit of 0.5 s, in hangs (*", ()),
    ],
)
def test_a_failed_warmup_fails_the_session_and_its_guarded_tests_only(
    path: str, cause: str, extra: tuple[str, ...], warmups: GuardedRun
) -> None:
    result = warmups.run(f"--jitguard-warmup={path}", "--jitguard-warmup-timeout=0.5", *extra)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, errors=1)
    assert not ran(warmups)
    result.stdout.fnmatch_lines([f"*jitguard: *warmup*{'was stopped' if 'hangs' in path else 'failed'}*"])
    result.stdout.fnmatch_lines([f"warmup-failed: {cause}"])
    result.stdout.fnmatch_lines([f"*not run: {cause}"])
    assert result.stdout.str().count("\nwarmup-failed:") == 1
    assert warmups.report["verdict"] == "failed"
    assert warmups.report["warmup"]["status"] in ("failed", "timeout")
    assert warmups.verdicts() == {"test_guarded": "error", "test_plain": "unguarded"}


@both
def test_a_warmup_that_did_nothing_fails_the_session_once(extra: tuple[str, ...], warmups: GuardedRun) -> None:
    result = warmups.run("--jitguard-warmup=warmups:empty", *extra)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.stdout.str().count("warmup-empty: ") == 1
    if extra:
        return
    waived = warmups.run("--jitguard-warmup=warmups:empty", "--jitguard-waive=warmup-empty", *extra)
    assert waived.ret == 0
    waived.stdout.fnmatch_lines(["waived: warmup-empty*"])


# -- findings about a whole session ------------------------------------------------------------------------------------


SMUGGLED = "@pytest.mark.jitguard\ndef test_a(): fakejit.CACHE['smuggled()'] = 'binary'"


@pytest.mark.parametrize(
    ("finding", "suite", "extra", "fake"),
    [
        ("nothing-guarded", "def test_plain(): pass", (), True),
        ("nothing-guarded", "", XDIST_ARGS, True),
        ("nothing-watched", "@pytest.mark.jitguard\ndef test_a(): pass", (), False),
        ("blind:fakejit", SMUGGLED, (), True),
        ("blind:fakejit", SMUGGLED, XDIST_ARGS, True),
    ],
    ids=["unguarded", "no test", "nothing-watched", "blind", "blind worker"],
)
def test_findings_are_told_once_fail_the_session_and_can_be_waived_by_name(
    finding: str, suite: str, extra: tuple[str, ...], fake: bool, guarded: GuardedRun
) -> None:
    guarded.suite(suite)
    result = guarded.run(*extra, fake=fake)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.stdout.str().count(f"\n{finding}: ") == 1
    assert [f["name"] for f in guarded.report["findings"]] == [finding]
    waived = guarded.run(*extra, f"--jitguard-waive={finding}", fake=fake)
    assert waived.ret == (0 if suite else pytest.ExitCode.NO_TESTS_COLLECTED)
    assert guarded.report["verdict"] == "passed"


def test_other_plugins_are_told_that_the_session_failed(guarded: GuardedRun) -> None:
    guarded.pytester.makeconftest("""
        def pytest_sessionfinish(exitstatus):
            print(f"told {int(exitstatus)}")
    """)
    guarded.suite("def test_plain(): pass")
    guarded.run("-s").stdout.fnmatch_lines(["*told 1"])


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "place", "extra"),
    [
        ("--jitguard-json", "/proc/no/such.json", ()),
        ("--jitguard-json", "a_file/below.json", ("-p", "xdist", "-n", "2")),
        ("--jitguard-json", "a_folder", ()),
        ("--jitguard-markdown", "a_folder", ()),
        ("--jitguard-journal", "/proc/no/such", ("-p", "xdist", "-n", "2")),
        ("--jitguard-journal", "a_file/below", ()),
    ],
)
def test_a_file_that_cannot_be_written_is_found_at_the_start(
    option: str, place: str, extra: tuple[str, ...], guarded: GuardedRun
) -> None:
    (guarded.path / "a_file").touch()
    (guarded.path / "a_folder").mkdir()
    guarded.suite(SUITE)
    refused(guarded, f"{option}={place}", *extra, parts=(f"{option}: ", place))
    assert not ran(guarded)


def test_a_file_that_cannot_be_written_at_the_end_loses_nothing_else(guarded: GuardedRun) -> None:
    guarded.suite("""
        from pathlib import Path

        @pytest.mark.jitguard
        def test_a(): Path("report.json").mkdir()
    """)
    result = guarded.run("--jitguard-markdown=report.md")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["JSON *report.json could not be written: *", "*journal: /*"])
    assert "jitguard: passed" in (guarded.path / "report.md").read_text()
    folder = Path(result.stdout.str().split("; journal: ")[-1].splitlines()[0])
    assert list(folder.glob("*.jsonl")), "the evidence is kept"


def test_a_report_lies_where_pytest_was_called_even_if_a_test_changes_the_folder(guarded: GuardedRun) -> None:
    guarded.suite("""
        import os

        @pytest.mark.jitguard
        def test_a(tmp_path): os.chdir(tmp_path)
    """)
    guarded.run("--jitguard-markdown=report.md").assert_outcomes(passed=1)
    assert (guarded.path / "report.md").exists()


def test_checking_leaves_no_file_and_no_content_behind(guarded: GuardedRun) -> None:
    guarded.suite(SUITE)
    kept = guarded.path / "kept.md"
    kept.write_text("before")
    refused(guarded, "--jitguard-markdown=kept.md", "--jitguard-journal=kept.md", parts=("--jitguard-journal: ",))
    assert kept.read_text() == "before"
    assert not (guarded.path / "report.json").exists()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", 'must be an object with "schema": 1'),
        ('{"schema": 2, "debt": []}', 'must be an object with "schema": 1'),
        ('{"schema": 1}', 'has no list "debt"'),
        ('{"schema": 1, "debt": [1]}', "entry 1 must have exactly the keys system, kernel, components, not 1"),
        ('{"schema": 1, "debt": [{"system": "a", "kernel": "b", "components": "c"}]}', "entry 1: components must be"),
        ("\xff\xfe", "codec can't decode"),
    ],
)
def test_a_corrupt_baseline_is_a_usage_error_and_stays_as_it_was(text: str, part: str, guarded: GuardedRun) -> None:
    file = guarded.path / "debt.json"
    file.write_bytes(text.encode("latin-1"))
    guarded.suite(SUITE)
    args = ("--jitguard-baseline=debt.json", "--jitguard-update-baseline")
    extra = ("-p", "xdist", "-n", "2") if text == "{" else ()
    refused(guarded, *args, *extra, parts=("--jitguard-baseline: ", part))
    assert file.read_bytes() == text.encode("latin-1")
    assert not ran(guarded)


def test_a_baseline_that_is_a_folder_is_a_usage_error(guarded: GuardedRun) -> None:
    (guarded.path / "debt").mkdir()
    guarded.suite(SUITE)
    refused(guarded, "--jitguard-baseline=debt", parts=("--jitguard-baseline: ", "cannot be read: Is a directory"))


# -- libraries ---------------------------------------------------------------------------------------------------------

BLOCK = """
    import sys

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "triton":
                raise ModuleNotFoundError("No module named 'triton'", name="triton")

    sys.meta_path.insert(0, Blocker())
"""


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (
            ("--jitguard-monitors=triton",),
            "--jitguard-monitors: triton was asked for by name, but triton is not installed",
        ),
        (("--jitguard-offline=h100",), "--jitguard-offline: h100 needs Triton, which is not installed"),
    ],
    ids=["monitor", "offline"],
)
@pytest.mark.parametrize("how", ["finder", "sys.modules"])
def test_triton_absent_while_required(how: str, args: tuple[str, ...], part: str, guarded: GuardedRun) -> None:
    body = BLOCK if how == "finder" else "    import sys; sys.modules['triton'] = None"
    guarded.pytester.makepyfile(block_triton=body)
    guarded.plugins = ["-p", "block_triton", *guarded.plugins]
    guarded.suite(SUITE)
    refused(guarded, *args, parts=(part,), fake=False)
    assert not ran(guarded)


@pytest.mark.parametrize("how", ["plain", "waived", "off"])
def test_the_interpreter_of_triton_is_an_error_unless_waived(
    how: str, guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "false" if how == "off" else "1")
    guarded.suite(SUITE)
    if how == "plain":
        refused(guarded, parts=("TRITON_INTERPRET=1", "--jitguard-waive=interpret"))
        assert not ran(guarded)
    else:
        waive = ["--jitguard-waive=interpret"] if how == "waived" else []
        guarded.run(*waive).assert_outcomes(passed=1)


def test_the_report_of_a_usage_error_of_pytest_itself_says_so(guarded: GuardedRun) -> None:
    result = guarded.run("no_such_file.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert json.loads((guarded.path / "report.json").read_text())["verdict"] == "usage-error"
    assert "no_such_file.py" in guarded.report["reasons"][0]
    result.stdout.no_fnmatch_line("*nothing-guarded*")


def test_options_of_a_guard_that_is_off_are_told(guarded: GuardedRun) -> None:
    guarded.suite("def test_it(): pass")
    told = guarded.run("--jitguard-offline=cuda:90", on=False)
    told.stdout.fnmatch_lines(["*jitguard is off, so that --jitguard-offline does nothing: add --jitguard"])
    silent = guarded.run("--jitguard-mode=warn", "--no-jitguard", on=False)
    assert "jitguard is off" not in silent.stdout.str()
