"""The monitor of FlashInfer: modules built with ninja and nvcc, CuTe DSL kernels, cubins from the network."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pytest_jitguard.core.clock import monotonic
from pytest_jitguard.core.keys import Component, SpecializationKey
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Tells
from pytest_jitguard.monitors._builds import (
    AnyPath,
    BuildMonitor,
    Identity,
    Switch,
    TellingLock,
    identity,
    mapped_under,
    parameters,
    plan_of,
)

_CORE, _CUTE, _CUBINS = "flashinfer.jit.core", "flashinfer.jit.cute_dsl_core", "flashinfer.jit.cubin_loader"
_DENY = "FLASHINFER_DISABLE_JIT"


class DownloadFailed(Exception):
    """FlashInfer's download gave up, and said so with False; raised and caught in one function."""


class FlashInferMonitor(BuildMonitor):
    """Sees runs of ninja, first loads of built and of packaged modules, CuTe compiles and downloads.

    Its getters are memoised, so that nothing of this is reached once a module is in the process.
    """

    name: ClassVar[str] = "flashinfer"
    target: ClassVar[str] = "flashinfer.jit"
    distribution: ClassVar[str] = "flashinfer-python"
    tested: ClassVar[str] = ">=0.6.18,<0.7.3"
    tells: ClassVar[Tells] = Tells(
        identity="name of the module, of the CuTe kernel, of the cubin",
        key="parameters in the name",
        reason="no built module, the package of prebuilt ones absent, a source that is newer",
        kinds=("compile", "cache_load", "download", "lock_wait"),
        cache_load=True,
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._switch = Switch(_DENY, self.name)
        self._mapped_before: set[tuple[int, int]] = set()

    def hook_in(self, module: ModuleType) -> None:
        """Take the run of ninja, loads, the lock of a module, refusals, and what the other two modules do."""
        core = sys.modules[_CORE]
        self._mapped_before = set(mapped_under(self._folder()))
        self.wrap(core, "run_ninja", self._ninja)
        self.wrap(core, "JitSpecNvcc.load", self._load)
        self.wrap(core, "JitSpec.build_and_load", self._build_and_load)
        self.wrap(core, "FileLock", self._lock)
        self.hook_later(_CUTE, self._hook_cute)
        self.hook_later(_CUBINS, self._hook_cubins)

    def _hook_cute(self, module: ModuleType) -> None:
        self.wrap(module, "JitSpecCuteDsl.build", self._build_cute)
        self.wrap(module, "JitSpecCuteDsl._load_from_disk", self._load_cute)
        if hasattr(module.JitSpecCuteDsl, "compile_and_persist"):
            self.wrap(module, "JitSpecCuteDsl.compile_and_persist", self._build_cute)

    def _hook_cubins(self, module: ModuleType) -> None:
        self.wrap(module, "download_file", self._download)

    # -- ninja ---------------------------------------------------------------------------------------------------------

    def _ninja(self, run: Callable[..., Any], workdir: Any, ninja_file: Any, *args: Any, **kwargs: Any) -> Any:
        file = Path(ninja_file)
        with self._module(file) if file.name == "build.ninja" else self._several(file):
            return run(workdir, ninja_file, *args, **kwargs)

    @contextlib.contextmanager
    def _module(self, file: Path) -> Iterator[None]:
        name = file.parent.name
        with self.building(name, file.with_name(f"{name}.so"), inputs=_inputs(file), missing=self._missing_of(name)):
            yield

    @contextlib.contextmanager
    def _several(self, file: Path) -> Iterator[None]:
        """Record one run of ninja over many modules (`build_jit_specs`): one event for those that are due.

        What ninja builds although nothing said so is an event of its own, told when it is over.
        """
        before = {library: identity(library) for library in self.guarded("a list of modules", _listed, file) or ()}
        reasons = {library: self.guarded("a reason", self._why_due, library, before[library]) for library in before}
        due = {library: why for library, why in reasons.items() if why or before[library] is None}
        started, status = monotonic(), "ok"
        try:
            with self._run_over(due) if due else contextlib.nullcontext():
                yield
        except BaseException:
            status = "failed"
            raise
        finally:
            self._look_at_built(before, due, started, status)

    @contextlib.contextmanager
    def _run_over(self, due: Mapping[Path, str | None]) -> Iterator[None]:
        first, rest = next(iter(due)), len(due) - 1
        with self.compiling(f"{first.stem} and {rest} more" if rest else first.stem) as told:
            told.key = parameters(first.stem)
            told.reason = due[first] or ""
            yield

    def _why_due(self, library: Path, before: Identity | None) -> str:
        name = library.stem
        return self._why_built(name, library, before, _inputs(library.with_name("build.ninja")), self._missing_of(name))

    def _look_at_built(
        self, before: Mapping[Path, Identity | None], due: Collection[Path], started: float, status: str
    ) -> None:
        after = {library: identity(library) for library in before}
        for library, built in after.items():
            if built is not None and built != before[library]:
                self.known[built] = library.stem
                if library not in due:
                    reason = f"ninja built it again although {library} was there and nothing that it names is newer"
                    self.record(library.stem, kind="compile", started=started, reason=reason)
        if status == "failed" and not due and after:
            reason = "ninja failed over what was built and up to date, as far as its files told"
            self.record(next(iter(after)).stem, kind="compile", started=started, status=status, reason=reason)

    def _missing_of(self, name: str) -> Callable[[], str]:
        return lambda: self._missing(name)

    def _missing(self, name: str) -> str:
        """Say why a module was not there: not built here, and not among the prebuilt ones."""
        archs = ", ".join(self._archs())
        where = f"there was no {name}.so in {self._folder() / name}" + (f" for {archs}" if archs else "")
        has_package = getattr(sys.modules.get("flashinfer.jit.env"), "has_flashinfer_jit_cache", None)
        if has_package is None:
            return where
        if has_package():
            return f"{where}, nor is it among the prebuilt ones of flashinfer-jit-cache"
        return f"{where}, and flashinfer-jit-cache, which has prebuilt ones, is not installed"

    def _archs(self) -> list[str]:
        context = getattr(sys.modules[_CORE], "current_compilation_context", None)
        return sorted(f"sm_{major}{minor}" for major, minor, *_ in getattr(context, "TARGET_CUDA_ARCHS", ()))

    def _folder(self) -> Path:
        return Path(getattr(sys.modules.get("flashinfer.jit.env"), "FLASHINFER_JIT_DIR", "/nowhere"))

    # -- what is built already -----------------------------------------------------------------------------------------

    def _load(self, load: Callable[..., Any], spec: Any, so_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        library = self.guarded("a load", lambda: Path(so_path or spec.jit_library_path))
        if library is None:
            return load(spec, so_path, *args, **kwargs)
        with self.loading(spec.name, library):
            return load(spec, so_path, *args, **kwargs)

    def _lock(self, lock: Callable[..., Any], path: Any, *args: Any, **kwargs: Any) -> Any:
        return TellingLock(lock(path, *args, **kwargs), lambda: self.perhaps_waiting(Path(path).stem, path))

    def reconcile(self) -> None:
        """Look whether the hooks are reached, and whether every module that is mapped was announced."""
        super().reconcile()
        announced = {(found.device, found.inode) for found in list(self.known)} | self._mapped_before
        for file, path in mapped_under(self._folder()).items():
            if file not in announced:
                self.blind(f"{path} was loaded, and no event announced it")

    # -- CuTe DSL ------------------------------------------------------------------------------------------------------

    def _build_cute(self, build: Callable[..., Any], spec: Any, *args: Any, **kwargs: Any) -> Any:
        artifact: Any = getattr(spec, "object_path", None)
        before = identity(artifact)
        with self.compiling(spec.name) as told:
            told.key = self.guarded("a key", parameters, getattr(spec, "kernel_name", ""))
            told.reason = self.guarded("a reason", _why_cute, spec) or ""
            built = build(spec, *args, **kwargs)
            after = identity(artifact)
            if after is not None and after != before:
                self.known[after] = spec.name
                told.artifact_hash = str(after)
            return built

    def _load_cute(self, load: Callable[..., Any], spec: Any, *args: Any, **kwargs: Any) -> Any:
        with self.loading(spec.name, spec.object_path):
            return load(spec, *args, **kwargs)

    # -- the network ---------------------------------------------------------------------------------------------------

    def _download(self, download: Callable[..., Any], source: str, destination: str, *args: Any, **kwargs: Any) -> Any:
        fetched: Any = False
        with contextlib.suppress(DownloadFailed):
            with self.compiling(Path(destination).name, kind="download") as told:
                told.key = SpecializationKey((Component("source", "option", "", str(source)),))
                told.reason = f"{destination} was not there; the package flashinfer-cubin has the cubins of its version"
                fetched = download(source, destination, *args, **kwargs)
                if fetched is False:
                    told.detail = f"gave up fetching {source}"
                    raise DownloadFailed
        return fetched

    # -- FlashInfer's own refusal --------------------------------------------------------------------------------------

    def refuse(self, on: bool) -> None:
        """Make FlashInfer raise MissingJITCacheError where it would run ninja.

        That includes modules which are built and up to date, since it leaves it to ninja to say so: only prebuilt ones,
        and those that the process has, can be used then.
        """
        self._switch.turn(on)

    def _build_and_load(self, load: Callable[..., Any], spec: Any, *args: Any, **kwargs: Any) -> Any:
        started = monotonic()
        try:
            return load(spec, *args, **kwargs)
        except Exception as error:
            if type(error).__name__ == "MissingJITCacheError":
                reason = f"{self._switch.why()}; FlashInfer asks ninja for a module that it has built, too"
                self._switch.tell(error)
                self.record(spec.name, kind="compile", started=started, status="failed", reason=reason)
            raise


def _inputs(file: Path) -> list[AnyPath]:
    """Return the files that make a build of a module due if they are newer: its `build.ninja`, and what that names."""
    return [*plan_of(file).sources, file]


def _listed(file: Path) -> list[Path]:
    """Return the libraries of the modules that a ninja file of several includes."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    folders = [Path(line.partition(" ")[2].strip()).parent for line in lines if line.startswith("subninja ")]
    return [folder / f"{folder.name}.so" for folder in folders]


def _why_cute(spec: Any) -> str:
    if not spec.module_dir.exists():
        return f"there was no {spec.module_dir_name} in {spec.module_dir.parent}"
    if not spec.object_path.exists():
        return f"there was no {spec.object_path.name} in {spec.module_dir}"
    return f"{spec.object_path} was there, but for other sources, another CuTe DSL, or another GPU"
