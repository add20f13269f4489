"""Watch NVRTC from Python, by each of its three doors: the bindings, `cuda.core`, and torch's own handle of it.

Nothing is cached in the process, so every call compiles. What reaches the library past Python, as CuPy (which has a
monitor) and ATen's jiterator do, is seen by the witness alone. The doors belong to three packages of different versions
that may come and go one without the other, hence three monitors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Tells
from pytest_jitguard.monitors._cuda_source import (
    UNNAMED,
    digest,
    kernel_name,
    kernels_in_image,
    kernels_in_source,
    key_of,
    text_of,
)
from pytest_jitguard.monitors._wrapping import Compiling, WrappingMonitor

_MOST_PROGRAMS = 1_000
"""How many programs are remembered: between their making and their compilation, and as compiled."""

_KEEP = (
    "# torch.cuda._compile_kernel compiles at every call: no warmup makes that a hit;\n"
    "# call it once in the warmup and keep the kernel that it returns"
)


class _OfCudaPython(WrappingMonitor):
    """What watches a part of the namespace `cuda`."""

    def version_of(self, module: ModuleType) -> str:
        """Return the version of the distribution; the `__version__` of `cuda` warns when it is read (12.9)."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return ""


class _Refused(Exception):
    """NVRTC returned an error code. It never leaves this module: the caller gets the code."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


def _make_room(programs: dict[Any, Any]) -> None:
    """Drop the oldest of too many programs: those that are never compiled pile up."""
    while len(programs) >= _MOST_PROGRAMS:
        del programs[next(iter(programs))]


class _Compiled:
    """What was compiled in this process. None of the doors keeps anything, so whoever asks again compiles again."""

    def __init__(self) -> None:
        self._programs: dict[Hashable, None] = {}

    def again(self, program: Hashable) -> bool:
        """Tell whether this was noted before, and note it."""
        if program in self._programs:
            return True
        _make_room(self._programs)
        self._programs[program] = None
        return False


@dataclass
class _Program:
    """What is known of a program before it is compiled."""

    name: str = ""
    kernels: tuple[str, ...] = ()
    source: str = ""
    expressions: list[str] = field(default_factory=list)


class NvrtcMonitor(_OfCudaPython):
    """The monitor of `cuda.bindings.nvrtc.nvrtcCompileProgram`, by whatever name of a module it is called."""

    name: ClassVar[str] = "nvrtc"
    target: ClassVar[str] = "cuda.bindings.nvrtc"
    distribution: ClassVar[str] = "cuda-bindings"
    tested: ClassVar[str] = ">=12.9,<13.6"
    tells: ClassVar[Tells] = Tells(
        identity="the only kernel of the program, else the program's name",
        key="template arguments, macros, options, target, hash of the source",
        reason="nearest compiled program; NVRTC keeps none, so each call compiles",
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._programs: dict[int, _Program] = {}
        self._compiled = _Compiled()

    def hook_in(self, module: ModuleType) -> None:
        """Wrap the compile, and where programs are made and get their names."""
        self._nvrtc = module
        self.wrap(module, "nvrtcCompileProgram", self._compile, public=True)
        self.wrap(module, "nvrtcCreateProgram", self._create)
        self.wrap(module, "nvrtcAddNameExpression", self._add_expression)

    def _create(self, create: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        made = create(*args, **kwargs)
        self.guarded("a program", self._remember, made, _named(("src", "name"), args, kwargs))
        return made

    def _remember(self, made: Any, given: Mapping[str, Any]) -> None:
        if int(made[0]) != 0:
            return
        _make_room(self._programs)
        source = given.get("src") or b""
        program = _Program(text_of(given.get("name")), kernels_in_source(source), digest(source))
        self._programs[int(made[1])] = program

    def _add_expression(self, add: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.guarded("a name expression", self._note_expression, _named(("prog", "name_expression"), args, kwargs))
        return add(*args, **kwargs)

    def _note_expression(self, given: Mapping[str, Any]) -> None:
        program = self._programs.get(int(given["prog"]))
        if program is not None:
            program.expressions.append(text_of(given["name_expression"]))

    def _compile(self, compile: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = _named(("prog", "numOptions", "options"), args, kwargs)
        program = self.guarded("a program", self._program, given) or _Program()
        kernel = kernel_name(program.expressions, program.kernels, program.name)
        try:
            with self.compiling(kernel) as told:
                result = compile(*args, **kwargs)
                self.guarded("a compile", self._describe, told, program, given)
                told.detail = self.guarded("a compile that failed", self._refusal, result, given) or ""
                if told.detail:
                    raise _Refused(result)
                return result
        except _Refused as refused:
            return refused.result

    def _program(self, given: Mapping[str, Any]) -> _Program | None:
        return self._programs.get(int(given["prog"]))

    def _describe(self, told: Compiling, program: _Program, given: Mapping[str, Any]) -> None:
        options = [text_of(option) for option in given.get("options") or ()]
        told.key = key_of(options, program.expressions, source=program.source[:12])
        if program.source:
            told.artifact_hash = digest(program.source, *options, *program.expressions)
            if self._compiled.again(told.artifact_hash):
                told.reason = "this very program was compiled before, and NVRTC keeps none: each call compiles it anew"

    def _refusal(self, result: Any, given: Mapping[str, Any]) -> str:
        """Say why NVRTC compiled nothing, empty if it did: it returns a code, and never raises."""
        code = result[0]
        if int(code) == 0:
            return ""
        _, size = self._nvrtc.nvrtcGetProgramLogSize(given["prog"])
        log = b" " * size
        self._nvrtc.nvrtcGetProgramLog(given["prog"], log)
        first = next(iter(log.decode(errors="replace").strip("\0 \n").splitlines()), "")
        return ": ".join(part for part in (getattr(code, "name", str(code)), first) if part)


class CudaCoreMonitor(_OfCudaPython):
    """The monitor of `cuda.core.Program.compile`, which calls NVRTC, libNVVM or nvJitLink past the bindings' attribute.

    Since cuda.core 1.0 what is not in the caller's own program cache goes through a function of the module. Up to 0.5
    the class is Python and calls the bindings: their events are parts of ours. Between them there is no hook point.
    """

    name: ClassVar[str] = "cuda_core"
    target: ClassVar[str] = "cuda.core._program"
    """Not `cuda.core`: that package takes over another one's `__name__` while it is imported, and no hook finds it."""
    distribution: ClassVar[str] = "cuda-core"
    tested: ClassVar[str] = ">=1.0,<1.3"
    tells: ClassVar[Tells] = Tells(
        identity="the expression that was asked for, else the only kernel of the result, else the program's name",
        key="template arguments, kind of the result, compiler",
        reason="nearest compiled program; loads from the program cache that a caller passes are no events",
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._compiled = _Compiled()

    def hook_in(self, module: ModuleType) -> None:
        """Wrap what compiles when the program cache has nothing."""
        inner = "_program_compile_uncached"
        self.wrap(module, inner if hasattr(module, inner) else "Program.compile", self._compile)

    def _compile(self, compile: Callable[..., Any], program: Any, *args: Any, **kwargs: Any) -> Any:
        given = _named(("target_type", "name_expressions"), args, kwargs)
        expressions = [text_of(expression) for expression in given.get("name_expressions") or ()]
        with self.compiling(kernel_name(expressions, ())) as told:
            backend = str(getattr(program, "backend", ""))
            told.key = key_of((), expressions, output=text_of(given.get("target_type")), compiler=backend)
            result = compile(program, *args, **kwargs)
            self.guarded("a compile", self._describe, told, expressions, result)
            return result

    def _describe(self, told: Compiling, expressions: list[str], result: Any) -> None:
        image = getattr(result, "code", b"")
        told.kernel = kernel_name(expressions, kernels_in_image(image), getattr(result, "name", ""))
        told.artifact_hash = digest(image) if image else None
        told.reason = self._why(told)

    def _why(self, told: Compiling) -> str:
        """Say what a key does not, that lacks source and options: cuda.core shows them to nobody."""
        same_key = self._compiled.again((told.kernel, told.key))
        if told.artifact_hash and self._compiled.again(told.artifact_hash):
            return "this very binary was made before, and cuda.core keeps none but in a cache that its caller passes"
        if same_key:
            return "it was compiled before from another source, or with other options, which cuda.core does not show"
        return ""


class _Torch(NamedTuple):
    kernel_source: Any = ""
    kernel_name: Any = UNNAMED
    compute_capability: Any = None
    cuda_include_dirs: Any = None
    nvcc_options: Any = None


class TorchNvrtcMonitor(WrappingMonitor):
    """The monitor of `torch.cuda._compile_kernel`, which has a handle of NVRTC (or hipRTC) of its own."""

    name: ClassVar[str] = "torch_nvrtc"
    target: ClassVar[str] = "torch.cuda"
    distribution: ClassVar[str] = "torch"
    tested: ClassVar[str] = ">=2.11,<2.14,!=2.12.*"
    tells: ClassVar[Tells] = Tells(
        identity="the kernel that was asked for",
        key="template arguments, macros, options, target, hash of the source",
        reason="nearest compiled kernel; torch keeps none, so each call compiles",
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._compiled = _Compiled()

    def hook_in(self, module: ModuleType) -> None:
        """Wrap the one function that compiles. Releases without `_compile_kernel` never do, and there is no hook."""
        if hasattr(module, "_compile_kernel") or hasattr(module, "compile_kernel"):
            self.wrap(module, "_utils._nvrtc_compile", self._compile)

    def _compile(self, compile: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        asked = _Torch(**{k: v for k, v in _named(_Torch._fields, args, kwargs).items() if k in _Torch._fields})
        expression = text_of(asked.kernel_name)
        with self.compiling(kernel_name([expression], ())) as told:
            self.guarded("a kernel", self._describe, told, asked, expression)
            return compile(*args, **kwargs)

    def _describe(self, told: Compiling, asked: _Torch, expression: str) -> None:
        # Before the call: torch may append its own options to the caller's list.
        options = [text_of(option) for option in asked.nvcc_options or ()]
        source, arch = digest(asked.kernel_source), text_of(asked.compute_capability)
        target = [f"-arch=sm_{arch}"] if arch else []
        told.key = key_of([*target, *options], [expression], source=source[:12])
        told.artifact_hash = digest(source, expression, *target, *options)
        told.cure = _KEEP
        if self._compiled.again(told.artifact_hash):
            told.reason = "this very kernel was compiled before, and torch keeps none: each call compiles it anew"


def _named(names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments by name, those that were given by position first."""
    return {**dict(zip(names, args, strict=False)), **kwargs}
