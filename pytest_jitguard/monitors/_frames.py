"""Looking at stacks from inside a hook: which call is running, where it came from. Keeps no frame."""

from __future__ import annotations

import importlib.util
import itertools
import sysconfig
from collections.abc import Collection, Iterator
from pathlib import Path
from types import CodeType, FrameType, ModuleType

import pytest_jitguard

_DEEPEST_STACK = 40


def frames_of(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and its callers, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def find_frame(frame: FrameType | None, codes: Collection[CodeType], deepest: int) -> FrameType | None:
    """Return the innermost of the next `deepest` frames that runs one of these functions."""
    return next((f for f in itertools.islice(frames_of(frame), deepest) if f.f_code in codes), None)


def stack_of(frame: FrameType, hidden: tuple[str, ...]) -> tuple[str, ...]:
    """Return `file:line:function`, innermost first, without files under the hidden prefixes."""
    shown = (f for f in frames_of(frame) if not f.f_code.co_filename.startswith(hidden))
    return tuple(
        f"{f.f_code.co_filename}:{f.f_lineno}:{f.f_code.co_name}" for f in itertools.islice(shown, _DEEPEST_STACK)
    )


def hidden_folders(library: ModuleType) -> tuple[str, ...]:
    """Return the prefixes of files that are nobody's launch site: the library, torch, the standard library, us."""
    hidden = [str(Path(pytest_jitguard.__file__).parent), *_torch()]
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    # One prefix per entry, because site-packages usually lies inside the standard library's folder.
    inside = [str(p) for p in stdlib.iterdir() if p.name not in ("site-packages", "dist-packages")]
    return (*_files_of(library), *(f"{folder}/" for folder in hidden), *inside, "<")


def _files_of(library: ModuleType) -> list[str]:
    """Return the prefixes of a library's files: the folders of a package, the only file of a module without one."""
    folders = getattr(library, "__path__", None)
    if folders is not None:
        return [f"{folder}/" for folder in folders]
    file = getattr(library, "__file__", None)
    return [file] if file else []


def _torch() -> list[str]:
    try:
        spec = importlib.util.find_spec("torch")  # looks, and does not import
    except (ImportError, ValueError):
        return []
    return list(spec.submodule_search_locations or ()) if spec else []
