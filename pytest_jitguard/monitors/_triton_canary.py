"""Something tiny to compile, to see whether a compile in this process would be noticed."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytest_jitguard.patching import PatchSet

_nonces = itertools.count(time.time_ns())


def is_canary(thing: Any) -> bool:
    """Tell whether a kernel function, source or autotuner is a canary of any monitor in this process."""
    while thing is not None and thing is not _canary_kernel:
        thing = vars(thing).get("base_fn", vars(thing).get("fn")) if hasattr(thing, "__dict__") else None
    return thing is not None


def compile_canary() -> None:
    """triton.compile"""  # noqa: D400 - the name of what is proven, for the message
    import triton
    from triton.compiler import ASTSource

    function = triton.runtime.jit.JITFunction(_canary_kernel)
    try:
        # A new constant each time, so that no cache can answer; an explicit target, so that no driver is asked.
        source = ASTSource(function, {"nonce": "constexpr"}, {(0,): next(_nonces)}, {})
        with throw_away_cache(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The option, because Triton 3.9 warns once if nobody decided it: that one belongs to the user.
            triton.compile(source, target=_any_target(), options={"enable_fp_fusion": True})
    finally:
        registry = getattr(triton.runtime.jit, "_triton_jit_function_registry", {})  # from 3.7
        for name in [name for name, known in list(registry.items()) if known is function]:
            registry.pop(name, None)


def tuning_canary() -> None:
    """Autotuner._bench"""  # noqa: D400 - the name of what is proven, for the message
    import triton

    tuner = triton.runtime.autotuner.Autotuner.__new__(triton.runtime.autotuner.Autotuner)
    tuner.base_fn, tuner.nargs = _canary_kernel, {}
    vars(tuner)["do_bench"] = lambda call, quantiles: [0.0, 0.0, 0.0]
    tuner._bench(config=triton.Config({}))


def _canary_kernel(nonce: "constexpr"):  # type: ignore  # noqa: ANN202, F821, PGH003, UP037 - Triton reads the text
    pass


def _any_target() -> Any:
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget

    candidates = [GPUTarget("cuda", 80, 32), GPUTarget("hip", "gfx942", 64)]
    return next(t for t in candidates if any(b.compiler.supports_target(t) for b in backends.values()))


@contextlib.contextmanager
def throw_away_cache() -> Iterator[None]:
    """Keep what the calling thread compiles out of every cache; other threads' compiles go where they always go."""
    from triton import knobs
    from triton.runtime.cache import FileCacheManager

    thread, ordinary, patches = threading.get_ident(), knobs.cache.manager_class, PatchSet()
    with tempfile.TemporaryDirectory(prefix="jitguard-canary-") as folder:

        def manager(key: str, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == thread:
                return _Nothing(Path(folder))
            return (ordinary or FileCacheManager)(key, *args, **kwargs)

        patches.replace(knobs.cache, "manager_class", manager)
        try:
            yield
        finally:
            patches.undo()


class _Nothing:
    """A cache manager that knows no file, and keeps what it is given until the folder goes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has_file(self, filename: str) -> bool:
        return False

    def get_file(self, filename: str) -> str | None:
        return None

    def get_group(self, filename: str) -> dict[str, str] | None:
        return None

    def put(self, data: Any, filename: str, binary: bool = True) -> str:
        path = self._folder / filename
        path.write_bytes(data if isinstance(data, bytes) else str(data).encode("utf-8"))
        return str(path)

    def put_group(self, filename: str, group: dict[str, str]) -> str:
        return ""
