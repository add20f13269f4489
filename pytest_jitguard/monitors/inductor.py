"""Watches Inductor: graphs that are compiled or loaded, with or without Dynamo above, and what it does when they run.

Every graph comes through `compile_fx.compile_fx`, whoever asks: `torch.compile`, `standalone_compile`, a server's own
backend. What only runs later does not: a backward that is compiled when it is first needed (`_compile_fx_inner`), and
artifacts that are loaded from a cache or a file (`wrap_post_compile`). A graph is a `compile` if code was generated
for it, or a compiler ran for it although its code was found in a cache; else a `cache_load`.

When a graph runs for the first time, its Triton kernels are benchmarked, and CUDA graphs are recorded: events of their
own (`autotune`, `graph_capture`). Their modules are imported late, so each is waited for. (torch 2.11 to 2.15)
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.monitors import Tells
from pytest_jitguard.monitors._inductor_graphs import Graph, artifact_name, graph_key, graph_name, hash_of, kernel_of
from pytest_jitguard.monitors._inductor_runs import best_of, cache_folder, captured, tuned_name
from pytest_jitguard.monitors._inductor_workers import Job, handing_over, inside_of
from pytest_jitguard.monitors._wrapping import HookGone, WrappingMonitor
from pytest_jitguard.patching import when_imported

Hook = Callable[[ModuleType], None]


class InductorMonitor(WrappingMonitor):
    """The monitor of `torch._inductor`: graphs, C++ libraries, compile workers, run-time tuning, CUDA graphs."""

    name: ClassVar[str] = "inductor"
    target: ClassVar[str] = "torch._inductor.compile_fx"
    distribution: ClassVar[str] = "torch"
    tested: ClassVar[str] = ">=2.11,<2.14,!=2.12.*"
    tells: ClassVar[Tells] = Tells(
        identity="the function that Dynamo compiles, else the operations of the graph; names of kernels and libraries",
        key="inputs of the graph: dtype, shape and device",
        kinds=("compile", "cache_load", "autotune", "graph_capture"),
        cache_load=True,
    )

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._local = threading.local()
        self._hooked_in = False
        self._half_imported: list[tuple[str, Hook]] = []
        self._names: dict[str, tuple[str, str]] = {}

    # -- hooking in and out --------------------------------------------------------------------------------------------

    def hook_in(self, module: ModuleType) -> None:
        """Wrap the ways into the compiler, and wait for the modules of what happens beside and after it."""
        self._hooked_in = True
        self.wrap(module, "compile_fx", self._compile_fx)
        self.wrap(module, "_compile_fx_inner", self._compile_inner)
        self.wrap(module, "fx_codegen_and_compile", self._generate)
        if hasattr(module, "cudagraphify_impl"):
            self.wrap(module, "cudagraphify_impl", self._record_untreed)
        for name, hook in (
            ("torch._functorch._aot_autograd.aot_autograd_result", self._hook_into_loads),
            ("torch._inductor.codecache", self._hook_into_cpp),
            ("torch._inductor.async_compile", self._hook_into_threads),
            ("torch._inductor.select_algorithm", self._hook_into_choices),
            ("torch._inductor.compile_worker.subproc_pool", self._hook_into_workers),
            ("torch._inductor.runtime.triton_heuristics", self._hook_into_autotuning),
            ("torch._inductor.runtime.coordinate_descent_tuner", self._hook_into_descent),
            ("torch._inductor.cudagraph_trees", self._hook_into_cudagraphs),
        ):
            self._wait_for(name, hook)

    def _wait_for(self, name: str, hook: Hook) -> None:
        if not when_imported(name, lambda module: self._imported(module, hook)):
            self._half_imported.append((name, hook))

    def _imported(self, module: ModuleType, hook: Hook) -> None:
        if not self._hooked_in:  # a hook for an import cannot be taken back
            return
        try:
            hook(module)
        except HookGone as gone:
            self.blind(str(gone))
        except Exception as error:  # noqa: BLE001 - an exception here would make the import fail
            self.blind(f"could not hook into {module.__name__}: {type(error).__name__}: {error}")

    def flush(self) -> None:
        """Wait on for the modules that were half imported."""
        late, self._half_imported = self._half_imported, []
        for name, hook in late:
            self._wait_for(name, hook)

    def uninstall(self) -> None:
        """Put back what is still ours; modules that are imported from now on are left alone."""
        self._hooked_in = False
        self._half_imported.clear()
        super().uninstall()

    def _hidden_folders(self) -> tuple[str, ...]:
        return (*self._hidden, f"{cache_folder()}/")  # where Inductor writes code

    def _hook_into_loads(self, module: ModuleType) -> None:
        self.wrap(module, "GenericAOTAutogradResult.wrap_post_compile", self._load)

    def _hook_into_cpp(self, module: ModuleType) -> None:
        self.wrap(module, "_worker_compile_cpp", self._build)

    def _hook_into_threads(self, module: ModuleType) -> None:
        self.wrap(module, "AsyncCompile.submit", self._hand_over)

    def _hook_into_choices(self, module: ModuleType) -> None:
        # The threads that compile the candidates of max-autotune come from a pool of each choice's own.
        if hasattr(module, "ThreadPoolExecutor"):
            self.wrap(module, "ThreadPoolExecutor", self._open_pool)

    def _hook_into_workers(self, module: ModuleType) -> None:
        self.wrap(module, "SubprocPool.submit", self._submit)

    def _hook_into_autotuning(self, module: ModuleType) -> None:
        self.wrap(module, "CachingAutotuner.benchmark_all_configs", self._benchmark)
        if hasattr(module.CachingAutotuner, "_combo_sequential_autotune"):
            self.wrap(module, "CachingAutotuner._combo_sequential_autotune", self._benchmark)

    def _hook_into_descent(self, module: ModuleType) -> None:
        # Not `CachingAutotuner.coordinate_descent_tuning`: that is called at every run of kernels which are not tuned.
        self.wrap(module, "CoordescTuner.autotune", self._descend)

    def _hook_into_cudagraphs(self, module: ModuleType) -> None:
        self.wrap(module, "CUDAGraphTreeManager.record_function", self._record)

    # -- graphs --------------------------------------------------------------------------------------------------------

    @property
    def _graphs(self) -> list[Graph]:
        """The graphs that the calling thread compiles or loads, the innermost last."""
        found: list[Graph] = self._local.__dict__.setdefault("graphs", [])
        return found

    def _compile_fx(self, compile_fx: Any, *args: Any, **kwargs: Any) -> Any:
        """Record a whole request: what AOTAutograd makes of a graph, forward and perhaps backward."""
        if self._graphs:  # it calls itself, once for every option that is set for the time of the call
            return compile_fx(*args, **kwargs)
        model, inputs = (*args, *(kwargs.get(name) for name in ("model_", "example_inputs_")[len(args) :]))[:2]
        return self._as_graph(model, inputs, compile_fx, args, kwargs)

    def _compile_inner(self, compile_inner: Any, *args: Any, **kwargs: Any) -> Any:
        """Note whether the graph was found in the cache; a request of its own only if nobody else asked for it."""
        if not self._graphs:
            inputs = args[1] if len(args) > 1 else kwargs.get("example_inputs")
            return self._as_graph(
                args[0] if args else kwargs.get("gm"),
                inputs,
                functools.partial(self._compile_inner, compile_inner),
                args,
                kwargs,
                backward=bool(kwargs.get("is_backward")),
            )
        graph = self._graphs[-1]
        generated = graph.generated
        result = compile_inner(*args, **kwargs)
        self.guarded("a graph", graph.found, hash_of(result), loaded=graph.generated == generated)
        return result

    def _as_graph(
        self, model: Any, inputs: Any, compile_: Any, args: Any, kwargs: Any, *, backward: bool = False
    ) -> Any:
        kernel, module = self.guarded("the name of a graph", self._names_for, model, backward=backward) or ("graph", "")
        with self.compiling(kernel, module) as told:
            graph = Graph(told)
            told.key = self.guarded("the key of a graph", graph_key, model, inputs)
            with graph.entered(self._graphs):
                result = compile_(*args, **kwargs)
            self.guarded("a graph", graph.conclude, self.recorder.events)
        return result

    def _names_for(self, model: Any, *, backward: bool) -> tuple[str, str]:
        """Return kernel and module: Dynamo's, if it asked; for a late backward those of the forward."""
        around = self.recorder.enclosing()
        compile_id = kernel_of("torch._guards", "CompileContext.current_compile_id")
        if around is not None and around.system == "dynamo":
            self._names[str(compile_id)] = (around.kernel, around.module)
        asked_by_dynamo = backward or (around is not None and around.system == "dynamo")
        known = self._names.get(str(compile_id)) if asked_by_dynamo else None
        kernel, module = known or (graph_name(model), "")
        return (f"{kernel} (backward)" if backward else kernel), module

    def _generate(self, generate: Any, *args: Any, **kwargs: Any) -> Any:
        if self._graphs:
            self._graphs[-1].generated += 1
        return generate(*args, **kwargs)

    def _load(self, load: Any, entry: Any, *args: Any, **kwargs: Any) -> Any:
        """Note that AOTAutograd found everything in its cache, or record that an artifact is loaded from a file."""
        if self._graphs:
            graph = self._graphs[-1]
            self.guarded("a graph", graph.found, artifact_name(entry), loaded=True)
            return load(entry, *args, **kwargs)
        hash = self.guarded("an artifact", artifact_name, entry) or ""
        with self.compiling("compiled_artifact", kind="cache_load") as told:
            graph = Graph(told, hashes=[hash] if hash else [], loads=1)
            with graph.entered(self._graphs):
                result = load(entry, *args, **kwargs)
            self.guarded("an artifact", graph.conclude, self.recorder.events)
        return result

    # -- below graphs: C++ libraries, threads, workers -----------------------------------------------------------------

    def _build(self, build: Any, lock_path: str, builders: Any, *args: Any, **kwargs: Any) -> Any:
        """Record a C++ library that is not there yet. Of one that is there, Inductor asks the same on every load."""
        missing = self.guarded("a C++ library", _missing, builders)
        if not missing:
            return build(lock_path, builders, *args, **kwargs)
        with self.compiling(missing[-1]) as told:
            told.detail = "written by the C++ compiler"
            told.artifact_hash = missing[-1]
            return build(lock_path, builders, *args, **kwargs)

    def _hand_over(self, submit: Any, pool: Any, task: Any) -> Any:
        """Have what Inductor's threads do for a graph count as part of it."""
        return submit(pool, inside_of(self.recorder, task))

    def _open_pool(self, open_: Any, *args: Any, **kwargs: Any) -> Any:
        return handing_over(open_(*args, **kwargs), self.recorder)

    def _submit(self, submit: Any, pool: Any, job: Any, *args: Any, **kwargs: Any) -> Any:
        """Record a kernel that a worker process is to compile."""
        opened: Job | None = self.guarded("a job", Job.open, job, args)
        if opened is None:
            return submit(pool, job, *args, **kwargs)
        opened.event = self.guarded("a job", self._begin, opened.kernel, "", "compile", None, None, _caller())
        try:
            future = submit(pool, job, *args, **kwargs)
        except BaseException as error:
            self.guarded("a job", opened.fail, self.recorder, error)
            raise
        self.guarded("a job", opened.watch, future, self.guarded, self.recorder)
        return future

    # -- when a graph runs ---------------------------------------------------------------------------------------------

    def _benchmark(self, benchmark: Any, tuner: Any, *args: Any, **kwargs: Any) -> Any:
        with self.compiling(self.guarded("a benchmark", tuned_name, tuner) or "", kind="autotune") as told:
            timings = benchmark(tuner, *args, **kwargs)
            told.detail = self.guarded("a benchmark", best_of, timings) or ""
        return timings

    def _descend(self, descend: Any, tuner: Any, *args: Any, **kwargs: Any) -> Any:
        with self.compiling(self.guarded("a descent", tuned_name, tuner) or "", kind="autotune") as told:
            best = descend(tuner, *args, **kwargs)
            told.detail = f"coordinate descent chose {best}"
        return best

    def _record(self, record: Any, manager: Any, inputs: Any, function: Any) -> Any:
        kernel, module = self.guarded("a CUDA graph", captured, manager, function, self._names) or ("cudagraph", "")
        with self.compiling(kernel, module, kind="graph_capture"):
            return record(manager, inputs, function)

    def _record_untreed(self, record: Any, *args: Any, **kwargs: Any) -> Any:
        kernel = getattr(args[0] if args else kwargs.get("model"), "__name__", "cudagraph")
        with self.compiling(str(kernel), kind="graph_capture"):
            return record(*args, **kwargs)


def _missing(builders: Any) -> list[str]:
    """Return the names of the files that builders are about to write."""
    targets = [Path(builder.get_target_file_path()) for builder in builders]
    return [target.name for target in targets if not target.exists()]


def _caller() -> Any:
    return sys._getframe(2)
