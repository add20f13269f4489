"""What events of several processes have to do with each other: one binary, seen in more than one of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from pytest_jitguard.core.events import CompileEvent

COMPILE_WORKER = "compile worker"
"""The role of processes that compile because another process asked them to, and serve nobody themselves."""

WARMUP = "warmup"


def mark_origins(events: Iterable[CompileEvent], warmed: Iterable[CompileEvent]) -> None:
    """Mark loads from disk whose binary the same server's warmup built in another of its processes.

    Servers that warm up on one rank only and let the others load from disk (SGLang) cannot do without them.
    """
    built: dict[tuple[str, str | None], set[tuple[int, str]]] = {}
    for event in warmed:
        if event.artifact_hash and event.scope and event.kind == "compile":
            built.setdefault((event.scope, event.artifact_hash), set()).add((event.pid, event.host))
    for event in events:
        builders = built.get((event.scope, event.artifact_hash), set())
        if event.kind == "cache_load" and builders - {(event.pid, event.host)}:
            event.origin = WARMUP


def doubles_of(events: Sequence[CompileEvent]) -> Collection[str]:
    """Return the ids of events in compile workers whose binary appears in another process as well.

    What a worker compiled for a process that has an event of its own for it is one event, not two.
    """
    asked_for = {event.artifact_hash for event in events if event.artifact_hash and event.role != COMPILE_WORKER}
    return {event.id for event in events if event.role == COMPILE_WORKER and event.artifact_hash in asked_for}
