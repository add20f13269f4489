"""What is known about a tensor's memory: whether it is "on the GPU", and which offline kernels were given it.

The note hangs on the tensor's storage object. Views share it, it dies with the memory, and it keeps no tensor alive.
(torch keeps the Python object of a storage for as long as the storage lives.)
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

_ATTRIBUTE = "_jitguard_offline"


class OfflineResultWarning(UserWarning):
    """The host reads memory that an offline kernel was to write: kernels do not run offline, it is not a result."""


@dataclass
class Mark:
    """The note on one storage."""

    on_gpu: bool = False
    pinned: bool = False
    launches: dict[tuple[Any, int], None] = field(default_factory=dict)
    """(launcher, argument's index) of the offline launches that this memory, or what it was computed from, went to."""


def _holder(tensor: Any) -> Any:
    import torch

    with torch._C.DisableTorchFunction():
        return _holder_inside(tensor)


def _holder_inside(tensor: Any) -> Any:
    """Return what carries the note, for callers that have torch functions disabled already."""
    try:
        return tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return tensor  # sparse tensors have no storage of their own


def mark_of(tensor: Any) -> Mark | None:
    """Return the note on a tensor's memory, if there is one."""
    mark = getattr(_holder(tensor), _ATTRIBUTE, None)
    return mark if isinstance(mark, Mark) else None


def ensure_mark(tensor: Any) -> Mark:
    """Return the note on a tensor's memory; write an empty one if there is none."""
    return _mark_on(_holder(tensor))


def _mark_on(holder: Any) -> Mark:
    mark = getattr(holder, _ATTRIBUTE, None)
    if not isinstance(mark, Mark):
        mark = Mark()
        setattr(holder, _ATTRIBUTE, mark)
    return mark


def mark_storage(storage: Any) -> None:
    """Put a storage itself on the GPU (checkpoints are read storage by storage)."""
    setattr(storage, _ATTRIBUTE, Mark(on_gpu=True))


def on_gpu(tensor: Any) -> bool:
    """Return whether the tensor was placed on the offline GPU."""
    mark = mark_of(tensor)
    return mark is not None and mark.on_gpu


def same_memory(one: Any, other: Any) -> bool:
    """Return whether two tensors share storage."""
    return _holder(one) is _holder(other)


def tensors_in(values: Iterable[Any], depth: int = 3) -> Iterator[Any]:
    """Yield the tensors among arguments or results, looking into lists, tuples and dicts."""
    import torch

    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif depth and isinstance(value, (list, tuple)):
            yield from tensors_in(value, depth - 1)
        elif depth and isinstance(value, dict):
            yield from tensors_in(value.values(), depth - 1)


def note_launch(launcher: Any, args: Iterable[object]) -> None:
    """Remember on each tensor argument's memory that this kernel was given it."""
    import torch

    with torch._C.DisableTorchFunction():
        for index, arg in enumerate(args):
            if isinstance(arg, torch.Tensor):
                _note(arg, launcher, index)
            elif isinstance(arg, tuple):
                for tensor in tensors_in(arg):
                    _note(tensor, launcher, index)
            elif isinstance(base := getattr(arg, "base", None), torch.Tensor):  # a TensorDescriptor
                _note(base, launcher, index)


def _note(tensor: Any, launcher: Any, index: int) -> None:
    _mark_on(_holder_inside(tensor)).launches[launcher, index] = None


_warned: set[tuple[str, int]] = set()


def warn_if_result(tensors: Iterable[Any], what: str) -> None:
    """Warn, once per place in the caller's code, if one of the tensors was given to an offline kernel to write."""
    for tensor in tensors:
        mark = mark_of(tensor)
        kernel = _writer(mark) if mark is not None else None
        if kernel is not None:
            _warn(tensor, kernel, what)
            return


def _writer(mark: Mark) -> str | None:
    """Return the last kernel that may have written the memory. Read-only arguments are told from the kernel's IR."""
    for launcher, index in reversed(mark.launches):
        if launcher.may_write(index):
            return str(launcher.kernel)
    return None


def _warn(tensor: Any, kernel: str, what: str) -> None:
    frame = _caller()
    if frame is None or (place := (frame.f_code.co_filename, frame.f_lineno)) in _warned:
        return
    _warned.add(place)
    message = (
        f"{what} reads a tensor of shape {tuple(tensor.shape)} that was passed to the offline launch of {kernel}: "
        "kernels do not run on an offline target, its values are not results"
    )
    module = frame.f_globals.get("__name__")
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, OfflineResultWarning, *place, module=module, registry=registry)


def forget_warnings() -> None:
    """Warn anew at places that were warned about before."""
    _warned.clear()


def _caller() -> FrameType | None:
    """Return the innermost frame that is neither torch's nor ours."""
    import sys

    import torch

    ours = (str(Path(__file__).parent), str(Path(torch.__file__).parent))
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(ours):
        frame = frame.f_back
    return frame
