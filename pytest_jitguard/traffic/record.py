"""What was sent and what came back: a run that can be told, kept and sent again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_jitguard.core.kinds import count
from pytest_jitguard.traffic.requests import Request

SCHEMA = 1
_TOLD = 10


@dataclass(frozen=True)
class Sent:
    """One request that was sent, as far as it has come.

    `number` counts from 1 in the order of the run; `id` goes to the server as X-Request-Id. `started`, `first` (first
    byte, or first event of a stream) and `ended` are seconds of time.monotonic; `ended` is None while the request is
    in flight. `tokens` is the number of new tokens where the server tells it. `error` says what went wrong, empty if
    nothing did. `text` is what was answered, None unless it was to be kept.
    """

    id: str
    number: int
    request: Request
    body: bytes = field(repr=False)
    started: float
    first: float | None = None
    ended: float | None = None
    status: int | None = None
    tokens: int | None = None
    error: str = ""
    text: str | None = field(default=None, repr=False)

    @property
    def seconds(self) -> float | None:
        """How long the request took, None while it is in flight."""
        return None if self.ended is None else self.ended - self.started

    def __str__(self) -> str:
        return f"request {self.number} ({self.request})"

    def to_wire(self) -> dict[str, Any]:
        """Return it as plain types; the body is kept as its text, to the byte."""
        wire = {name: getattr(self, name) for name in _PLAIN}
        wire |= {"request": self.request.to_wire(), "body": self.body.decode("utf-8")}
        return wire if self.text is None else {**wire, "text": self.text}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Sent:
        """Read what `to_wire` wrote; KeyError, TypeError or ValueError if it does not fit."""
        plain = {name: _checked(name, wire[name]) for name in _PLAIN}
        text = wire.get("text")
        return cls(request=Request.from_wire(wire["request"]), body=str(wire["body"]).encode(), text=text, **plain)


_PLAIN: Mapping[str, tuple[type, ...]] = {
    "id": (str,),
    "number": (int,),
    "started": (float, int),
    "first": (float, int, type(None)),
    "ended": (float, int, type(None)),
    "status": (int, type(None)),
    "tokens": (int, type(None)),
    "error": (str,),
}


def _checked(name: str, value: Any) -> Any:
    if not isinstance(value, _PLAIN[name]):
        raise TypeError(f"{name} must be of type {_PLAIN[name][0].__name__}, not {value!r}")
    return value


class RecordError(ValueError):
    """A file that holds no record of traffic; the message names the file and the line."""


@dataclass(frozen=True)
class Record:
    """One run: every request that was sent, in order. `began` is its start in seconds of time.monotonic."""

    url: str
    model: str
    seed: int
    concurrency: int
    began: float
    sent: Sequence[Sent] = ()

    @property
    def failed(self) -> list[Sent]:
        """The requests that went wrong, in the order in which they did."""
        return sorted((sent for sent in self.sent if sent.error), key=lambda sent: sent.ended or sent.started)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record as JSON Lines that only its user can read. Answers are not in it unless they were kept."""
        header = {name: getattr(self, name) for name in _HEADER}
        lines = [{"record": "traffic", "schema": SCHEMA, **header}, *(sent.to_wire() for sent in self.sent)]
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        with open(path, "w", encoding="utf-8", opener=_private) as file:
            file.write(text)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Record:
        """Read what `save` wrote; RecordError if it is something else, OSError if it cannot be read."""
        lines = Path(path).read_bytes().split(b"\n")
        header = _header(lines[0], path)
        sent = [_sent(line, f"{path}:{number}") for number, line in enumerate(lines[1:], 2) if line]
        return cls(**{name: header[name] for name in _HEADER}, sent=sent)


_HEADER: Mapping[str, tuple[type, ...]] = {
    "url": (str,),
    "model": (str,),
    "seed": (int,),
    "concurrency": (int,),
    "began": (float, int),
}


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _header(line: bytes, path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("record") != "traffic":
        raise RecordError(f"{path} is no record of traffic: its first line is {line[:80]!r}")
    if header.get("schema") != SCHEMA:
        raise RecordError(f"{path} has schema {header.get('schema')!r}, this version reads {SCHEMA}")
    for name, kinds in _HEADER.items():
        if not isinstance(header.get(name), kinds):
            raise RecordError(f"{path}:1: {name} must be of type {kinds[0].__name__}, not {header.get(name)!r}")
    return header


def _sent(line: bytes, where: str) -> Sent:
    try:
        return Sent.from_wire(json.loads(line))
    except KeyError as error:
        raise RecordError(f"{where}: the request has no {error}") from error
    except (TypeError, ValueError) as error:
        raise RecordError(f"{where}: {error}: {line[:80]!r}") from error


class TrafficError(Exception):
    """Requests failed. The first line tells how many, and the first one; `record` holds all of them."""

    def __init__(self, message: str, record: Record) -> None:
        super().__init__(message)
        self.record = record


def failure(record: Record, planned: int) -> TrafficError | None:
    """Return the error that tells a run's failures, None if there are none. `planned` is how many were to be sent."""
    failed = record.failed
    if not failed:
        return None
    first, *others = failed
    head = f"{len(failed)} of {count(planned, 'request')} failed, first: {first}: {first.error}"
    more = [f"  {sent}: {sent.error}" for sent in others[: _TOLD - 1]]
    rest = [f"  and {len(failed) - _TOLD} more"] if len(failed) > _TOLD else []
    return TrafficError("\n".join([head, *more, *rest]), record)
