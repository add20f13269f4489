"""The guards that failed, in words: what Dynamo says of each variant, made into one clause."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from pytest_jitguard.core.kinds import listed

_VARIANT = re.compile(r"^\s*(?:!\d+/)?\d+/\d+: ")

_MISMATCH = re.compile(
    r"^tensor '(?P<what>.+?)' (?P<property>.+?) mismatch(?: at index (?P<dim>\d+))?\. "
    r"expected (?P<expected>.+?), actual (?P<actual>.+)$"
)

_GRAD = re.compile(r"^tensor '(?P<what>.+?)' requires_grad mismatch\. expected requires_grad=(?P<expected>[01])")

_TYPE = re.compile(r"^___check_type_id\((?P<what>.+), \d+\), type=<class '(?P<type>.+?)'>$")

_PLACE = re.compile(r"[^\s/\\]+:\d+ in \S+")
"""File, line and function; the folder is left out, of which Dynamo shows the end only."""

_ZERO_ONE = "Dynamo gives 0 and 1 variants of their own, also where a dimension is dynamic"

_IDS = re.compile(r", \d{6,}\b")


def in_words(reasons: Sequence[str]) -> str:
    """Return one clause that names every failed guard once, those of the newest variant first; empty if none is known.

    Sizes that several variants were compiled for are told together: `x has size 5 at dim 0, not 2, 3 or 4`.
    """
    expected: dict[str, list[str]] = {}
    for reason in reasons:
        start, wanted = _parsed(_VARIANT.sub("", reason))
        known = expected.setdefault(start, [])
        if wanted and wanted not in known:
            known.append(wanted)
    clauses = (f"{start}, not {listed(wanted, ' or ')}" if wanted else start for start, wanted in expected.items())
    return "; ".join(clauses)


def _parsed(reason: str) -> tuple[str, str]:
    """Return the clause of one failed guard, and what the variant was compiled for where that stands apart."""
    guard = reason.partition("\nUser stack trace")[0].strip()
    mismatch = _MISMATCH.match(guard)
    if mismatch:
        start, expected = _of_tensor(**mismatch.groupdict())
        return start, expected
    grad = _GRAD.match(guard)
    if grad:
        return f"{grad['what']} {'needs no' if grad['expected'] == '1' else 'needs a'} gradient", ""
    return _of_guard(guard), ""


def _of_tensor(what: str, property: str, dim: str | None, expected: str, actual: str) -> tuple[str, str]:
    words: dict[str, Callable[[str], str]] = {
        "size": lambda value: f"size {value} at dim {dim}",
        "stride": lambda value: f"stride {value} at dim {dim}",
        "rank": lambda value: f"{value} dims",
        "dtype": lambda value: f"dtype {value}",
    }
    say = words.get(property)
    if say is None:
        return f"{what} has another {property}: {actual}", expected
    return f"{what} has {say(actual)}", expected


def _of_guard(guard: str) -> str:
    """Say which guard failed, and where it came from: Dynamo appends the user's line as a comment."""
    if guard.startswith("GLOBAL_STATE changed: "):
        return f"{guard.removeprefix('GLOBAL_STATE changed: ').strip()} changed since"
    text, *comments = (part.strip() for part in guard.partition("\n")[0].split("  # "))
    typed = _TYPE.match(text)
    clause = f"{typed['what']} is no {typed['type']}" if typed else f"the guard {_IDS.sub('', text)} failed"
    if any("0/1 specialization" in comment for comment in comments):
        return f"{clause} ({_ZERO_ONE})"
    return f"{clause}{_where(comments)}" if text else "the guards that failed are not known"


def _where(comments: Iterable[str]) -> str:
    """Return ` (suite.py:21 in scale)` if Dynamo says where the guarded value is used."""
    places = [place for place in map(_PLACE.search, comments) if place]
    return f" ({places[-1][0]})" if places else ""
