"""The closed sets of words that settings, events and reports share, and how people are told of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

FAILING_KINDS = ("compile", "cache_load", "autotune", "fallback", "download")
"""Kinds of events that fail a serving phase unless configuration says otherwise."""

RECORDED_KINDS = ("graph_capture", "device_load", "lock_wait")
"""Kinds that are shown but fail only where asked."""

KINDS = FAILING_KINDS + RECORDED_KINDS

FAIL_ON = (*KINDS, "cache_load:warmup")
"""What can be asked to fail: kinds, and loads of what the same server's warmup built in another of its processes."""

EXPECT = "expect"
"""Kind of a violation without an event: an expected kernel that was not reached."""

UNATTRIBUTED = "unattributed"
"""System of an event that a net or the witness found, and that no monitor accounts for."""

MODES = ("fail", "warn", "record", "raise")
"""What a violation does."""


class Words(NamedTuple):
    """How a kind is told: `2 compiles`, `compiled in 3 s`, `still compiling`, `failed to compile`."""

    noun: str
    plural: str
    past: str
    participle: str
    infinitive: str


WORDS: Mapping[str, Words] = {
    "compile": Words("compile", "compiles", "compiled", "compiling", "compile"),
    "cache_load": Words("load from disk", "loads from disk", "loaded from disk", "loading from disk", "load from disk"),
    "autotune": Words("autotune run", "autotune runs", "autotuned", "tuning", "tune"),
    "fallback": Words(
        "fallback to uncompiled code",
        "fallbacks to uncompiled code",
        "fell back to uncompiled code",
        "falling back to uncompiled code",
        "fall back to uncompiled code",
    ),
    "download": Words("download", "downloads", "downloaded", "downloading", "download"),
    "graph_capture": Words(
        "graph capture", "graph captures", "captured a graph", "capturing a graph", "capture a graph"
    ),
    "device_load": Words(
        "load onto the device",
        "loads onto the device",
        "loaded onto the device",
        "loading onto the device",
        "load onto the device",
    ),
    "lock_wait": Words(
        "wait for a lock", "waits for a lock", "waited for a lock", "waiting for a lock", "wait for a lock"
    ),
}

_UNKNOWN = Words("event", "events", "was busy", "busy", "finish")


def words(kind: str) -> Words:
    """Return the words for a kind; a journal of another version may have one that is not known here."""
    return WORDS.get(kind, _UNKNOWN)


def count(number: int, noun: str, plural: str = "") -> str:
    """Say a number of things: `1 test`, `2 tests`."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def listed(parts: Sequence[str], last: str = " and ") -> str:
    """Put parts into one list: `a, b and c`."""
    return last.join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def deeds(kinds: Iterable[str], adjective: str = "") -> str:
    """Say what happened how often: `2 compiles, 1 autotune run and 1 expected kernel not reached`.

    The adjective stands before each noun, as in `2 unexpected compiles`.
    """
    counted = Counter(kinds)
    missed = counted.pop(EXPECT, 0)
    told = [(number, words(kind)) for kind, number in counted.most_common()]
    before = f"{adjective} " if adjective else ""
    parts = [count(number, f"{before}{said.noun}", f"{before}{said.plural}") for number, said in told]
    return listed([*parts, *([f"{count(missed, 'expected kernel')} not reached"] if missed else [])])
