"""Mutations of the monitors of NVRTC, CuPy, numba, numba-cuda and JAX."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

M, T, H = "pytest_jitguard/monitors", "tests/monitors", "tests/heavy"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "the bindings' compile is not hooked",
        f"{M}/nvrtc.py",
        '        self.wrap(module, "nvrtcCompileProgram", self._compile)\n',
        "",
        f"{T}/test_nvrtc.py::test_the_same_program_is_compiled_at_every_call_and_is_the_same",
    ),
    Mutation(
        "cuda.core's compile is not hooked",
        f"{M}/nvrtc.py",
        '        self.wrap(module, inner if hasattr(module, inner) else "Program.compile", self._compile)\n',
        "",
        f"{T}/test_nvrtc.py::test_loads_from_a_callers_program_cache_are_no_compiles",
    ),
    Mutation(
        "CuPy's look-up is not hooked",
        f"{M}/cupy.py",
        "        self.wrap(module, _WIDE, self._look_up)\n",
        "",
        f"{T}/test_cupy.py::TestContractWithTheFake::test_what_another_process_left_on_disk_is_a_load",
    ),
    Mutation(
        "numba's event is not listened to",
        f"{M}/numba.py",
        "        self._events.register(_EVENT, self._listener)\n",
        "",
        f"{T}/test_numba.py::test_types_and_flags_are_the_key",
    ),
    Mutation(
        "a numba listener that was thrown out is not missed",
        f"{M}/numba.py",
        '            self.blind("the listener of numba:compile was thrown out")\n',
        "            pass\n",
        f"{T}/test_numba.py::test_a_listener_that_was_thrown_out_is_missed",
    ),
    Mutation(
        "what NVRTC refuses passes for compiled",
        f"{M}/nvrtc.py",
        "                if told.detail:\n                    raise _Refused(result)\n",
        "",
        f"{T}/test_nvrtc.py::test_a_refused_program_is_a_failed_event_and_its_caller_gets_the_code",
    ),
    Mutation(
        "expressions of an NVRTC program are not noted",
        f"{M}/nvrtc.py",
        '            program.expressions.append(text_of(given["name_expression"]))\n',
        "            pass\n",
        f"{T}/test_nvrtc.py::test_templates_are_told_by_their_arguments",
    ),
    Mutation(
        "programs that are never compiled pile up",
        f"{M}/nvrtc.py",
        "        while len(self._programs) >= _MOST_PROGRAMS:\n",
        "        while False:\n",
        f"{T}/test_nvrtc.py::test_programs_that_are_never_compiled_do_not_pile_up",
    ),
    Mutation(
        "torch's compiles by NVRTC are not hooked",
        f"{M}/nvrtc.py",
        '            self.wrap(module, "_utils._nvrtc_compile", self._compile)\n',
        "            pass\n",
        f"{T}/test_nvrtc.py::test_a_kernel_of_torch_has_key_and_cure",
    ),
    Mutation(
        "a kernel in a comment names the program",
        f"{M}/_cuda_source.py",
        '_COMMENTS.sub(" ", text_of(source))',
        "text_of(source)",
        f"{T}/test_nvrtc.py::test_kernels_are_found_in_sources",
    ),
    Mutation(
        "a load from CuPy's cache passes for a compile",
        f"{M}/cupy.py",
        '            told.kind = "cache_load"\n',
        '            told.kind = "compile"\n',
        f"{T}/test_cupy.py::TestContractWithTheFake::test_what_another_process_left_on_disk_is_a_load",
    ),
    Mutation(
        "nvcc asked for its version passes for a compile",
        f"{M}/cupy.py",
        "            if source:  #",
        "            if True:  #",
        f"{T}/test_cupy.py::test_asking_nvcc_for_its_version_is_no_compile_of_a_kernel",
    ),
    Mutation(
        "CuPy's compiler within a look-up is an event of its own",
        f"{M}/cupy.py",
        "            if not self._open:\n",
        "            if True:\n",
        f"{T}/test_cupy.py::test_a_kernel_has_name_options_and_source",
    ),
    Mutation(
        "what numba loads from disk is not seen",
        f"{M}/numba.py",
        "        if loaded is not None:\n",
        "        if False:\n",
        f"{T}/test_numba.py::test_a_load_is_told_by_the_key_of_its_compile",
    ),
    Mutation(
        "a callee's compile is no part of its caller's",
        f"{M}/numba.py",
        "        inside.__enter__()\n",
        "",
        f"{T}/test_numba.py::test_a_function_that_is_called_is_a_part_of_its_caller",
    ),
    Mutation(
        "numba's listener is left behind",
        f"{M}/numba.py",
        "        self._patches.on_undo(self._stop_listening)\n",
        "",
        f"{T}/test_numba.py::test_the_listener_is_gone_once_disarmed",
    ),
    Mutation(
        "a load of a ufunc passes for a compile",
        f"{M}/numba.py",
        '            here.ufuncs[-1][1].kind = "cache_load"\n',
        "            pass\n",
        f"{T}/test_numba.py::test_a_load_is_told_by_the_key_of_its_compile",
    ),
    Mutation(
        "resident versions are not reconciled",
        f"{M}/numba.py",
        "            if len(dispatcher.overloads) > self._announced.get(dispatcher, 0):\n",
        "            if False:\n",
        f"{T}/test_numba.py::TestContract::test_finds_out_what_it_missed",
    ),
    Mutation(
        "a cure for numba that means other types",
        f"{M}/_numba_types.py",
        ' if means == types else ""',
        "",
        f"{T}/test_numba.py::test_no_cure_is_given_that_means_something_else",
    ),
)

HEAVY: tuple[Mutation, ...] = (
    Mutation(
        "JAX's compile is not hooked",
        f"{M}/jax.py",
        '        self.wrap(module, "compile_or_get_cached", self._compile)\n',
        "",
        f"{H}/test_jax.py::test_arguments_are_told_by_name_type_and_shape",
    ),
    Mutation(
        "a compile past JAX's function is not seen",
        f"{M}/jax.py",
        "        if event != _COMPILED:\n",
        "        if True:\n",
        f"{H}/test_jax.py::test_a_compile_past_the_function_is_seen_by_its_duration",
    ),
    Mutation(
        "numba-cuda's kernels are not hooked",
        f"{M}/numba_cuda.py",
        '        self.wrap(module, "CUDADispatcher.compile", self._compile)\n',
        "",
        f"{H}/test_numba_cuda.py::test_a_version_that_is_there_is_no_event",
    ),
    Mutation(
        "a load from JAX's cache passes for a compile",
        f"{M}/jax.py",
        "        if event == _LOADED and self._open:\n",
        "        if False:\n",
        f"{H}/test_jax.py::test_loads_are_told_from_compiles_though_somebody_threw_out_all_listeners",
    ),
    Mutation(
        "JAX's listeners are not put back",
        f"{M}/jax.py",
        '        self.guarded("listening", self._listen)\n',
        "",
        f"{H}/test_jax.py::test_loads_are_told_from_compiles_though_somebody_threw_out_all_listeners",
    ),
    Mutation(
        "a duration that was announced is a second event",
        f"{M}/jax.py",
        '        if self._local.__dict__.pop("announced", False):\n            return\n',
        "",
        f"{H}/test_jax.py::test_arguments_are_told_by_name_type_and_shape",
    ),
    Mutation(
        "a version that numba-cuda has is an event",
        f"{M}/numba_cuda.py",
        " or types in dispatcher.overloads:\n            return compile(dispatcher, signature",
        ":\n            return compile(dispatcher, signature",
        f"{H}/test_numba_cuda.py::test_a_version_that_is_there_is_no_event",
    ),
    Mutation(
        "a load of numba-cuda's passes for a compile",
        f"{M}/numba_cuda.py",
        '            self._here.kind = "cache_load"\n',
        '            self._here.kind = "compile"\n',
        f"{H}/test_numba_cuda.py::TestContract::test_what_another_process_left_on_disk_is_a_load",
    ),
    Mutation(
        "a thread that waited for numba-cuda passes for one that compiled",
        f"{M}/numba_cuda.py",
        'self._here.kind or "lock_wait"',
        'self._here.kind or "compile"',
        f"{H}/test_numba_cuda.py::test_a_thread_that_waited_for_another_one_s_compile_compiled_nothing",
    ),
)
"""Those that need a heavy library."""
