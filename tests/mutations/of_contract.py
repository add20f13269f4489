"""The contract suite, the door for monitors of others, and the table of systems."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

D = "tests/plugin/test_discovery.py"
P = "tests/docs/test_monitors_page.py"
BROKEN = f"{P}::test_a_broken_monitor_does_not_keep_the_contract"

MUTATIONS = (
    Mutation(
        "a monitor of others stays in the guard",
        "pytest_jitguard/processes/bootstrap.py",
        "**{name: (target,) for name, target in inherited.targets.items() if target}",
        "",
        f"{D}::test_a_published_monitor_watches_the_guard_and_its_children",
    ),
    Mutation(
        "a class of a conftest travels to children",
        "pytest_jitguard/discovery.py",
        "if not given.travels)",
        "if given.travels)",
        f"{D}::test_import_strings_of_a_hook_travel_and_classes_stay",
    ),
    Mutation(
        "a broken distribution is found out in the middle of the session",
        "pytest_jitguard/discovery.py",
        "        _check_published(name, published)\n",
        "        pass\n",
        f"{D}::test_a_broken_one_names_its_distribution_and_the_cure",
    ),
    Mutation(
        "a distribution takes the name of a monitor of ours",
        "pytest_jitguard/discovery.py",
        "    if name in BUILTIN or name == _AUTO:\n",
        "    if name == _AUTO:\n",
        f"{D}::test_names_of_ours_are_refused",
    ),
    Mutation(
        "the contract renames nothing",
        "pytest_jitguard/_contract_ways.py",
        "    rename(hook)\n",
        "    pass\n",
        f"{BROKEN}[takes what is renamed for granted]",
    ),
    Mutation(
        "the contract's threads share a subject",
        "pytest_jitguard/_contract_checks.py",
        "[copy.copy(subject) for _ in",
        "[subject for _ in",
        "tests/contract/test_contract_fakejit.py",
    ),
    Mutation(
        "the contract counts no frames",
        "pytest_jitguard/_contract_bench.py",
        "            called.append(",
        "            str(",
        f"{P}::test_the_example_keeps_the_contract",
    ),
    Mutation(
        "the contract lets a compile pass that nobody saw",
        "pytest_jitguard/_contract_bench.py",
        "        if self.blind:\n            return",
        "        if True:\n            return",
        f"{BROKEN}[does not look after a reload]",
    ),
    Mutation(
        "what is shown on a GPU counts as shown everywhere",
        "tools/systems_table.py",
        'for name in ("gpu", "heavy")',
        'for name in ("heavy",)',
        "tests/docs/test_systems_page.py::test_a_module_s_mark_counts_for_its_tests",
    ),
)
