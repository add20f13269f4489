"""What a violation is to pytest: a failure outcome of its own, and the plugin's warnings."""

from __future__ import annotations

import pytest


class UnexpectedCompile(pytest.fail.Exception):  # type: ignore[name-defined, misc]  # an attribute of a function
    """A guarded test whose serving phase compiled something. A subclass of pytest's own failure outcome."""

    # As pytest's own outcomes do it, so that the short summary shows the name without a package path.
    __module__ = "builtins"


class JitGuardWarning(pytest.PytestWarning):
    """A violation in `warn` mode."""

    __module__ = "pytest_jitguard"
