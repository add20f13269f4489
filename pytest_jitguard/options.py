"""Settings as pytest users give them: options, environment, ini, and the structured table beside it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_jitguard.core.settings import SETTINGS, Setting, Settings, SettingsError, Structured, parse_structured

_UNSET = object()

_INI_TYPES: dict[str, Any] = {"flag": "bool", "list": "linelist", "seconds": "float"}
"""Forms whose values native TOML writes as something else than text."""

MARKERS = (
    "jitguard(*, warmup=None, mode=None, fail_on=None, max_events=None, max_seconds=None, monitors=None, expect=None): "
    "guard this test: fail it if its call compiles a kernel. warmup: 'package.module:callable' or a callable (or a "
    "list) that warms up first; mode: fail, warn, record or raise; fail_on: kinds that fail; max_events, max_seconds: "
    "tolerated budget; monitors: judge these systems only; expect: kernel globs that the call must have reached",
    "allow_jit(*patterns, reason): kernels (globs on system:kernel or system:module.kernel) that may compile while "
    "this test serves, and why",
)
"""The help lines of the markers, registered whether the guard is on or off."""


def add_options(parser: pytest.Parser) -> None:
    """Register every setting as an option and as an ini value; defaults stay unset so that precedence can be told."""
    group = parser.getgroup("jitguard", "jitguard: guard serving tests against JIT compiles")
    for setting in SETTINGS:
        _add_option(group, setting)
        kind = _INI_TYPES.get(setting.form, "string")
        default: Any = [] if kind == "linelist" else None
        try:
            parser.addini(setting.key, help=setting.help, type=kind, default=default)
        except (AssertionError, ValueError):  # before pytest 8.4 there were no numbers
            parser.addini(setting.key, help=setting.help, type="string", default=default)


def _add_option(group: Any, setting: Setting) -> None:
    common: dict[str, Any] = {"dest": setting.key, "default": None, "help": setting.help}
    if setting.form == "flag":
        group.addoption(setting.option, action="store_true", **common)
        group.addoption(
            f"--no-{setting.option[2:]}",
            action="store_false",
            dest=setting.key,
            default=None,
            help=f"Switch {setting.option} off",
        )
    elif setting.form == "list":
        group.addoption(setting.option, action="append", metavar=setting.metavar, **common)
    else:
        metavar = setting.metavar or f"{{{','.join(setting.choices)}}}"
        group.addoption(setting.option, metavar=metavar, **common)


def is_enabled(config: pytest.Config) -> bool:
    """Tell whether the guard is on, without reading any other setting."""
    return bool(_read(config, SETTINGS[0])[0])


def idle_options(config: pytest.Config) -> list[str]:
    """Return the options that were given though the guard is off and nobody said so: they do nothing."""
    if config.getoption(SETTINGS[0].key, default=None) is not None:
        return []
    return [s.option for s in SETTINGS[1:] if config.getoption(s.key, default=None) is not None]


def read_settings(config: pytest.Config) -> Settings:
    """Read and check every setting: command line, then environment, then ini, then default."""
    try:
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for setting in SETTINGS:
            values[setting.name], origins[setting.name] = _read(config, setting)
        structured = _read_structured(config)
        relaxed = origins["mode"] == "option" and values["mode"] in ("record", "warn")
        return Settings(**values, structured=structured, mode_beats_marker=relaxed)
    except SettingsError as error:
        raise pytest.UsageError(f"jitguard: {error}") from error


def _read(config: pytest.Config, setting: Setting) -> tuple[Any, str]:
    """Return a setting's value and where it came from: the one place that knows the precedence."""
    here = config.invocation_params.dir
    try:
        option = _option(config, setting)
        if option is not None:
            return _placed(setting, setting.parse(option, setting.option), here), "option"
        variable = os.environ.get(setting.variable, "")
        if variable != "":
            value = setting.parse(variable, f"environment variable {setting.variable}")
            return _placed(setting, value, here), "environment"
        ini = _ini(config, setting)
        if ini is not _UNSET:
            return _placed(setting, setting.parse(ini, f"ini value {setting.key}"), _ini_folder(config)), "ini"
    except SettingsError as error:
        raise pytest.UsageError(f"jitguard: {error}") from error
    return setting.default, "default"


def _option(config: pytest.Config, setting: Setting) -> Any:
    """Return what the command line says; while conftests are loaded, only a first reading of it exists."""
    value = config.getoption(setting.key, default=None)
    return getattr(config.known_args_namespace, setting.key, None) if value is None else value


def _placed(setting: Setting, value: Any, folder: Path) -> Any:
    """Make a path independent of the folder that tests may change into."""
    return str(folder / value) if setting.form == "path" and value is not None else value


def _ini_folder(config: pytest.Config) -> Path:
    return config.inipath.parent if config.inipath else config.rootpath


def _ini(config: pytest.Config, setting: Setting) -> Any:
    try:
        value = config.getini(setting.key)
    except (ValueError, TypeError, pytest.UsageError) as error:
        # What pytest refuses by itself (a bool that is none) reads better with the name in front.
        raise SettingsError(f"ini value {setting.key}: {error}; expected {setting.expects()}") from error
    return _UNSET if value is None or value == [] else value


def _read_structured(config: pytest.Config) -> Structured:
    """Read `[tool.jitguard]` of pyproject.toml, or jitguard.toml, beside the ini file or in the root directory."""
    folder = _ini_folder(config)
    own, shared = folder / "jitguard.toml", folder / "pyproject.toml"
    tables: list[tuple[Path, Any]] = []
    if own.is_file():
        tables.append((own, _toml(own)))
    if shared.is_file():
        tool = _toml(shared).get("tool")
        table = tool.get("jitguard") if isinstance(tool, dict) else None
        if table is not None:
            tables.append((shared, table))
    if len(tables) > 1:
        raise SettingsError(f"both {own.name} and [tool.jitguard] of {shared.name} exist in {folder}; keep one of them")
    for path, table in tables:
        if not isinstance(table, dict):
            raise SettingsError(f"{path}: [tool.jitguard] must be a table, not {table!r}")
        return parse_structured(table, str(path))
    return Structured()


def _toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not valid TOML: {error}") from error
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    return table
