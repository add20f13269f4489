"""What to send, as data: one request, and lists of them as JSON Lines."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

Endpoint = Literal["completions", "chat"]
Prompt = Literal["auto", "token_ids", "text"]


class RequestError(ValueError):
    """A request that cannot be sent as it is written; the message names the field, its value and what is accepted."""


@dataclass(frozen=True)
class Request:
    """One request to an OpenAI-compatible server, before its prompt is made up.

    `prompt_tokens` is the prompt's length: exact for token ids, about right for text. `at` is the earliest time at
    which it is sent, in seconds after the start of the run; 0 means as soon as the concurrency allows. `prompt` says
    what the prompt is made of: `auto` means token ids for completions, text for chat, which takes nothing else. The
    first `shared_prefix` tokens are those of every request with the same seed that asks for them; the rest is the
    request's own. `extra` goes on top of the generated body (`{"ignore_eos": True}`). `body` replaces it: it is sent
    as it is written, with the model and `stream` where it says nothing of them; `prompt_tokens` may then be 0, for
    unknown. `label` is how messages call the request. RequestError if a field does not fit.
    """

    prompt_tokens: int
    max_tokens: int = 4
    endpoint: Endpoint = "completions"
    stream: bool = False
    at: float = 0.0
    prompt: Prompt = "auto"
    shared_prefix: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    label: str = ""

    def __post_init__(self) -> None:
        for name, fits in _CHECKS.items():
            fits(name, getattr(self, name))
        _check_together(self)

    @property
    def as_text(self) -> bool:
        """Whether the prompt is text, not token ids."""
        return self.prompt == "text" or self.endpoint == "chat"

    @property
    def path(self) -> str:
        """The path below the server's `/v1`."""
        return "chat/completions" if self.endpoint == "chat" else "completions"

    def __str__(self) -> str:
        length = f"{self.prompt_tokens} token{'' if self.prompt_tokens == 1 else 's'}" if self.prompt_tokens else ""
        return ", ".join(part for part in (self.label, length) if part) or "its own body"

    def to_wire(self) -> dict[str, Any]:
        """Return the request as plain types, without the fields that have their default."""
        every = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in every.items() if name == "prompt_tokens" or value != _DEFAULTS[name]}

    @classmethod
    def from_wire(cls, wire: object) -> Request:
        """Read what `to_wire` wrote; RequestError if it does not fit."""
        if not isinstance(wire, dict):
            raise RequestError(f'a request must be an object like {{"prompt_tokens": 500}}, not {wire!r}')
        for name in wire:
            if name not in _DEFAULTS:
                raise RequestError(f"a request has no field {name!r}{_hint(name)}")
        if "prompt_tokens" not in wire:
            raise RequestError(f"a request needs prompt_tokens, the length of its prompt; there is none in {wire!r}")
        return cls(**wire)


def dump(requests: Iterable[Request]) -> str:
    """Return the requests as JSON Lines."""
    return "".join(json.dumps(request.to_wire()) + "\n" for request in requests)


def parse(text: str) -> list[Request]:
    """Read JSON Lines; empty lines are skipped. RequestError names the line that does not fit."""
    # Not splitlines(): a text may hold a line separator of Unicode, which JSON need not escape.
    return [_line(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _line(line: str, number: int) -> Request:
    try:
        return Request.from_wire(json.loads(line))
    except json.JSONDecodeError as error:
        raise RequestError(f"line {number} is not JSON: {error}: {line[:80]!r}") from error
    except RequestError as error:
        raise RequestError(f"line {number}: {error}") from error


def _hint(name: object) -> str:
    near = difflib.get_close_matches(str(name), _DEFAULTS, n=1)
    return f" (did you mean {near[0]!r}?)" if near else f"; its fields are {', '.join(_DEFAULTS)}"


def _whole(least: int) -> Callable[[str, object], None]:
    def check(name: str, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise RequestError(f"{name} must be a whole number of at least {least}, not {value!r}")

    return check


def _one_of(accepted: tuple[str, ...]) -> Callable[[str, object], None]:
    def check(name: str, value: object) -> None:
        if value not in accepted:
            raise RequestError(f"{name} must be one of {', '.join(map(repr, accepted))}, not {value!r}")

    return check


def _of(kind: type, told: str) -> Callable[[str, object], None]:
    def check(name: str, value: object) -> None:
        if not isinstance(value, kind):
            raise RequestError(f"{name} must be {told}, not {value!r}")

    return check


def _seconds(name: str, value: object) -> None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    if not fits:
        raise RequestError(f"{name} must be seconds after the start of the run, 0 or more, not {value!r}")


def _json_object(name: str, value: object) -> None:
    if value is None and name == "body":
        return
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise RequestError(f"{name} must be a mapping from field names to values, not {value!r}")
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestError(f"{name} must hold what JSON can say ({error}), not {value!r}") from error


_CHECKS: Mapping[str, Callable[[str, object], None]] = {
    "prompt_tokens": _whole(0),
    "max_tokens": _whole(1),
    "endpoint": _one_of(get_args(Endpoint)),
    "stream": _of(bool, "True or False"),
    "at": _seconds,
    "prompt": _one_of(get_args(Prompt)),
    "shared_prefix": _whole(0),
    "extra": _json_object,
    "body": _json_object,
    "label": _of(str, "a text"),
}
_DEFAULTS: Mapping[str, Any] = {
    f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields(Request)
}


def _check_together(request: Request) -> None:
    if request.prompt_tokens == 0 and request.body is None:
        raise RequestError("prompt_tokens must be at least 1, not 0; only a request with a body of its own may have 0")
    if request.endpoint == "chat" and request.prompt == "token_ids":
        raise RequestError("prompt='token_ids' cannot be sent to chat, which takes text: use endpoint='completions'")
    if request.shared_prefix > request.prompt_tokens:
        longer = f"shared_prefix must not be longer than the prompt: {request.shared_prefix} of {request.prompt_tokens}"
        raise RequestError(f"{longer} tokens")
    if request.body is not None and request.extra:
        raise RequestError("a request has either body or extra: write what extra says into the body")
    for name in ("extra", "body"):
        said = getattr(request, name) or {}
        if said.get("stream", request.stream) != request.stream:
            raise RequestError(
                f"{name} says stream={said['stream']!r}: say it to the request, Request(..., stream=...)"
            )
