"""The only place that patches: post-import hooks, and attribute replacements that are undone if they are still ours."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_ABSENT = object()


def when_imported(name: str, callback: Callable[[ModuleType], None]) -> bool:
    """Call `callback` once the module's import has finished; never cause the import.

    Returns False, and registers nothing, while the module is half imported: wrapt would fire at once on the half that
    exists (wrapt 1.17 to 2.5), so the caller has to ask again later.
    """
    if is_initialising(name):
        return False
    import wrapt

    wrapt.register_post_import_hook(callback, name)
    return True


def is_initialising(name: str) -> bool:
    """Tell whether a module's import is under way."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


class PatchSet:
    """Replacements of attributes, undone in reverse order; one that somebody replaced since is left alone."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any, Any]] = []

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute and remember what the owner itself held there before."""
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        self._undo.append((owner, name, value, before))

    def wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> Callable[..., Any]:
        """Replace a function `f` by one that calls `around(f, *args, **kwargs)`; return the replacement."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        self.replace(owner, name, replacement)
        return replacement

    def undo(self) -> None:
        """Restore what is still ours."""
        while self._undo:
            owner, name, value, before = self._undo.pop()
            if vars(owner).get(name, _ABSENT) is not value:
                continue
            if before is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
