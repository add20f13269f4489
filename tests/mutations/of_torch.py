"""Mutations of what watches Dynamo and Inductor."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

M = "pytest_jitguard/monitors"
DYNAMO, INDUCTOR = "tests/monitors/test_dynamo.py", "tests/monitors/test_inductor.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "Dynamo's attempts are not watched",
        f"{M}/dynamo.py",
        '        self.wrap(module, "_compile", self._compile)\n',
        "",
        f"{DYNAMO}::test_a_first_compile_is_one_event_and_a_hit_is_none",
    ),
    Mutation(
        "guards that failed are not asked for",
        f"{M}/dynamo.py",
        "            self._attempts[-1].guards = tuple(map(str, reasons or ()))\n",
        "            pass\n",
        f"{DYNAMO}::test_a_recompile_names_every_guard_that_failed",
    ),
    Mutation(
        "of several guards the first is enough",
        f"{M}/_dynamo_reasons.py",
        "    for reason in reasons:\n",
        "    for reason in reasons[:1]:\n",
        f"{DYNAMO}::test_a_recompile_names_every_guard_that_failed",
    ),
    Mutation(
        "uncompiled code is a compile that failed",
        f"{M}/dynamo.py",
        "                if not self._falls_back(error, attempt):\n",
        "                if True:\n",
        f"{DYNAMO}::test_the_limit_is_one_fallback_and_then_nothing_is_heard",
    ),
    Mutation(
        "what Dynamo holds is not counted",
        f"{M}/dynamo.py",
        "        for name in self._resident.unannounced():\n",
        "        for name in ():\n",
        f"{DYNAMO}::test_it_says_when_it_is_no_longer_reached",
    ),
    Mutation(
        "what the stance refused is not told",
        f"{M}/_dynamo_stance.py",
        "                self._refused(frame, error)\n",
        "                pass\n",
        f"{DYNAMO}::test_what_the_stance_refuses_is_told_on_every_thread",
    ),
    Mutation(
        "what is found on disk is a compile",
        f"{M}/_inductor_graphs.py",
        '"cache_load" if self.loads and not compiled else "compile"',
        '"compile"',
        f"{INDUCTOR}::test_what_is_found_on_disk_is_a_load",
    ),
    Mutation(
        "a compiler that runs for code from a cache is not counted",
        f"{M}/_inductor_graphs.py",
        '        compiled = self.generated or any(part.kind == "compile" for part in parts)\n',
        "        compiled = self.generated\n",
        f"{INDUCTOR}::test_a_saved_artifact_is_a_load_unless_a_compiler_runs_for_it",
    ),
    Mutation(
        "what threads do for a graph is no part of it",
        f"{M}/inductor.py",
        "        return submit(pool, inside_of(self.recorder, task))\n",
        "        return submit(pool, task)\n",
        f"{INDUCTOR}::test_one_compile_is_one_event_with_parts",
    ),
    Mutation(
        "C++ that is there already is compiled again",
        f"{M}/inductor.py",
        "    return [target.name for target in targets if not target.exists()]\n",
        "    return [target.name for target in targets]\n",
        f"{INDUCTOR}::test_what_is_found_on_disk_is_a_load",
    ),
    Mutation(
        "of the variants of a job one is told",
        f"{M}/_inductor_workers.py",
        "        for hash in dict.fromkeys(others):\n",
        "        for hash in ():\n",
        f"{INDUCTOR}::test_a_job_of_the_pool_is_one_event_with_its_variants",
    ),
    Mutation(
        "every job of the pool is cold",
        f"{M}/_inductor_workers.py",
        "        return not written or max(written) >= self.submitted\n",
        "        return True\n",
        f"{INDUCTOR}::test_a_job_that_finds_everything_is_a_load",
    ),
)
