"""Mutations of the CUPTI witness."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

ACCOUNTING, CUPTI = "pytest_jitguard/witness/accounting.py", "pytest_jitguard/witness/cupti.py"
C, T = "pytest_jitguard/witness/_cupti.c", "tests/witness/test_witness_{}.py::{}"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "witness: one event accounts for every module of that name",
        ACCOUNTING,
        "                    self.spent.add(event.id)\n",
        "                    pass\n",
        T.format("accounting", "test_two_variants_of_one_kernel_need_two_events"),
    ),
    Mutation(
        "witness: the thread does not matter",
        ACCOUNTING,
        "        return event.thread == seen.thread if seen.is_known else event.thread not in self._living\n",
        "        return True\n",
        T.format("accounting", "test_whatever_is_loaded_while_the_thread_compiles_is_part_of_it"),
    ),
    Mutation(
        "witness: times go before names",
        ACCOUNTING,
        "(self._just_made, self._made_meanwhile, self._meanwhile, self._just_before, self._made_once)",
        "(self._meanwhile, self._just_before, self._just_made, self._made_meanwhile, self._made_once)",
        T.format("accounting", "test_names_go_before_times"),
    ),
    Mutation(
        "witness: library code is taken for generated",
        "pytest_jitguard/witness/images.py",
        "return self.kind != WRAPPER and self.size < LARGE",
        "return True",
        T.format("accounting", "test_library_code_is_told_apart"),
    ),
    Mutation(
        "witness: what is left over is not reported",
        CUPTI,
        "        self.unattributed += [self._report(sighting) for sighting in accounting.joined(left)]\n",
        "        pass\n",
        T.format("cupti", "test_a_module_that_nobody_accounts_for_is_unattributed"),
    ),
    Mutation(
        "witness: a subscription that is gone goes unnoticed",
        CUPTI,
        "        if not self.library.is_alive():\n",
        "        if False:\n",
        T.format("cupti", "test_a_subscription_that_was_taken_away_makes_blind"),
    ),
    Mutation(
        "witness: a forked child tells what its parent saw",
        C,
        "    jitguard_release(jitguard_drain()); /* flushes nothing: no activities */\n",
        "",
        T.format("cupti", "test_a_forked_child_subscribes_for_itself"),
    ),
    Mutation(
        "witness: CUPTI's clock is believed",
        C,
        "return (uint64_t)((int64_t)stamp + atomic_load(&clock_offset));",
        "return stamp;",
        T.format("cupti", "test_cuptis_clock_is_translated"),
    ),
    Mutation(
        "witness: records that are lost are not missed",
        C,
        "        atomic_fetch_sub(&pending, 1);\n        atomic_fetch_add(&lost, 1);\n        return NULL;\n    }\n"
        "    struct record *record = calloc",
        "        atomic_fetch_sub(&pending, 1);\n        return NULL;\n    }\n    struct record *record = calloc",
        T.format("cupti", "test_more_than_fits_makes_blind"),
    ),
)
