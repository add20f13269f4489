"""What a thread of Triton's has under way: compiles and benchmarks that have begun, and where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from pytest_jitguard.core.events import CompileEvent, Launch


@dataclass
class Origin:
    """Where a compile came from: the launch and its stack, seen where it was asked for."""

    launch: Launch | None = None
    stack: tuple[str, ...] = ()
    device: int | None = None
    will_launch: bool = False
    direct: bool = True


@dataclass(eq=False)
class OpenCompile:
    """A compile that has begun; `frame` is that of `triton.compile` and tells whether it still runs."""

    frame: FrameType
    src: Any
    event: CompileEvent | None = None
    origin: Origin = field(default_factory=Origin)
    options: Mapping[str, Any] = field(default_factory=dict)
    target: Any = None


@dataclass(eq=False)
class OpenTuning:
    """An autotuner that is benchmarking; `frame` is that of `Autotuner.run`."""

    frame: FrameType
    event: CompileEvent
    tuner: Any
    known: frozenset[Any]
    cure: str = ""
    last_bench: float = 0.0


@dataclass
class Thread:
    """What one thread has under way. Only that thread adds to it; `flush` may take out what is over."""

    ident: int
    compiles: list[OpenCompile] = field(default_factory=list)
    tunings: list[OpenTuning] = field(default_factory=list)
    tunings_begun: int = 0
    just_compiled: str = ""
    launches_next: str = ""
    load_began: float = 0.0
