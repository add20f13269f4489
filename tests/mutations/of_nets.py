"""Mutations of the nets below the monitors: child processes that compile, and cache folders."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

M, T, C = "pytest_jitguard/monitors", "tests/monitors/test_toolchain.py", "tests/monitors/test_cache_folders.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "the net of compilers does not hear of them",
        f"{M}/toolchain.py",
        "            self._starting(event, args, _caller())\n",
        "            pass\n",
        f"{T}::test_a_compiler_that_nobody_claims_is_one_event",
    ),
    Mutation(
        "any run of a compiler is a compile",
        f"{M}/_toolchain_argv.py",
        "    if kind is None or any(word in _ASKS or _ASKS_LIKE.match(word) for word in _own(options)):\n",
        "    if kind is None:\n",
        f"{T}::test_questions_and_searches_are_none",
    ),
    Mutation(
        "a compiler that a monitor accounts for is an event of its own",
        f"{M}/toolchain.py",
        "        child.claim = claimant(self.recorder, frame)\n",
        "        child.claim = None\n",
        f"{T}::test_what_a_monitor_reports_is_one_event_with_two_witnesses",
    ),
    Mutation(
        "what runs beside a monitored compile is taken for its own",
        f"{M}/_toolchain_claims.py",
        "            if _is_calling(event.system, calling):\n",
        "            if True:\n",
        f"{T}::test_another_threads_compile_beside_a_monitored_one_is_nobodys",
    ),
    Mutation(
        "ninja counts though it had nothing to do",
        f"{M}/toolchain.py",
        "        if child.event is None and not (outputs or self._has_worked(child)):\n",
        "        if False:\n",
        f"{T}::test_ninja_counts_when_it_builds[in its folder]",
    ),
    Mutation(
        "each folder that exec tries is a compile",
        f"{M}/toolchain.py",
        '        program = os.fsdecode(args[0]) if event == "os.exec" else command.words[0]\n',
        "        program = command.words[0]\n",
        f"{T}::test_it_fails_the_test_that_compiled_and_each_child_is_heard_once",
    ),
    Mutation(
        "a late owner makes a compile longer",
        f"{M}/toolchain.py",
        "    if moment is None or not child.started <= moment < noticed - _NOTICED_AT_ONCE:\n",
        "    if True:\n",
        f"{T}::test_an_owner_who_asks_late_does_not_make_it_longer",
    ),
    Mutation(
        "nobody looks for compilers that a library started past Python",
        f"{M}/toolchain.py",
        "        if tree.has_children():\n",
        "        if False:\n",
        f"{T}::test_what_a_library_starts_past_python_is_found_while_it_runs",
    ),
    Mutation(
        "audit hooks that are refused are not missed",
        f"{M}/toolchain.py",
        "        if not audit.is_heard():\n",
        "        if False:\n",
        f"{T}::test_a_stranger_that_refuses_audit_hooks_makes_it_blind",
    ),
    Mutation(
        "new entries in cache folders are not looked for",
        f"{M}/cache_folders.py",
        "        for entry in sorted(self._snapshot.look(), key=lambda entry: entry.first):\n",
        "        for entry in ():\n",
        f"{C}::test_systems_without_a_monitor_are_one_event_each_and_none_when_warm",
    ),
    Mutation(
        "locks and temporary files are products",
        f"{M}/_cache_snapshot.py",
        "    return any(fnmatchcase(name, pattern) for pattern in _IGNORED)\n",
        "    return False\n",
        f"{C}::test_locks_logs_and_temporary_files_are_none[triton/0123/kernel.lock]",
    ),
    Mutation(
        "any event explains any entry",
        f"{M}/cache_folders.py",
        "        return overlaps and (event.system in entry.place.systems or event.system not in SYSTEMS)\n",
        "        return overlaps\n",
        f"{C}::test_an_outer_systems_event_explains_it_and_an_unrelated_ones_does_not",
    ),
    Mutation(
        "one compiler's process explains whatever is new anywhere",
        f"{M}/cache_folders.py",
        "        if is_strangers and self._place_of.get(event.id, entry.place) is not entry.place:\n",
        "        if False:\n",
        f"{C}::test_systems_without_a_monitor_are_one_event_each_and_none_when_warm",
    ),
    Mutation(
        "several workers look at the same folders",
        f"{M}/cache_folders.py",
        '        if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:\n',
        "        if False:\n",
        f"{C}::test_one_of_several_workers_does_not_look",
    ),
)
