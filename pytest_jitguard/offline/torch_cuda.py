"""`torch.cuda` of a GPU that is not there: what the table has works, everything else raises and says its name."""

from __future__ import annotations

import functools
import inspect
import threading
import types
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from pytest_jitguard.offline.cuda_table import OfflineCuda, accelerator_stand_ins, stand_ins, supported_names
from pytest_jitguard.offline.marks import mark_storage, note_launch
from pytest_jitguard.offline.torch_mode import Placement, Placer, is_cuda_device, make_mode, thread_start_in
from pytest_jitguard.patching import PatchSet

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_jitguard.offline.gpus import GPU

DOCS = "docs/offline.md"

# Names of torch.cuda that are types to compare with or errors to catch, not calls to a device.
_LEFT_ALONE = {
    "AcceleratorError",
    "CudaError",
    "DeferredCudaCallError",
    "OutOfMemoryError",
    "check_error",
    "cudaStatus",
}


def unsupported_names() -> list[str]:
    """Return the public callables of this torch's `torch.cuda` that have no stand-in: each raises by its name."""
    import torch

    known = set(supported_names()) | _LEFT_ALONE
    public = set(torch.cuda.__all__) | {name for name in vars(torch.cuda) if not name.startswith("_")}
    return sorted(name for name in public - known if _is_call(getattr(torch.cuda, name, None)))


def _is_call(value: object) -> bool:
    module = str(getattr(value, "__module__", ""))
    if not callable(value) or not module.startswith(("torch.cuda", "torch._C")):
        return False
    return not (isinstance(value, type) and _is_data_type(value))


def _is_data_type(value: type) -> bool:
    # torch.cuda.FloatTensor, torch.cuda.HalfStorage: torch itself compares types with these.
    return value.__name__.endswith(("Tensor", "Storage")) or issubclass(value, BaseException)


def refusal(name: str, original: object, gpu: GPU) -> Any:
    """Return what raises in the place of an unsupported name. A class stays a class: annotations mention it."""
    message = (
        f"torch.cuda.{name} is not available on the offline target {gpu.target}: there is no device behind it; "
        f"the supported torch.cuda calls are listed in {DOCS}"
    )

    def refuse(*args: object, **kwargs: object) -> Any:
        raise NotImplementedError(message)

    if not inspect.isclass(original):
        refuse.__name__ = refuse.__qualname__ = name
        return refuse
    return type(name, (), {"__new__": refuse, "__module__": "torch.cuda", "__doc__": message})


def _named(name: str, value: Any) -> Any:
    """Return a stand-in that is an object of its own: Dynamo's tables refuse one function under two names."""
    if inspect.isclass(value):
        return value

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        return value(*args, **kwargs)

    stand_in.__name__ = stand_in.__qualname__ = name.rpartition(".")[2]
    return stand_in


class TorchPart:
    """What was installed in torch."""

    def __init__(self, gpu: GPU, placement: Placement) -> None:
        self.cuda = OfflineCuda(gpu)
        self.placer = Placer(placement, self.cuda.use)
        self.mode = make_mode(self.placer)
        self._patches = PatchSet()
        self.installed = False

    def install(self) -> None:
        """Teach torch the offline GPU, in this thread and in those started from now on."""
        if self.installed:
            return
        self.installed = True
        try:
            self._patch_cuda()
            self._patch_versions()
            self._patch_constructors()
            self._patch_python_callbacks()
        except BaseException:
            self.uninstall()  # half an offline GPU would be worse than none
            raise
        self._patches.on_undo(self.mode.remove)
        self.mode.__enter__()
        self._patches.replace(threading.Thread, "start", thread_start_in(self.mode))

    def uninstall(self) -> None:
        """Put everything back. Threads that still run keep a mode that does nothing."""
        self._patches.undo()
        self.installed = False

    def observe(self, launcher: Any, args: Any) -> None:
        """Take note of an offline launch."""
        note_launch(launcher, args)

    def _patch_cuda(self) -> None:
        import torch

        supported = stand_ins(self.cuda)
        for name in unsupported_names():
            self._replace(name, refusal(name, getattr(torch.cuda, name), self.cuda.gpu))
        for name, value in supported.items():
            self._replace(name, _named(name, value))
        for name, value in accelerator_stand_ins(self.cuda).items():
            if hasattr(torch, "accelerator") and hasattr(torch.accelerator, name):
                self._patches.replace(torch.accelerator, name, _named(name, value))
        self._patches.replace(torch.cuda, "_lazy_init", self.cuda.use)
        self._patches.replace(torch.cuda, "default_generators", (torch.default_generator,))

    def _replace(self, name: str, value: Any) -> None:
        """Replace a name in torch.cuda and where torch.cuda got it from (`torch.cuda.memory.memory_allocated`)."""
        import torch

        module, _, attribute = name.rpartition(".")
        owner = getattr(torch.cuda, module) if module else torch.cuda
        original = getattr(owner, attribute, None)
        if original is None:
            return  # this torch has no such call
        homes = [home for home in _submodules(torch.cuda) if vars(home).get(attribute) is original]
        for home in {id(home): home for home in (owner, *homes)}.values():
            self._patches.replace(home, attribute, value)

    def _patch_versions(self) -> None:
        import torch

        hip = self.cuda.gpu.backend == "hip"
        # Libraries tell NVIDIA from AMD by these two. A build that has the right one keeps its own.
        if hip or torch.version.cuda is None:
            self._patches.replace(torch.version, "cuda", None if hip else "12.8")
        if not hip or torch.version.hip is None:
            self._patches.replace(torch.version, "hip", "7.0.0" if hip else None)

    def _patch_constructors(self) -> None:
        import torch
        from torch.utils._device import DeviceContext

        self._patches.replace(torch, "Generator", _generator_class())
        self._patches.replace(torch, "load", self._load(torch.load))
        torch_function = self._device_context(DeviceContext.__torch_function__)
        self._patches.replace(DeviceContext, "__torch_function__", torch_function)
        autocast = torch.amp.autocast_mode.autocast
        self._patches.replace(autocast, "__enter__", _autocast_enter(autocast.__enter__))
        self._patches.replace(autocast, "__exit__", _autocast_exit(autocast.__exit__))

    def _load(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return torch.load that brings storages saved on a GPU, or asked for there, to the offline GPU."""

        @functools.wraps(original)
        def load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
            if map_location is None or is_cuda_device(map_location):
                map_location = functools.partial(self._land, always=map_location is not None)
            return original(f, map_location, *args, **kwargs)

        return load

    def _land(self, storage: Any, location: str, *, always: bool) -> Any:
        import torch

        if not (always or location.startswith("cuda")):
            return storage
        if self.placer.placement == "meta":
            storage = torch.UntypedStorage(storage.nbytes(), device="meta")
        mark_storage(storage)
        self.cuda.use()
        return storage

    def _device_context(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return DeviceContext's function that never asks a CPU-only torch for memory on a GPU.

        Where the mode comes after the context it does the rest; this is for calls from within torch, where it is away.
        """
        memory = self.placer.memory

        def torch_function(context: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            from torch.utils._device import _device_constructors

            kwargs = kwargs or {}
            asked = func in _device_constructors() and kwargs.get("device") is None
            if asked and context.device.type == "cuda" and not self.mode.is_entered():
                return func(*args, **{**kwargs, "device": memory})
            return original(context, func, types, args, kwargs)

        return torch_function

    def _patch_python_callbacks(self) -> None:
        import torch
        from torch.autograd.function import BackwardCFunction

        self._patches.replace(torch.library.Library, "impl", self._library_impl(torch.library.Library.impl))
        for name in ("apply", "apply_boxed"):
            if hasattr(BackwardCFunction, name):
                self._patches.replace(BackwardCFunction, name, self._backward(getattr(BackwardCFunction, name)))

    def _library_impl(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return Library.impl that also remembers Python kernels for CUDA, which torch will not choose here."""

        @functools.wraps(original)
        def impl(library: Any, op_name: Any, fn: Any, dispatch_key: str = "", **kwargs: Any) -> Any:
            result = original(library, op_name, fn, dispatch_key, **kwargs)
            key = dispatch_key or library.dispatch_key or ""
            if key in ("", "CUDA", "CompositeExplicitAutograd") and not kwargs.get("with_keyset"):
                name = op_name if isinstance(op_name, str) else op_name._schema.name
                self.placer.python_kernels[f"{library.ns}::{name.split('::')[-1].split('.')[0]}"] = fn
            return result

        return impl

    def _backward(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a custom Function's backward with the mode entered and its gradients on the GPU."""

        @functools.wraps(original)
        def apply(ctx: Any, *args: Any) -> Any:
            if not self.mode.active:
                return original(ctx, *args)
            if self.placer.place_gradients(getattr(ctx, "saved_tensors", ())):
                self.placer.place(args)
            with self.mode.entered():
                return original(ctx, *args)

        return apply


def _submodules(package: types.ModuleType) -> list[types.ModuleType]:
    return [
        value
        for value in vars(package).values()
        if isinstance(value, types.ModuleType) and value.__name__.startswith(f"{package.__name__}.")
    ]


def _generator_class() -> type:
    """Return torch.Generator that takes `device="cuda"`: a generator of the CPU that says where it is used."""
    import torch

    base = torch._C.Generator

    class Meta(type(base)):  # type: ignore[misc]  # torch is not type-checked here
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, base)

    class Generator(base, metaclass=Meta):  # type: ignore[misc, valid-type]  # torch is not type-checked here
        def __new__(cls, device: Any = "cpu") -> Any:
            return base.__new__(cls, "cpu" if is_cuda_device(device) else device)

        def __init__(self, device: Any = "cpu") -> None:
            self._offline = is_cuda_device(device)

        @property
        def device(self) -> Any:
            return torch.device("cuda", 0) if self._offline else base.device.__get__(self)

    return Generator


def _autocast_enter(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return autocast's `__enter__` that, for "cuda", also casts what really runs: operations on the CPU."""

    def enter(context: Any) -> Any:
        import torch

        result = original(context)
        context._offline = nullcontext()
        if context.device == "cuda" and not torch._jit_internal.is_scripting():
            context._offline = torch.autocast("cpu", dtype=context.fast_dtype, enabled=context._enabled)
            context._offline.__enter__()
        return result

    return enter


def _autocast_exit(original: Callable[..., Any]) -> Callable[..., Any]:
    def leave(context: Any, *exc_info: Any) -> Any:
        companion = context.__dict__.pop("_offline", None)
        if companion is not None:
            companion.__exit__(*exc_info)
        return original(context, *exc_info)

    return leave


def install_torch(gpu: GPU, placement: Placement) -> tuple[TorchPart, Callable[[], None]]:
    """Make code that says `device="cuda"` run on this torch; return what was installed and what undoes it."""
    part = TorchPart(gpu, placement)
    part.install()
    return part, part.uninstall
