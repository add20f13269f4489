"""The report as one JSON document; `schema.json` beside this file describes it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA_FILE = Path(__file__).with_name("schema.json")


def render(document: Mapping[str, Any]) -> str:
    """Return the document's text, in the order in which the model built it."""
    return json.dumps(_plain(document), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Make a value one that JSON can say: numbers that are none become null, anything foreign its text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def write(document: Mapping[str, Any], path: Path) -> None:
    """Write the document so that readers see the old file or the whole new one. OSError if it cannot be."""
    # A lone surrogate (from a file name that is not UTF-8) becomes its JSON escape.
    data = render(document).encode("utf-8", "backslashreplace")
    if path.exists() and not path.is_file():
        path.write_bytes(data)  # /dev/stdout or a pipe: nothing to replace
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file made by hand, not by tempfile, has the permissions that its user's umask gives.
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_bytes(data)
        os.replace(scratch, path)  # noqa: PTH105 - the one call that is atomic by name
    finally:
        scratch.unlink(missing_ok=True)
