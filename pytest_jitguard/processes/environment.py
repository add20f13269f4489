"""Environment variables that are put in place for a while."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping


def put(variables: Mapping[str, str]) -> Callable[[], None]:
    """Set variables of this process, for its children to inherit; return what puts back what was there before."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)

    def restore() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return restore
