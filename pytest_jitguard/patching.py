"""The only place that patches: waits for imports, and replaces attributes until it is undone."""

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
        self._undo: list[Callable[[], None]] = []

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute and remember what the owner itself held there before."""
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        self.on_undo(lambda: _put_back(owner, name, value, before))

    def wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> Callable[..., Any]:
        """Replace a function `f` by one that calls `around(f, *args, **kwargs)`; return the replacement.

        Two sets may wrap one function and let go of it in any order: whoever lies below is taken out of the chain.
        One that lies below a stranger's wrapper stays, and only passes calls on. Static and class methods stay such.
        """
        raw = vars(owner).get(name)
        form: Any = type(raw) if isinstance(raw, (staticmethod, classmethod)) else None
        original = raw.__func__ if isinstance(raw, (staticmethod, classmethod)) else getattr(owner, name)
        link = _Link(original, around, inherited=name not in vars(owner), form=form)
        link.raw = raw if form else original

        @functools.wraps(link.original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return link.around(link.original, *args, **kwargs) if link.around else link.original(*args, **kwargs)

        link.replacement = replacement
        vars(replacement)[_LINK] = link
        setattr(owner, name, link.formed(replacement))
        self.on_undo(lambda: link.take_out(owner, name))
        return replacement

    def on_undo(self, action: Callable[[], None]) -> None:
        """Do something more when this is undone, in its turn."""
        self._undo.append(action)

    def undo(self) -> None:
        """Restore what is still ours."""
        while self._undo:
            self._undo.pop()()


_LINK = "_jitguard_link"


class _Link:
    """One of our wrappers in a chain of wrappers around a function."""

    def __init__(
        self, original: Callable[..., Any], around: Callable[..., Any], *, inherited: bool, form: Any = None
    ) -> None:
        self.original = original
        self.form = form
        self.raw: Any = original
        self.around: Callable[..., Any] | None = around
        self.inherited = inherited
        self.replacement: Any = None

    def formed(self, function: Callable[..., Any]) -> Any:
        """Return what the owner holds for a function: it itself, or a static or class method of it."""
        return self.form(function) if self.form else function

    def take_out(self, owner: Any, name: str) -> None:
        self.around = None
        held = vars(owner).get(name)
        current = held.__func__ if isinstance(held, (staticmethod, classmethod)) else held
        if current is self.replacement:
            _put_back(owner, name, held, _ABSENT if self.inherited else self.raw)
            return
        above = getattr(current, _LINK, None)
        while above is not None and above.original is not self.replacement:
            above = getattr(above.original, _LINK, None)
        if above is not None:
            above.original, above.inherited, above.raw = self.original, self.inherited, self.raw


def _put_back(owner: Any, name: str, value: Any, before: Any) -> None:
    if vars(owner).get(name, _ABSENT) is not value:
        return
    if before is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, before)
