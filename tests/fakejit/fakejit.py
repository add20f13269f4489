"""A JIT in a hundred lines: keys, an in-process cache, a disk cache, failures, background threads."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

__version__ = "1.0"

CACHE: dict[str, str] = {}
"""In-process cache: key text to binary. The monitor must see whatever gets in here."""

LAUNCHES: list[str] = []


GATES: dict[str, threading.Event] = {}
"""What a compile with `gate="name"` waits for, so that a test decides when it ends."""


REFUSES = False
"""The library's own switch: do not compile now."""


class CompileError(Exception):
    pass


def gate(name: str) -> threading.Event:
    return GATES.setdefault(name, threading.Event())


def _key(name: str, arguments: dict[str, object]) -> str:
    return f"{name}({', '.join(f'{k}={v}' for k, v in sorted(arguments.items()))})"


def _build(name: str, arguments: dict[str, object]) -> str:
    """Hook point: misses of the in-process cache pass here, and only they. Returns how the binary was had."""
    stored = Path(os.environ["FAKEJIT_CACHE"]) / _key(name, arguments) if os.environ.get("FAKEJIT_CACHE") else None
    if stored and stored.exists():
        return "cache_load"
    if REFUSES:
        raise CompileError(f"{name}: compiling is switched off")
    if "gate" in arguments:
        gate(str(arguments["gate"])).wait(60)
    time.sleep(float(str(arguments.get("seconds", 0))))
    if arguments.get("fail"):
        raise CompileError(name)
    if stored:
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_text("binary")
    return "compile"


def compile_only(name: str, **arguments: object) -> None:
    key = _key(name, arguments)
    if key not in CACHE:
        CACHE[key] = _build(name, arguments)


def launch(name: str, **arguments: object) -> str:
    """Run a kernel of this name and these arguments; compiles on the first use of a key."""
    compile_only(name, **arguments)
    LAUNCHES.append(name)
    return _key(name, arguments)


def launch_in_background(name: str, **arguments: object) -> threading.Thread:
    thread = threading.Thread(target=launch, args=(name,), kwargs=arguments, daemon=True)
    thread.start()
    return thread


untouched_build = _build


def hide_hook() -> None:
    """Do what a rival tool or a reload does: put the function back that was there before anybody hooked in."""
    globals()["_build"] = untouched_build


def chain_hook() -> None:
    """Do what a polite rival does: hook in on top, and pass everything on."""
    before = _build
    globals()["_build"] = lambda name, arguments: before(name, arguments)


def sneak_in(name: str, **arguments: object) -> None:
    """Make a variant resident past the hook point."""
    CACHE[_key(name, arguments)] = "compile"
