"""Where a setting's value comes from: marker, then command line, environment, ini, default."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_jitguard.core.settings import SETTINGS, Setting, Settings
from pytest_jitguard.options import read_settings
from tests.conftest import GuardedRun

# For each setting three texts that are not its default, and what they mean.
VALUES: dict[str, tuple[tuple[str, Any], tuple[str, Any], tuple[str, Any]]] = {
    "enabled": (("true", True), ("false", False), ("true", True)),
    "guard": (("all", "all"), ("marked", "marked"), ("all", "all")),
    "mode": (("warn", "warn"), ("record", "record"), ("raise", "raise")),
    "fail_on": (("compile", ("compile",)), ("autotune", ("autotune",)), ("lock_wait", ("lock_wait",))),
    "monitors": (("triton", ("triton",)), ("a:B", ("a:B",)), ("auto,c:D", ("auto", "c:D"))),
    "witness": (("cupti", "cupti"), ("off", "off"), ("cupti", "cupti")),
    "deny": (("a", ("a",)), ("b", ("b",)), ("c", ("c",))),
    "warmup": (("a:b", ("a:b",)), ("c:d", ("c:d",)), ("e.f:g.h", ("e.f:g.h",))),
    "warmup_timeout": (("1", 1.0), ("2.5", 2.5), ("1e3", 1000.0)),
    "cache": (("cold", "cold"), ("keep", "keep"), ("cold", "cold")),
    "offline": (("h100", "h100"), ("cuda:90", "cuda:90"), ("h20", "h20")),
    "offline_tensors": (("meta", "meta"), ("cpu", "cpu"), ("meta", "meta")),
    "children": (("off", "off"), ("require", "require"), ("off", "off")),
    "forget": (("false", False), ("true", True), ("false", False)),
    "waive": (
        ("interpret", ("interpret",)),
        ("blind:x", ("blind:x",)),
        ("paid-debt,warmup-empty", ("paid-debt", "warmup-empty")),
    ),
    "baseline": (("a.json", "a.json"), ("b.json", "b.json"), ("c.json", "c.json")),
    "update_baseline": (("false", False), ("false", False), ("false", False)),
    "json": (("a.json", "a.json"), ("b.json", "b.json"), ("c.json", "c.json")),
    "markdown": (("a.md", "a.md"), ("b.md", "b.md"), ("c.md", "c.md")),
    "journal": (("a", "a"), ("b", "b"), ("c", "c")),
}

Read = Callable[..., Settings]


@pytest.fixture
def read(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Read:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for setting in SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)

    def read(*args: str, **files: str) -> Settings:
        return read_settings(pytester.parseconfig("-p", "pytest_jitguard.plugin", *args))

    return read


def option(setting: Setting, text: str) -> str:
    if setting.form != "flag":
        return f"{setting.option}={text}"
    return setting.option if text == "true" else f"--no-{setting.option[2:]}"


def meaning(setting: Setting, value: Any, folder: Path) -> Any:
    return str(folder / value) if setting.form == "path" else value


def test_the_table_of_this_test_knows_every_setting() -> None:
    assert list(VALUES) == [setting.name for setting in SETTINGS]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
class TestPrecedence:
    def test_default(self, setting: Setting, read: Read) -> None:
        assert getattr(read(), setting.name) == setting.default
        assert getattr(Settings(), setting.name) == setting.default, "the dataclass says the same"

    def test_ini_beats_the_default(self, setting: Setting, read: Read, pytester: pytest.Pytester) -> None:
        text, value = VALUES[setting.name][0]
        pytester.makeini(f"[pytest]\n{setting.key} = {text}\n")
        assert getattr(read(), setting.name) == meaning(setting, value, pytester.path)

    def test_environment_beats_ini(
        self, setting: Setting, read: Read, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytester.makeini(f"[pytest]\n{setting.key} = {VALUES[setting.name][0][0]}\n")
        text, value = VALUES[setting.name][1]
        monkeypatch.setenv(setting.variable, text)
        assert getattr(read(), setting.name) == meaning(setting, value, pytester.path)

    def test_the_command_line_beats_the_environment(
        self, setting: Setting, read: Read, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytester.makeini(f"[pytest]\n{setting.key} = {VALUES[setting.name][0][0]}\n")
        monkeypatch.setenv(setting.variable, VALUES[setting.name][1][0])
        text, value = VALUES[setting.name][2]
        assert getattr(read(option(setting, text)), setting.name) == meaning(setting, value, pytester.path)

    def test_an_empty_variable_counts_as_unset(
        self, setting: Setting, read: Read, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(setting.variable, "")
        assert getattr(read(), setting.name) == setting.default

    def test_help_says_it_in_both_listings(self, setting: Setting, help_text: str) -> None:
        assert setting.option in help_text
        assert f"  {setting.key} (" in help_text
        assert setting.help[:30] in " ".join(help_text.split())


@pytest.fixture(scope="module")
def help_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    import os
    import subprocess
    import sys

    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", "pytest", "-p", "pytest_jitguard.plugin", "--help"]
    folder = tmp_path_factory.mktemp("help")
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    return done.stdout


def test_help_shows_the_group_and_the_markers_are_listed(help_text: str, guarded: GuardedRun) -> None:
    assert "jitguard:" in help_text
    listed = guarded.run("--markers", on=False).stdout.str()
    assert "@pytest.mark.jitguard(*, warmup=None" in listed
    assert "@pytest.mark.allow_jit(*patterns, reason)" in listed


def test_no_jitguard_on_the_command_line_beats_the_ini_value(read: Read, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\njitguard = true\n")
    assert read().enabled
    assert not read("--no-jitguard").enabled
    assert read("--no-jitguard", "--jitguard").enabled, "the last one wins"


def test_none_takes_back_what_an_ini_file_set(read: Read, pytester: pytest.Pytester) -> None:
    unset = [setting for setting in SETTINGS if setting.default is None]
    lines = [f"{setting.key} = {VALUES[setting.name][0][0]}" for setting in unset]
    pytester.makeini("\n".join(["[pytest]", *lines]))
    settings = read(*[f"{setting.option}=none" for setting in unset])
    assert [getattr(settings, setting.name) for setting in unset] == [None] * len(unset)


def test_lists_are_joined_from_repeated_options_commas_and_lines(read: Read, pytester: pytest.Pytester) -> None:
    settings = read(
        "--jitguard-warmup=a:b",
        "--jitguard-warmup=c:d,e:f",
        "--jitguard-fail-on=compile",
        "--jitguard-fail-on=download",
    )
    assert settings.warmup == ("a:b", "c:d", "e:f")
    assert settings.fail_on == ("compile", "download")
    pytester.makeini("[pytest]\njitguard_warmup =\n  a:b\n  c:d\n")
    assert read().warmup == ("a:b", "c:d")
    assert read("--jitguard-warmup=").warmup == (), "an empty option empties what the ini file set"


def test_a_path_of_the_command_line_lies_where_pytest_was_called_and_one_of_the_ini_file_beside_it(
    read: Read, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini("[pytest]\njitguard_json = ini.json\njitguard_journal = /absolute\n")
    below = pytester.mkdir("below")
    monkeypatch.chdir(below)
    monkeypatch.setenv("JITGUARD_MARKDOWN", "variable.md")
    settings = read("--jitguard-baseline=option.json")
    assert settings.json == str(pytester.path / "ini.json")
    assert settings.journal == "/absolute"
    assert settings.markdown == str(below / "variable.md")
    assert settings.baseline == str(below / "option.json")


LINES = "jitguard = true\njitguard_mode = warn\njitguard_warmup_timeout = 30\n"
TYPED = 'jitguard = true\njitguard_mode = "warn"\njitguard_warmup_timeout = 30\n'
STYLES = {
    "pytest.ini": f"[pytest]\n{LINES}jitguard_waive =\n  interpret\n  paid-debt\n",
    "tox.ini": f"[pytest]\n{LINES}jitguard_waive =\n  interpret\n  paid-debt\n",
    "setup.cfg": f"[tool:pytest]\n{LINES}jitguard_waive = interpret, paid-debt\n",
    "pyproject.toml": f'[tool.pytest.ini_options]\n{TYPED}jitguard_waive = ["interpret", "paid-debt"]\n',
}
NATIVE = STYLES["pyproject.toml"].replace("tool.pytest.ini_options", "tool.pytest")


@pytest.mark.parametrize("name", STYLES)
def test_every_style_of_configuration_file_is_read(name: str, read: Read, pytester: pytest.Pytester) -> None:
    (pytester.path / name).write_text(STYLES[name])
    _is_as_written(read())


@pytest.mark.skipif(pytest.version_tuple < (9, 0), reason="native TOML came with pytest 9")
@pytest.mark.parametrize("name", ["pyproject.toml", "pytest.toml"])
def test_native_toml_is_read_with_its_own_types(name: str, read: Read, pytester: pytest.Pytester) -> None:
    (pytester.path / name).write_text(NATIVE if name == "pyproject.toml" else NATIVE.replace("tool.pytest", "pytest"))
    _is_as_written(read())


@pytest.mark.skipif(pytest.version_tuple < (9, 0), reason="native TOML came with pytest 9")
@pytest.mark.parametrize(
    "line", ['jitguard = "yes"', "jitguard_mode = 3", 'jitguard_waive = "interpret"', 'jitguard_warmup_timeout = "30"']
)
def test_a_wrong_type_in_native_toml_is_a_usage_error(line: str, read: Read, pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml(f"[tool.pytest]\n{line}\n")
    with pytest.raises(pytest.UsageError, match=line.split(" ", maxsplit=1)[0]) as caught:
        read("--jitguard-json=x")
    assert "expected" in str(caught.value) or "expects" in str(caught.value)


def _is_as_written(settings: Settings) -> None:
    assert settings.enabled
    assert settings.mode == "warn"
    assert settings.warmup_timeout == 30.0
    assert settings.waive == ("interpret", "paid-debt")


STRUCTURE = """
[[{0}allow]]
pattern = "triton:rms_*"
reason = "shape comes from the user"

[[{0}warmup]]
call = "a.b:c"
kwargs = {{ tokens = [1, 2] }}

[{0}gpus.mine]
like = "h100"
"""


@pytest.mark.parametrize(("name", "prefix"), [("jitguard.toml", ""), ("pyproject.toml", "tool.jitguard.")])
def test_structure_is_read_from_either_place(name: str, prefix: str, read: Read, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\njitguard_warmup = d:e\n")
    (pytester.path / name).write_text(STRUCTURE.format(prefix))
    settings = read()
    assert settings.structured.allow == (("triton:rms_*", "shape comes from the user"),)
    assert [(step.path, dict(step.kwargs)) for step in settings.steps()] == [("a.b:c", {"tokens": [1, 2]}), ("d:e", {})]
    assert settings.structured.gpus == {"mine": {"like": "h100"}}


def test_structure_lies_beside_the_ini_file_not_where_pytest_was_called(
    read: Read, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini("[pytest]\n")
    below = pytester.mkdir("below")
    (below / "jitguard.toml").write_text("this is never read")
    (pytester.path / "jitguard.toml").write_text(STRUCTURE.format(""))
    monkeypatch.chdir(below)
    assert read().structured.warmup


def test_the_mode_of_the_command_line_beats_the_marker_only_to_relax_it(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read("--jitguard-mode=record").mode_beats_marker
    assert read("--jitguard-mode=warn").mode_beats_marker
    assert not read("--jitguard-mode=fail").mode_beats_marker
    assert not read("--jitguard-mode=raise").mode_beats_marker
    monkeypatch.setenv("JITGUARD_MODE", "record")
    assert not read().mode_beats_marker


MODES_SUITE = """
    @pytest.mark.jitguard(mode="fail")
    def test_says_fail(): fakejit.launch("a")

    @pytest.mark.jitguard
    def test_says_nothing(): fakejit.launch("b")

    @pytest.mark.jitguard(mode="record", fail_on="cache_load")
    def test_says_other_kinds(): fakejit.launch("c")
"""


@pytest.mark.parametrize(
    ("args", "ini", "modes"),
    [
        ((), "", ("fail", "fail")),
        ((), "jitguard_mode = warn", ("fail", "warn")),
        (("--jitguard-mode=record",), "jitguard_mode = warn", ("record", "record")),
        (("--jitguard-mode=fail",), "jitguard_mode = warn", ("fail", "fail")),
    ],
)
def test_marker_and_mode_in_a_run(args: tuple[str, ...], ini: str, modes: tuple[str, str], guarded: GuardedRun) -> None:
    guarded.pytester.makeini(f"[pytest]\n{ini}\n")
    guarded.suite(MODES_SUITE)
    result = guarded.run(*args)
    tests = {test["nodeid"].rpartition("::")[2]: test for test in guarded.report["tests"]}
    assert (tests["test_says_fail"]["mode"], tests["test_says_nothing"]["mode"]) == modes
    assert tests["test_says_other_kinds"]["verdict"] == "clean", "the marker's kinds beat those of the settings"
    failed = modes.count("fail")
    result.assert_outcomes(failed=failed, passed=3 - failed, warnings=modes.count("warn"))


def test_markers_are_known_to_strict_pytest_with_the_guard_off(guarded: GuardedRun) -> None:
    guarded.suite("""
        @pytest.mark.jitguard(mode="fail")
        @pytest.mark.allow_jit("*", reason="why")
        def test_marked(): pass
    """)
    guarded.run("--strict-markers", on=False).assert_outcomes(passed=1)
    guarded.run("--strict-markers", "-m", "jitguard and allow_jit", on=False).assert_outcomes(passed=1)


def test_every_ini_name_is_known_to_strict_pytest(guarded: GuardedRun) -> None:
    lines = [f"{setting.key} = {VALUES[setting.name][0][0]}" for setting in SETTINGS if setting.name != "enabled"]
    guarded.pytester.makeini("\n".join(["[pytest]", *lines]))
    guarded.suite("def test_plain(): pass")
    guarded.run("--strict-config", on=False).assert_outcomes(passed=1)
