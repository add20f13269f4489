"""Mutations of the monitor of DeepGEMM."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

TESTS = "tests/monitors/test_deep_gemm.py"
MONITOR = "pytest_jitguard/monitors/deep_gemm.py"
PARTS = "pytest_jitguard/monitors/_deep_gemm_"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "DeepGEMM is led to no compiler of ours",
        f"{PARTS}door.py",
        "        os.environ.update(dict.fromkeys(COMPILER_VARIABLES, str(self.program)))\n",
        "",
        f"{TESTS}::test_a_cold_compile_is_one_event_with_the_call_that_caused_it",
    ),
    Mutation(
        "what waits for nvcc is cut short by our signal",
        MONITOR,
        "            signal.siginterrupt(signal.SIGURG, False)\n",
        "",
        f"{TESTS}::test_what_waits_for_nvcc_is_not_cut_short_by_the_signal",
    ),
    Mutation(
        "a compile is told by the compiler and by the folder",
        f"{PARTS}net.py",
        "            if _hash_of(entry) in explained:\n                continue\n",
        "",
        f"{TESTS}::test_an_inner_guard_takes_the_outer_one_s_place",
    ),
    Mutation(
        "the cache folders are not looked into",
        f"{PARTS}net.py",
        "        if not new:\n",
        "        if True:\n",
        f"{TESTS}::test_a_compiler_set_after_us_is_found_by_the_folders_and_said",
    ),
    Mutation(
        "whatever comes into a shared folder is ours",
        f"{PARTS}net.py",
        "            if why and (",
        "            if True and (",
        f"{TESTS}::test_what_strangers_compile_into_a_shared_folder_is_not_ours",
    ),
    Mutation(
        "a child's compiles are the guard's as well",
        f"{PARTS}spool.py",
        "        except FileExistsError:\n            return False\n",
        "        except FileExistsError:\n            return True\n",
        f"{TESTS}::test_a_monitored_child_reports_its_own_and_the_guard_what_nobody_does",
    ),
    Mutation(
        "questions of the version are compiles",
        f"{PARTS}nvcc.py",
        "        return None\n    return next((",
        '        return ""\n    return next((',
        f"{TESTS}::test_a_cold_compile_is_one_event_with_the_call_that_caused_it",
    ),
    Mutation(
        "nobody refuses to compile",
        f"{PARTS}nvcc.py",
        "    status = _refuse() if refused else _run(compiler, arguments)\n",
        "    status = _run(compiler, arguments)\n",
        f"{TESTS}::test_refused_compiles_raise_here_and_in_children_and_leave_nothing",
    ),
)
