"""The one list of settings, and how their values are read from text. No other module knows a setting's name or form."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from pytest_jitguard.core.kinds import FAIL_ON, FAILING_KINDS, MODES

GUARDS = ("marked", "all")
CACHES = ("keep", "cold")
PLACEMENTS = ("cpu", "meta")
CHILDREN = ("auto", "off", "require")
WITNESSES = ("off", "cupti")
WAIVERS = (
    "nothing-guarded",
    "nothing-watched",
    "warmup-empty",
    "interpret",
    "paid-debt",
    "journal-incomplete",
    "between",
    "late",
    "children",
    "server-silent",
    "stall-budget",
    "blind:NAME",
)


class SettingsError(ValueError):
    """A setting whose value cannot be used; the message names the setting, the value and what is accepted."""


class _Refused(ValueError):
    """One item of a list that is not accepted."""

    def __init__(self, value: str) -> None:
        super().__init__(value)
        self.value = value


# Named tuples here, because making a dataclass takes long, and every session imports this module.
class Setting(NamedTuple):
    """One flat setting: `name` with underscores gives the option, the ini name and the environment variable.

    `form` is `flag`, `text`, `path`, `list`, `choice` or `seconds`; `accepted` says in words what is, and `check` tells
    it of one item of a list.
    """

    name: str
    form: str
    default: Any
    help: str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    accepted: str = ""
    check: Callable[[str], bool] | None = None

    @property
    def option(self) -> str:
        """The command line option."""
        return f"--{self.key.replace('_', '-')}"

    @property
    def key(self) -> str:
        """The ini name, and the destination of the option."""
        return "jitguard" if self.name == "enabled" else f"jitguard_{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return self.key.upper()

    def expects(self) -> str:
        """Say what is accepted."""
        if self.choices:
            many = "any of " if self.form == "list" else ""
            return many + ", ".join(self.choices)
        words = self.accepted or _ACCEPTED.get(self.form, "text")
        return f"{words}, or none" if self.default is None else words

    def parse(self, raw: Any, origin: str) -> Any:
        """Turn a value from the command line, the environment or an ini file into the setting's type."""
        if self.default is None and str(raw).strip().lower() == "none":
            return None  # so that the command line can take back what an ini file set
        try:
            return _PARSERS[self.form](self, raw)
        except _Refused as refused:
            raise SettingsError(f"{origin}: {refused.value!r} is not accepted; expected {self.expects()}") from None
        except ValueError:
            raise SettingsError(f"{origin}: {raw!r} is not accepted; expected {self.expects()}") from None


_ACCEPTED = {"flag": "true or false", "seconds": "a number of seconds above 0", "path": "a path"}
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def _flag(_: Setting, raw: Any) -> bool:
    text = str(raw).strip().lower()
    if text not in _TRUE + _FALSE:
        raise ValueError(raw)
    return text in _TRUE


def _text(_: Setting, raw: Any) -> str:
    text = raw.strip() if isinstance(raw, str) else ""
    if not text:
        raise ValueError(raw)
    return text


def _choice(setting: Setting, raw: Any) -> str:
    if str(raw).strip() not in setting.choices:
        raise ValueError(raw)
    return str(raw).strip()


def _list(setting: Setting, raw: Any) -> tuple[str, ...]:
    rows = raw if isinstance(raw, (list, tuple)) else [raw]
    items = tuple(item.strip() for row in rows for item in str(row).replace("\n", ",").split(",") if item.strip())
    accepts = setting.check or (lambda item: not setting.choices or _is_choice(item, setting.choices))
    for item in items:
        if not accepts(item):
            raise _Refused(item)
    if setting.default and not items:
        raise _Refused("")  # no kind that fails, or no monitor, would switch the guard off in silence
    return items


def _is_choice(item: str, choices: tuple[str, ...]) -> bool:
    """Accept a choice itself, and for a choice like `blind:NAME` any name in place of the capitals."""
    return any(fnmatch.fnmatchcase(item, c.replace("NAME", "?*")) for c in choices)


def _seconds(_: Setting, raw: Any) -> float:
    seconds = float(str(raw).strip())
    if not seconds > 0 or seconds == float("inf"):
        raise ValueError(raw)
    return seconds


def is_path(path: str) -> bool:
    """Tell whether a text has the form `package.module:callable`."""
    module, colon, name = path.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), *name.split(".")])


_PARSERS: dict[str, Callable[[Setting, Any], Any]] = {
    "flag": _flag,
    "text": _text,
    "path": _text,
    "choice": _choice,
    "list": _list,
    "seconds": _seconds,
}

SETTINGS: tuple[Setting, ...] = (
    Setting("enabled", "flag", False, "Watch JIT compilers and fail guarded tests that compile while serving"),
    Setting(
        "guard", "choice", "marked", "Which tests are guarded: those with the jitguard marker, or all", choices=GUARDS
    ),
    Setting(
        "mode",
        "choice",
        "fail",
        "What a violation does: fail the test, warn, only record, or raise at the compile itself (for debugging)",
        choices=MODES,
    ),
    Setting(
        "fail_on",
        "list",
        FAILING_KINDS,
        "Kinds of events that fail a serving phase",
        metavar="KIND,...",
        choices=FAIL_ON,
    ),
    Setting(
        "monitors",
        "list",
        ("auto",),
        "Monitors to arm: names, or package.module:Class of your own; auto arms what gets imported",
        metavar="NAME,...",
        accepted="auto, names of monitors, or package.module:Class",
    ),
    Setting(
        "witness",
        "choice",
        "off",
        "Check the events from below: cupti compares them with what the NVIDIA driver loads (has a cost, see docs)",
        choices=WITNESSES,
    ),
    Setting(
        "deny",
        "list",
        (),
        "Systems that are told to refuse to compile while a guarded test serves, where they have a switch for that",
        metavar="NAME,...",
        accepted="names of monitors",
        check=str.isidentifier,
    ),
    Setting(
        "warmup",
        "list",
        (),
        "Callable that warms up, once per process before the first test (repeatable)",
        metavar="MODULE:CALLABLE",
        accepted="package.module:callable",
        check=is_path,
    ),
    Setting(
        "warmup_timeout",
        "seconds",
        None,
        "Soft limit for the warmup; 30 s later the process is ended",
        metavar="SECONDS",
    ),
    Setting(
        "cache",
        "choice",
        "keep",
        "Compile caches on disk: keep them, or start cold in a fresh folder",
        choices=CACHES,
    ),
    Setting(
        "offline",
        "text",
        None,
        "Compile for this GPU without having it, and launch nothing",
        metavar="TARGET",
        accepted="a GPU by name (h100, h20, mi300x, ...) or backend:arch such as cuda:90 or hip:gfx942",
    ),
    Setting(
        "offline_tensors",
        "choice",
        "cpu",
        "Where the offline target places tensors that ask for the GPU",
        choices=PLACEMENTS,
    ),
    Setting(
        "children",
        "choice",
        "auto",
        "Watch child processes and servers: auto warns of those that did not report, require fails, off lets them be",
        choices=CHILDREN,
    ),
    Setting(
        "forget",
        "flag",
        True,
        "Forget at each test's end what the test itself compiled, so that tests stay independent",
    ),
    Setting(
        "waive",
        "list",
        (),
        "Session-level findings that do not fail the session",
        metavar="FINDING,...",
        choices=WAIVERS,
    ),
    Setting("baseline", "path", None, "File of known debt: listed violations pass, new ones fail", metavar="FILE"),
    Setting("update_baseline", "flag", False, "Write the baseline file from this run's violations"),
    Setting("json", "path", None, "Write the report as JSON", metavar="FILE"),
    Setting("markdown", "path", None, "Append the report as Markdown", metavar="FILE"),
    Setting(
        "journal",
        "path",
        None,
        "Folder for the processes' journals (default: a temporary one, kept if the run is killed)",
        metavar="FOLDER",
    ),
)

BY_NAME: Mapping[str, Setting] = {setting.name: setting for setting in SETTINGS}


class WarmupCall(NamedTuple):
    """A warmup step: a callable by its import path, and keyword arguments from the structured configuration."""

    path: str
    kwargs: Mapping[str, Any] = MappingProxyType({})


class Structured(NamedTuple):
    """What `[tool.jitguard]` or `jitguard.toml` says.

    Allowances, warmup steps with arguments, GPUs of one's own, and budgets: the longest stall in seconds that
    something tolerates (a watchdog, a liveness probe), by its name.
    """

    allow: tuple[tuple[str, str], ...] = ()
    warmup: tuple[WarmupCall, ...] = ()
    gpus: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    budgets: Mapping[str, float] = MappingProxyType({})


def parse_structured(table: Mapping[str, Any], origin: str) -> Structured:
    """Check the structured configuration; SettingsError names the key, the value and what is accepted."""
    known = {"allow", "warmup", "gpus", "budgets"}
    unknown = sorted(set(table) - known)
    if unknown:
        raise SettingsError(
            f"{origin}: unknown key {unknown[0]!r}; expected {', '.join(sorted(known))} "
            "(flat settings belong into pytest's own configuration, as jitguard_...)"
        )
    allow = [_rows(row, origin, "allow", ("pattern", "reason")) for row in _tables(table, "allow", origin)]
    steps = [_step(row, origin) for row in _tables(table, "warmup", origin)]
    gpus = table.get("gpus", {})
    if not isinstance(gpus, dict) or not all(isinstance(gpu, dict) for gpu in gpus.values()):
        raise SettingsError(f"{origin}: gpus must be tables [gpus.NAME], not {gpus!r}")
    budgets = _budgets(table.get("budgets", {}), origin)
    return Structured(tuple((row["pattern"], row["reason"]) for row in allow), tuple(steps), gpus, budgets)


def _budgets(table: Any, origin: str) -> Mapping[str, float]:
    if not isinstance(table, dict):
        raise SettingsError(f"{origin}: budgets must be a table of seconds, such as nccl_watchdog = 600, not {table!r}")
    for name, seconds in table.items():
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < float("inf"):
            raise SettingsError(f"{origin}: budgets.{name} must be a number of seconds above 0, not {seconds!r}")
    return {str(name): float(seconds) for name, seconds in table.items()}


def _tables(table: Mapping[str, Any], name: str, origin: str) -> Sequence[Mapping[str, Any]]:
    rows = table.get(name, [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SettingsError(f"{origin}: {name} must be a list of tables [[{name}]], not {rows!r}")
    return rows


def _rows(row: Mapping[str, Any], origin: str, name: str, keys: tuple[str, ...]) -> dict[str, str]:
    if set(row) != set(keys) or not all(isinstance(row[key], str) and row[key].strip() for key in keys):
        raise SettingsError(f"{origin}: [[{name}]] needs exactly the texts {' and '.join(keys)}, not {dict(row)!r}")
    return {key: row[key] for key in keys}


def _step(row: Mapping[str, Any], origin: str) -> WarmupCall:
    call, kwargs = row.get("call"), row.get("kwargs", {})
    if set(row) - {"call", "kwargs"} or not isinstance(call, str) or not isinstance(kwargs, dict):
        raise SettingsError(
            f"{origin}: [[warmup]] takes call = 'package.module:callable' and kwargs, not {dict(row)!r}"
        )
    check_path(call, f"{origin}: [[warmup]] call")
    return WarmupCall(call, kwargs)


def check_path(path: str, origin: str) -> None:
    """Check the form `package.module:callable`."""
    if not is_path(path):
        raise SettingsError(f"{origin}: {path!r} is not accepted; expected package.module:callable")


_NOTHING_STRUCTURED = Structured()


@dataclass(frozen=True)
class Settings:
    """The settings of a run, read and checked. Field names are those of `SETTINGS`; see there for their meaning."""

    enabled: bool = False
    guard: str = "marked"
    mode: str = "fail"
    fail_on: tuple[str, ...] = FAILING_KINDS
    monitors: tuple[str, ...] = ("auto",)
    witness: str = "off"
    deny: tuple[str, ...] = ()
    warmup: tuple[str, ...] = ()
    warmup_timeout: float | None = None
    cache: str = "keep"
    offline: str | None = None
    offline_tensors: str = "cpu"
    children: str = "auto"
    forget: bool = True
    waive: tuple[str, ...] = ()
    baseline: str | None = None
    update_baseline: bool = False
    json: str | None = None
    markdown: str | None = None
    journal: str | None = None
    structured: Structured = _NOTHING_STRUCTURED
    mode_beats_marker: bool = False

    def __post_init__(self) -> None:
        for path in self.warmup:
            check_path(path, BY_NAME["warmup"].option)
        if self.update_baseline and not self.baseline:
            raise SettingsError("--jitguard-update-baseline: needs --jitguard-baseline=FILE to know what to write")

    def watched(self) -> tuple[str, ...]:
        """Return the names of the monitors to arm, and that of the witness below them."""
        return self.monitors if self.witness == "off" else (*self.monitors, self.witness)

    def steps(self) -> tuple[WarmupCall, ...]:
        """Return the session's warmup: structured steps first, then the flat list."""
        return (*self.structured.warmup, *(WarmupCall(path) for path in self.warmup))
