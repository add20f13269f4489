"""What is started as a server under test, and what is wrong with a command before anything is started."""

from __future__ import annotations

import math
import operator
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from urllib.parse import SplitResult, urlsplit

# pytest leaves our frames out of a traceback that ends in this error: the mistake is the caller's.
__tracebackhide__ = operator.methodcaller("errisinstance", ValueError)

KINDS = ("auto", "vllm", "sglang", "none")
"""Which server's own log and metrics are understood; `auto` decides by the command, `none` understands nothing."""

_PLACES = ("port", "host")
# Only a lone word in braces is a placeholder, so that arguments in JSON stay as they are.
_BRACES = re.compile(r"\{\{([A-Za-z_]\w*)\}\}|\{([A-Za-z_]\w*)\}")


@dataclass(frozen=True)
class ServerCommand:
    """A command that serves HTTP, and how to tell that it is ready.

    `command` and `url` may say `{port}`, the command also `{host}` (the host of `url`); `{{word}}` stands for `{word}`
    itself. `name` is by default what the command runs. `ready` is a path below `url` or a URL of its own, which
    answers with `ready_status` once the server is ready. Seconds: `timeout` from the start to readiness, `grace` from
    the polite request to end until force. `environment` is added to that of the starter, `cwd` is where the command
    runs. Without `port`, the port that `url` names is used, else a free one.

    Raises ValueError for what can be seen to be wrong without starting it.
    """

    command: tuple[str, ...]
    name: str = ""
    url: str = "http://127.0.0.1:{port}"
    ready: str = "/health"
    ready_status: int = 200
    timeout: float = 600.0
    grace: float = 10.0
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    cwd: str | os.PathLike[str] | None = None
    kind: str = "auto"
    port: int | None = None

    def __post_init__(self) -> None:
        """Check every part, and fill in what follows from the others."""
        _check_command(self.command)
        object.__setattr__(self, "command", tuple(self.command))
        _check_seconds("timeout", self.timeout, "how long it may take to get ready")
        _check_seconds("grace", self.grace, "how long it may take to end when asked")
        _check_environment(self.environment)
        _check_choice(self.kind)
        _check_status(self.ready_status)
        _check_port(self.port)
        object.__setattr__(self, "port", self._settled_port())
        object.__setattr__(self, "name", _checked_name(self.name or _default_name(self.command)))
        _check_ready(self.ready)
        self._check_that_the_port_is_told()

    def _settled_port(self) -> int | None:
        """Return the one port that `port` and `url` agree on, None if it is to be found."""
        split = _split(_filled(self.url, "url", {"port": str(self.port or 1)}))
        if "{port}" in self.url:
            return self.port
        said = split.port or (443 if split.scheme == "https" else 80)
        if self.port not in (None, said):
            raise ValueError(f"url {self.url!r} says port {said}, port= says {self.port}: leave one of them out")
        return said

    def _check_that_the_port_is_told(self) -> None:
        for part in self.command:
            self._fill(part, 1)
        if self.port is None and not any("{port}" in part for part in self.command):
            raise ValueError(
                f"command {' '.join(self.command)!r} does not say {{port}}, so the server would not know its port: "
                "put {port} where the command takes it, or give port="
            )

    @property
    def adapter(self) -> str:
        """The kind that was asked for, or the one that the command shows: `vllm`, `sglang` or `none`."""
        return _engine(self.command) or "none" if self.kind == "auto" else self.kind

    @property
    def host(self) -> str:
        """The host of `url`."""
        return _split(self.url.replace("{port}", "1")).hostname or ""

    def arguments(self, port: int) -> tuple[str, ...]:
        """Return the command with its placeholders filled in."""
        return tuple(self._fill(part, port) for part in self.command)

    def _fill(self, part: str, port: int) -> str:
        return _filled(part, "command", {"port": str(port), "host": self.host})

    def base_url(self, port: int) -> str:
        """Return `url` with its port, without a slash at the end."""
        return self.url.replace("{port}", str(port)).rstrip("/")

    def ready_url(self, port: int) -> str:
        """Return the URL that tells readiness."""
        if self.ready.startswith("/"):
            return self.base_url(port) + self.ready
        return self.ready.replace("{port}", str(port))

    def variables(self) -> dict[str, str]:
        """Return the server's whole environment, as of now."""
        return {**os.environ, **self.environment}

    def check_program(self) -> None:
        """Raise ValueError if the program or the folder to run it in is not there (looks at the file system)."""
        if self.cwd is not None and not Path(self.cwd).is_dir():
            raise ValueError(f"cwd {os.fspath(self.cwd)!r} of server {self.name!r} is no folder")
        program = self.command[0]
        place = Path(self.cwd or ".") / program if os.sep in program else program
        if shutil.which(place, path=self.variables().get("PATH")) is None:
            raise ValueError(
                f"program {program!r} of server {self.name!r} was not found or may not be executed: give its full "
                "path (sys.executable for this Python), or put its folder on PATH"
            )


def _check_command(command: object) -> None:
    if isinstance(command, str):
        raise ValueError(f"command {command!r} is one text: give a sequence, such as ('vllm', 'serve', MODEL)")
    if not isinstance(command, (tuple, list)) or not command or not command[0]:
        raise ValueError(f"command {command!r} is empty: give the program and its arguments")
    for part in command:
        if not isinstance(part, str) or "\0" in part:
            raise ValueError(f"command part {part!r} is not a text that a program can be given: use str(...)")


def _check_seconds(name: str, value: object, meaning: str) -> None:
    sound = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not sound or not math.isfinite(value) or value < 0:  # type: ignore[arg-type,operator]
        raise ValueError(f"{name} {value!r} is not a number of seconds from 0 on: it says {meaning}")


def _check_environment(environment: object) -> None:
    if not isinstance(environment, Mapping):
        raise ValueError(f"environment {environment!r} is not a mapping of variables to texts")
    for name, value in environment.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise ValueError(f"environment variable {name!r} is not a name: use a text without '='")
        if not isinstance(value, str) or "\0" in value:
            raise ValueError(f"environment variable {name} is {value!r}, which is not text: use str(...)")


def _check_choice(kind: object) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not known: use one of {', '.join(KINDS)}")


def _check_status(status: object) -> None:
    if not isinstance(status, int) or not 100 <= status <= 599:
        raise ValueError(f"ready_status {status!r} is not an HTTP status: use a number from 100 to 599")


def _check_port(port: object) -> None:
    if port is not None and (not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535):
        raise ValueError(f"port {port!r} is not from 1 to 65535: leave it out to have a free one found")


def _checked_name(name: str) -> str:
    if not name.isprintable() or "/" in name:
        raise ValueError(f"name {name!r} cannot be shown or used in a file name: use letters, digits, '-', '_'")
    return name


def _check_ready(ready: str) -> None:
    if not ready.startswith("/"):
        _split(_filled(ready, "ready", {"port": "1"}))


def _split(url: str) -> SplitResult:
    """Take a URL apart; ValueError unless it names a host by HTTP."""
    try:
        split = urlsplit(url)
        sound = split.scheme in ("http", "https") and bool(split.hostname) and split.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise ValueError(f"{url!r} is not a URL that can be asked: use one such as http://127.0.0.1:8000/health")
    return split


def _filled(text: str, where: str, values: Mapping[str, str]) -> str:
    def fill(match: re.Match[str]) -> str:
        literal, name = match.groups()
        if literal is not None:
            return f"{{{literal}}}"
        if name not in values:
            known = " and ".join(f"{{{place}}}" for place in _PLACES if place in values)
            raise ValueError(
                f"{where} has an unknown placeholder {{{name}}} in {text!r}: known here: {known}; "
                f"write {{{{{name}}}}} to mean the braces themselves"
            )
        return values[name]

    return _BRACES.sub(fill, text)


def _engine(command: tuple[str, ...]) -> str | None:
    """Return which known server a command runs, also behind a wrapper (`uv run vllm serve`, `nsys profile ...`)."""
    for part, after in pairwise(command):
        root = after.partition(".")[0] if part == "-m" else Path(part).name if after == "serve" else ""
        if root in ("vllm", "sglang"):
            return root
    return None


def _default_name(command: tuple[str, ...]) -> str:
    return _engine(command) or _program(command)


def _program(command: tuple[str, ...]) -> str:
    """Return what a command runs: behind a Python, the module or the script."""
    name = Path(command[0]).name
    rest = [part for part in command[1:] if not part.startswith("-") or part in ("-m", "-c")]
    if not name.startswith(("python", "pypy")) or not rest or rest[0] == "-c":
        return name
    return rest[1].rpartition(".")[2] if rest[0] == "-m" and len(rest) > 1 else Path(rest[0]).stem
