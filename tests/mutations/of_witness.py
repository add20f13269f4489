"""Mutations of the CUPTI witness."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

ACCOUNTING, CUPTI = "pytest_jitguard/witness/accounting.py", "pytest_jitguard/witness/cupti.py"
ORDER = "pytest_jitguard/witness/_order.py"
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
        "witness: a forked child asks CUPTI for records",
        CUPTI,
        "    return _subscriber not in (0, os.getpid())\n",
        "    return False\n",
        T.format("cupti", "test_a_forked_child_of_one_that_only_asked_asks_for_no_records"),
    ),
    Mutation(
        "witness: CUPTI is left subscribed over a fork",
        CUPTI,
        "                self.library.stop()\n",
        "                pass\n",
        T.format("cupti", "test_a_forked_child_sees_modules_and_asks_for_no_records"),
    ),
    Mutation(
        "witness: who has forked stays away from CUPTI",
        CUPTI,
        "after_in_parent=_step_back, ",
        "",
        T.format("cupti", "test_a_forked_child_sees_modules_and_asks_for_no_records"),
    ),
    Mutation(
        "witness: of two calls in a row the first takes all",
        ORDER,
        "abs(middle - call.started)), default=None)",
        "call.started), default=None)",
        T.format("accounting", "test_the_nearer_call_is_the_owner"),
    ),
    Mutation(
        "witness: near goes before inside",
        ORDER,
        "key=lambda call: (outside(call), abs",
        "key=lambda call: (abs",
        T.format("accounting", "test_the_nearer_call_is_the_owner"),
    ),
    Mutation(
        "witness: what the compiler did in a call under way is told without the call",
        ORDER,
        "    return call.call if call else 0\n",
        "    return 0 if record.what == COMPILER else record.call\n",
        T.format("cupti", "test_a_drain_in_the_middle_of_a_call_tears_nothing_apart"),
    ),
    Mutation(
        "witness: a call that ends during a flush does not wait for its compiler",
        ORDER,
        "for record in (*self.waiting, *before) if",
        "for record in known if",
        T.format("cupti", "test_a_call_that_ends_while_cupti_is_flushed_waits_for_what_its_compiler_did"),
    ),
    Mutation(
        "witness: a call whose end was lost holds its thread's records for ever",
        ORDER,
        "    latest = {record.thread: record for record in began}\n",
        "    latest = {record.call: record for record in began}\n",
        T.format("accounting", "test_nothing_waits_for_a_call_whose_end_was_lost_once_its_thread_has_begun_another"),
    ),
    Mutation(
        "witness: NVRTC's compile takes as long as the store of its result",
        ACCOUNTING,
        "            found[-1] = jit._replace(started=before.started)\n",
        "            found.append(jit)\n",
        T.format("accounting", "test_what_nvrtc_stores_just_before_a_load_is_not_the_loads"),
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
