"""Mutations of what watches the CuTe DSL and TileLang."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

CUTE, TILE = "tests/monitors/test_cutedsl.py", "tests/monitors/test_tilelang.py"
DIRECT = "test_a_direct_call_is_compiled_found_in_memory_and_loaded_by_another_process"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "CuTe DSL: cute.compile is not watched as a whole",
        "pytest_jitguard/monitors/cutedsl.py",
        '        self.wrap(compiler, "CompileCallable._compile", self._cute_compile)\n',
        "",
        f"{CUTE}::TestScenes::test_what_fails_in_tracing_and_in_the_compiler_is_an_event",
    ),
    Mutation(
        "CuTe DSL: a load of the file cache is told as a compile",
        "pytest_jitguard/monitors/cutedsl.py",
        '                told.kind = "cache_load"\n',
        "                pass\n",
        f"{CUTE}::TestScenes::{DIRECT}",
    ),
    Mutation(
        "CuTe DSL: a cute.compile is an event for each hook that it passes",
        "pytest_jitguard/monitors/cutedsl.py",
        "        if around is not None and not around.taken:\n",
        "        if False:\n",
        f"{CUTE}::TestScenes::test_cute_compile_keeps_nothing_and_says_so",
    ),
    Mutation(
        "CuTe DSL: a plain int is not told from the library's own",
        "pytest_jitguard/monitors/_cutedsl_keys.py",
        '    if value is None or plain in SCALARS or plain == "str":\n',
        '    if value is None or plain == "str":\n',
        f"{CUTE}::TestScenes::test_a_plain_int_compiles_for_every_value_and_the_library_s_own_does_not",
    ),
    Mutation(
        "CuTe DSL: what is resident is not reconciled",
        "pytest_jitguard/monitors/cutedsl.py",
        "        if unseen:\n",
        "        if False:\n",
        f"{CUTE}::TestContract::test_finds_out_what_it_missed",
    ),
    Mutation(
        "TileLang: loads from disk are not watched",
        "pytest_jitguard/monitors/tilelang.py",
        '        self.wrap(kernels, "JITKernel._create_adapter_from_database", self._load)\n',
        "",
        f"{TILE}::TestScenes::test_a_kernel_is_compiled_found_in_memory_and_loaded_by_another_process",
    ),
    Mutation(
        "TileLang: a load is told as a compile",
        "pytest_jitguard/monitors/tilelang.py",
        'self._recorded("cache_load", kernel, frame, program, out_idx)',
        'self._recorded("compile", kernel, frame, program, out_idx)',
        f"{TILE}::TestScenes::test_a_kernel_is_compiled_found_in_memory_and_loaded_by_another_process",
    ),
    Mutation(
        "TileLang: compiles of the autotuner's threads are events of their own",
        "pytest_jitguard/monitors/tilelang.py",
        "                around.enter_context(self.recorder.inside(tuned))\n",
        "                pass\n",
        f"{TILE}::TestScenes::test_autotuning_is_one_event_with_the_compiles_of_its_threads_as_parts",
    ),
    Mutation(
        "TileLang: what is resident is not reconciled",
        "pytest_jitguard/monitors/tilelang.py",
        "            if unseen:\n",
        "            if False:\n",
        f"{TILE}::TestContract::test_finds_out_what_it_missed",
    ),
)
