"""The torch side of placement: `device="cuda"` means the offline GPU, whose memory is the CPU's or none (`meta`).

The rule, in one sentence: a tensor is on the offline GPU if it was made with a cuda device, or by an operation one of
whose tensors is, and leaves it only by `.cpu()`, `.to("cpu")` or `device="cpu"`.
"""

from __future__ import annotations

import functools
import re
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from pytest_jitguard.offline.marks import Mark, ensure_mark, mark_of, on_gpu, same_memory, tensors_in, warn_if_result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Placement = Literal["cpu", "meta"]
"""Where the memory of the offline GPU really is."""

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]

_CUDA = re.compile(r"cuda(:\d+)?")


def is_cuda_device(value: object) -> bool:
    """Return whether a device argument (`"cuda"`, `"cuda:0"`, 0, `torch.device`) means a GPU."""
    import torch

    if isinstance(value, torch.device):
        return bool(value.type == "cuda")
    if isinstance(value, str):
        return _CUDA.fullmatch(value) is not None
    return isinstance(value, int) and not isinstance(value, bool)


def is_device(value: object) -> bool:
    """Return whether an argument names a device in any way that torch takes."""
    import torch

    if isinstance(value, str):
        return re.fullmatch(r"[a-z]+(:\d+)?", value) is not None
    return isinstance(value, (torch.device, int)) and not isinstance(value, bool)


def _unchanged(func: Any, args: Arguments, kwargs: Keywords) -> Any:
    return func(*args, **kwargs)


class Placer:
    """What to do with each torch function; knows nothing of modes and threads."""

    def __init__(self, placement: Placement, on_placed: Callable[[], None]) -> None:
        import torch

        self.placement = placement
        self._on_placed = on_placed
        self._gpu = torch.device("cuda", 0)
        self.memory = torch.device(placement)
        self._handlers = self._table()
        self.plain = self._without_a_place()
        self._copying = {torch.as_tensor, torch.asarray}
        self.python_kernels: dict[str, Callable[..., Any]] = {}
        """Operators that Python code registered: torch would not choose a CUDA kernel for tensors on the CPU."""

    def _table(self) -> Mapping[Any, Callable[[Any, Arguments, Keywords], Any]]:
        import torch

        tensor = torch.Tensor
        table: dict[Any, Callable[[Any, Arguments, Keywords], Any]] = {
            # These name a place and put nothing there; Module.to() asks the second.
            torch.device: _unchanged,
            torch._C._nn._parse_to: _unchanged,
            tensor.to: self._to,
            tensor.cuda: self._cuda,
            tensor.cpu: self._cpu,
            tensor.copy_: self._copy,
            tensor.pin_memory: self._pin_memory,
            tensor.is_pinned: self._is_pinned,
            tensor.record_stream: lambda func, args, kwargs: None,
            tensor.get_device: self._answer(0),
            tensor.device.__get__: self._answer(self._gpu),
            tensor.is_cuda.__get__: self._answer(True),
            tensor.is_cpu.__get__: self._answer(False),
            tensor.is_meta.__get__: self._answer(False),
        }
        table.update(dict.fromkeys(self._reads(), self._read))
        return table

    @staticmethod
    def _without_a_place() -> frozenset[Any]:
        """Return functions without device or tensor in their result; Triton calls some at each launch."""
        import torch

        tensor = torch.Tensor
        getters = ("dtype", "shape", "layout", "ndim", "requires_grad", "is_sparse", "itemsize", "nbytes")
        methods = ("data_ptr", "size", "stride", "dim", "numel", "element_size", "is_contiguous", "storage_offset")
        found = {getattr(tensor, name).__get__ for name in getters if hasattr(tensor, name)}
        return frozenset(found | {getattr(tensor, name) for name in (*methods, "untyped_storage", "is_floating_point")})

    @staticmethod
    def _reads() -> tuple[Any, ...]:
        """Return the functions that bring a tensor's values to the host. Printing is not one: it is how one debugs."""
        import torch

        tensor = torch.Tensor
        conversions = (tensor.__bool__, tensor.__int__, tensor.__float__, tensor.__index__, tensor.__array__)
        return (tensor.item, tensor.tolist, tensor.numpy, *conversions, torch.equal, torch.allclose, tensor.equal)

    def call(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        """Call a torch function as the offline GPU would have it."""
        handler = self._handlers.get(func)
        return self._plain(func, args, kwargs) if handler is None else handler(func, args, kwargs)

    def _answer(self, answer: object) -> Callable[[Any, Arguments, Keywords], Any]:
        """Answer for a tensor on the GPU; everything else answers for itself."""

        def handler(func: Any, args: Arguments, kwargs: Keywords) -> Any:
            return answer if args and on_gpu(args[0]) else func(*args, **kwargs)

        return handler

    def _plain(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        if kwargs.get("device") is None and (default := self._default_device(func)) is not None:
            kwargs = {**kwargs, "device": default}
        sources = list(tensors_in((args, kwargs)))  # before the call: __deepcopy__ adds its result to an argument
        result = func(*args, **self._rewritten(kwargs))
        if result is None or isinstance(result, (int, str)):
            return result
        if kwargs.get("pin_memory"):
            ensure_mark(result).pinned = True
        if kwargs.get("device") is None:
            return self._inherit(result, sources)
        return self._arrive(func, result, args, kwargs["device"])

    def _default_device(self, func: Any) -> Any:
        """Return the device of `torch.set_default_device` or `with torch.device(...)`, if it is a GPU."""
        import torch
        from torch.utils._device import DeviceContext, _device_constructors

        if not torch._C._len_torch_function_stack():
            return None
        # torch keeps this context at the bottom of the stack; it is per thread, unlike _device.CURRENT_DEVICE.
        bottom = torch._C._get_function_stack_at(0)
        if not isinstance(bottom, DeviceContext) or not is_cuda_device(bottom.device):
            return None
        return bottom.device if func in _device_constructors() else None

    def _rewritten(self, kwargs: Keywords) -> Keywords:
        if is_cuda_device(kwargs.get("device")):
            kwargs = {**kwargs, "device": self.memory}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}  # a CPU-only torch cannot pin
        return kwargs

    def _arrive(self, func: Any, result: Any, args: Arguments, device: object) -> Any:
        """Mark what a call with an explicit device returned; copy what would otherwise share memory across devices."""
        import torch

        gpu = is_cuda_device(device)
        if isinstance(result, torch.Tensor) and func in self._copying:
            if not gpu:
                warn_if_result((arg for arg in args if isinstance(arg, torch.Tensor)), func.__name__)
            result = self._crossed(result, args[0], gpu)
        return self.place(result) if gpu else result

    def _crossed(self, result: Any, source: object, to_gpu: bool) -> Any:
        import torch

        if not isinstance(source, torch.Tensor):
            return result.clone() if to_gpu else result  # as_tensor(numpy array) shares the array's memory
        shared = same_memory(result, source)
        return result.clone() if shared and on_gpu(source) != to_gpu else result

    def place_gradients(self, saved: Arguments) -> bool:
        """Return whether gradients belong to the GPU: unless everything that was saved for backward is the CPU's."""
        tensors = list(tensors_in(saved))
        return not tensors or any(on_gpu(tensor) for tensor in tensors)

    def place(self, result: Any) -> Any:
        """Put every tensor in `result` on the GPU and return it."""
        for tensor in tensors_in((result,)):
            ensure_mark(tensor).on_gpu = True
        self._on_placed()
        return result

    def _inherit(self, result: Any, tensors: Sequence[Any]) -> Any:
        """Mark results like the tensors they were computed from."""
        sources = [mark for tensor in tensors if (mark := mark_of(tensor)) is not None]
        if not any(source.on_gpu or source.launches for source in sources):
            return result
        unmarked = [tensor for tensor in tensors if mark_of(tensor) is None]
        for tensor in tensors_in((result,)):
            # Not of an in-place operation or a view of a tensor on the host: that memory stays where it is.
            if not any(same_memory(tensor, source) for source in unmarked):
                _mark_like(tensor, sources)
        return result

    def _to(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        import torch

        other = kwargs.get("other", args[1] if len(args) > 1 and isinstance(args[1], torch.Tensor) else None)
        if other is not None:
            return self._move(func, args, kwargs, to_gpu=on_gpu(other))
        device = kwargs.get("device", args[1] if len(args) > 1 and is_device(args[1]) else None)
        if device is None:
            return self._inherit(func(*args, **kwargs), args[:1])
        if not is_cuda_device(device):
            return self._move(func, args, kwargs, to_gpu=False)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": self.memory}
        else:
            args = (args[0], self.memory, *args[2:])
        return self._move(func, args, kwargs, to_gpu=True)

    def _cuda(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        import torch

        keywords = {key: value for key, value in kwargs.items() if key == "memory_format"}
        return self._move(torch.Tensor.to, (args[0], self.memory), keywords, to_gpu=True)

    def _cpu(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        return self._move(func, args, kwargs, to_gpu=False)

    def _move(self, func: Any, args: Arguments, kwargs: Keywords, *, to_gpu: bool) -> Any:
        source = args[0]
        from_gpu = on_gpu(source)
        if from_gpu and not to_gpu:
            self._refuse_values(source, "copying to the host")
            warn_if_result((source,), "copying to the host")
        result = func(*args, **kwargs)
        if from_gpu == to_gpu:
            return self._inherit(result, (source,))
        if same_memory(result, source):
            result = result.clone()
        return self.place(result) if to_gpu else result

    def _copy(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        if len(args) > 1 and not on_gpu(args[0]) and on_gpu(args[1]):
            self._refuse_values(args[1], "copy_() to the host")
            warn_if_result(args[1:2], "copy_() to the host")
        return func(*args, **kwargs)

    def _read(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        what = f"{getattr(func, '__name__', func)}()"
        tensors = list(tensors_in((args, kwargs)))
        for tensor in tensors:
            self._refuse_values(tensor, what)
        warn_if_result(tensors, what)
        return func(*args, **kwargs)

    def _refuse_values(self, tensor: Any, what: str) -> None:
        if self.placement == "meta" and on_gpu(tensor):
            raise RuntimeError(
                f"{what}: the offline GPU's tensors are placed on 'meta' and have no values "
                f"(shape {tuple(tensor.shape)}); place them on the CPU to compute with ordinary torch operations"
            )

    def _pin_memory(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        mark = mark_of(args[0])
        if mark is not None and mark.pinned:
            return args[0]
        result = args[0].clone()
        ensure_mark(result).pinned = True
        return result

    def _is_pinned(self, func: Any, args: Arguments, kwargs: Keywords) -> Any:
        mark = mark_of(args[0])
        return mark is not None and mark.pinned

    def python_kernel(self, func: Any, args: Arguments, kwargs: Keywords) -> Callable[..., Any] | None:
        """Return the Python function behind a custom operator that is called with tensors on the GPU."""
        import torch

        if not self.python_kernels or not isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
            return None
        kernel = self.python_kernels.get(_operator_name(func))
        if kernel is None or not any(on_gpu(tensor) for tensor in tensors_in((args, kwargs))):
            return None
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in tensors_in((args, kwargs)))
        return None if differentiable else kernel  # autograd formulas live in torch's dispatcher


def _mark_like(tensor: Any, sources: Sequence[Mark]) -> None:
    mark = ensure_mark(tensor)
    mark.on_gpu = mark.on_gpu or any(source.on_gpu for source in sources)
    for source in sources:
        if source is not mark:
            mark.launches.update(source.launches)


def _operator_name(func: Any) -> str:
    name = getattr(func, "_qualified_op_name", None) or func._schema.name
    return str(name).replace(".", "::", 1) if "::" not in str(name) else str(name)


def make_mode(placer: Placer) -> Any:
    """Return the function mode that routes torch functions through the placer; it has `active` and `entered()`."""
    import torch
    from torch.overrides import TorchFunctionMode

    plain = placer.plain

    class OfflineMode(TorchFunctionMode):  # type: ignore[misc]  # torch is not type-checked here
        """Sees every torch function called in the threads that entered it."""

        active = True

        def __torch_function__(
            self, func: Any, types: Any, args: Arguments = (), kwargs: Keywords | None = None
        ) -> Any:
            kwargs = kwargs or {}
            if func in plain or not self.active:
                return func(*args, **kwargs)
            kernel = placer.python_kernel(func, args, kwargs)
            if kernel is not None:
                with self:  # torch takes the mode away while it is at work; the operator's own code needs it
                    return kernel(*args, **kwargs)
            return placer.call(func, args, kwargs)

        def is_entered(self) -> bool:
            depth = torch._C._len_torch_function_stack()
            return any(torch._C._get_function_stack_at(index) is self for index in range(depth))

        def entered(self) -> AbstractContextManager[object]:
            """Enter the mode for a block unless this thread already has."""
            return nullcontext() if self.is_entered() or not self.active else self

        def remove(self) -> None:
            """Take the mode out of this thread's stack, wherever it is; other threads see `active`."""
            self.active = False
            if not self.is_entered():
                return
            others = []
            while (mode := torch.overrides._pop_mode()) is not self:
                others.append(mode)
            for other in reversed(others):
                torch.overrides._push_mode(other)

    return OfflineMode()


def thread_start_in(mode: Any) -> Callable[[threading.Thread], None]:
    """Return a `Thread.start` that makes the thread enter the mode (torch keeps modes per thread).

    `start` is replaced, not `run`: subclasses override `run`.
    """
    original = threading.Thread.start

    @functools.wraps(original)
    def start(thread: threading.Thread) -> None:
        if not mode.active or "run" in vars(thread):
            original(thread)
            return
        run = thread.run

        def run_in_mode() -> None:
            vars(thread).pop("run", None)
            with mode.entered():
                run()

        thread.run = run_in_mode  # type: ignore[method-assign]
        try:
            original(thread)
        except BaseException:
            vars(thread).pop("run", None)
            raise

    return start
