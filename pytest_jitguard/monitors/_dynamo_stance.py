"""Torch's own "do not compile now": the stance `fail_on_recompile`, and what it refused."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from pytest_jitguard.patching import PatchSet

Refused = Callable[[Any, Exception], None]


class Stance:
    """Takes the stance and leaves it; `refused` is told of every frame that it kept from being compiled.

    The stance holds for all threads. It raises where a compiled function is entered, long before anything that a
    monitor watches, so what it refuses is seen where it is asked for: at each call, as long as it is taken.
    """

    def __init__(self, refused: Refused) -> None:
        self._refused = refused
        self._taken: Any = None
        self._patches = PatchSet()

    def take(self) -> None:
        """Refuse from now on. Does nothing where torch has no such stance."""
        compiler = sys.modules.get("torch.compiler")
        set_stance = getattr(compiler, "set_stance", None)
        if self._taken is not None or set_stance is None:
            return
        self._taken = set_stance("fail_on_recompile")
        frames = sys.modules.get("torch._dynamo.eval_frame")
        if frames is not None and hasattr(frames, "_callback_from_stance"):
            self._patches.wrap(frames, "_callback_from_stance", self._watched)

    def leave(self) -> None:
        """Go back to the stance before, unless somebody took another one meanwhile."""
        self._patches.undo()
        taken, self._taken = self._taken, None
        frames: ModuleType | None = sys.modules.get("torch._dynamo.eval_frame")
        if taken is not None and getattr(frames, "_stance", None) is getattr(taken, "stance", None):
            taken.__exit__(None, None, None)

    def _watched(self, choose: Any, callback: Any) -> Any:
        chosen = choose(callback)
        if chosen is callback or not callable(chosen) or chosen in (None, False):
            return chosen

        @functools.wraps(chosen)  # its attributes tell Dynamo which backend it stands for
        def watched(frame: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return chosen(frame, *args, **kwargs)
            except RuntimeError as error:
                self._refused(frame, error)
                raise

        return watched
