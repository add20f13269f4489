"""CuPy without CUDA: the path of a kernel from its first call to a compiler, with CuPy's own names for each step."""

from __future__ import annotations

from cupy.cuda import compiler

__version__ = "14.2.0"

_memoized: dict[tuple[str, str, tuple[str, ...]], bytes] = {}


class RawKernel:
    """Compiled at its first call; afterwards the module is memoized, as CuPy's compiled code does it."""

    def __init__(self, code: str, name: str, options: tuple[str, ...] = (), backend: str = "nvrtc") -> None:
        self.code, self.name, self.options, self.backend = code, name, options, backend

    def __call__(self) -> bytes:
        key = (self.code, self.backend, self.options)
        if key not in _memoized:
            _memoized[key] = compiler._compile_module_with_cache(self.code, self.options, backend=self.backend)
        return _memoized[key]
