"""Mutations of what children, servers and several workers need."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

P, S = "tests/processes", "tests/serving/test_serving_guard.py"
BIRTHS = f"{P}/test_births_and_deaths.py"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "what children report is not heard",
        "pytest_jitguard/session.py",
        "        for event in self.relatives.poll():\n",
        "        for event in ():\n",
        f"{S}::test_a_compile_in_a_rank_fails_the_test_that_asked_for_it",
    ),
    Mutation(
        "a record that comes after the verdict is forgotten",
        "pytest_jitguard/session.py",
        "                self._note_late(event, placed)\n",
        "                pass\n",
        "tests/session/test_session_relatives.py::test_a_record_that_comes_after_the_verdict_is_not_lost",
    ),
    Mutation(
        "a server's compiles are placed as pytest's own",
        "pytest_jitguard/processes/relatives.py",
        "    event.scope = process.scope\n",
        "    event.scope = ''\n",
        f"{S}::test_warmup_requests_are_warmup",
    ),
    Mutation(
        "a late answer is blamed on whoever is served",
        "pytest_jitguard/core/phases.py",
        "        return not senders or (window.owner, window.attempt) in senders\n",
        "        return True\n",
        f"{S}::test_what_is_late_all_the_same_is_nobody_s_violation",
    ),
    Mutation(
        "nobody waits for requests that are under way",
        "pytest_jitguard/session.py",
        "                attempt.failures = self.scopes.drain(attempt.nodeid, attempt.number)\n",
        "                pass\n",
        f"{S}::test_requests_that_are_still_answered_when_a_test_ends_are_its_own",
    ),
    Mutation(
        "what no test answers for fails nothing",
        "pytest_jitguard/core/findings.py",
        "    if facts.between:\n",
        "    if False:\n",
        f"{S}::test_what_is_served_to_nobody_fails_the_session",
    ),
    Mutation(
        "an unguarded test answers for its compiles",
        "pytest_jitguard/reporters/fleet.py",
        " and not (owners and set(owners) <= set(unguarded))",
        "",
        f"{S}::test_what_an_unguarded_test_compiled_on_a_server_hides_nothing",
    ),
    Mutation(
        "a silent server proves its green",
        "pytest_jitguard/core/findings.py",
        "    for server in facts.silent_servers:\n",
        "    for server in ():\n",
        f"{S}::test_a_server_of_which_nothing_is_heard_is_named_whatever_runs_it",
    ),
    Mutation(
        "a server's process is not counted",
        "pytest_jitguard/serving.py",
        "        self._server.start()\n        self._count_its_process()\n",
        "        self._server.start()\n",
        f"{S}::test_a_server_that_does_not_report_is_named",
    ),
    Mutation(
        "a load of what another rank built fails",
        "pytest_jitguard/core/kinship.py",
        "            event.origin = WARMUP\n",
        "            pass\n",
        f"{S}::test_a_load_of_what_another_rank_built_in_the_warmup_is_told_and_passes",
    ),
    Mutation(
        "stalls are held against no budget",
        "pytest_jitguard/core/findings.py",
        "    if exceeded := over_budget(facts.longest, facts.budgets):\n",
        "    if exceeded := []:\n",
        f"{S}::test_a_stall_over_budget_fails_the_session_whatever_the_mode",
    ),
    Mutation(
        "a shared server ends with the worker that started it",
        "pytest_jitguard/guarding.py",
        "                meeting.wait_for_guests()\n",
        "                pass\n",
        "tests/serving/test_serving_xdist.py::test_a_shared_server_is_alive_until_the_last_worker_has_left",
    ),
    Mutation(
        "one worker's guest is charged alone",
        "pytest_jitguard/serving.py",
        "            self._scope.id = attached.scope\n",
        "            pass\n",
        "tests/serving/test_serving_xdist.py"
        "::test_workers_that_share_a_server_are_all_charged_with_what_it_compiles_meanwhile",
    ),
    Mutation(
        "forked children are not followed",
        "pytest_jitguard/processes/bootstrap.py",
        "        os.register_at_fork(after_in_child=_forked)\n",
        "",
        BIRTHS,
    ),
    Mutation(
        "an orderly end says no goodbye",
        "pytest_jitguard/processes/bootstrap.py",
        "        atexit.register(_ending)\n",
        "",
        BIRTHS,
    ),
    Mutation(
        "what a parent began is ended by its fork",
        "pytest_jitguard/core/recorder.py",
        "        if not self._is_ours(event):\n            return\n",
        "",
        f"{P}/test_processes_bootstrap.py",
    ),
    Mutation(
        "children are never reconciled",
        "pytest_jitguard/processes/bootstrap.py",
        '            self.attempt("the last look at the monitors", self.monitors.settle)\n',
        "",
        f"{P}/test_processes_bootstrap.py",
    ),
    Mutation(
        "a guard in a child is monitored twice",
        "pytest_jitguard/processes/bootstrap.py",
        "        reporter.leave()\n",
        "        pass\n",
        f"{P}/test_processes_bootstrap.py",
    ),
    Mutation(
        "a deleted folder takes the evidence with it",
        "pytest_jitguard/processes/journal.py",
        "return self._is_linked() or self._is_discarded() or self._reinstate()",
        "return True",
        f"{P}/test_processes_journal.py",
    ),
    Mutation(
        "another user's journal is trusted",
        "pytest_jitguard/processes/journal.py",
        "if status.st_uid != os.geteuid():",
        "if False:",
        f"{P}/test_processes_journal.py",
    ),
    Mutation(
        "a pid is used once only",
        "pytest_jitguard/core/census.py",
        "one.started <= heard + _EARLY",
        "True",
        "tests/core/test_census.py",
    ),
    Mutation(
        "our own compiler has to report",
        "pytest_jitguard/processes/census.py",
        "tuple(argv[1:3]) == TOOL",
        "False",
        "tests/monitors/test_deep_gemm.py::test_our_compiler_is_no_process_that_has_to_report",
    ),
    Mutation(
        "a fork on its way to another program has to report",
        "pytest_jitguard/processes/census.py",
        "monotonic() - living.started < _ON_ITS_WAY",
        "False",
        "tests/processes/test_processes_census.py::test_a_fork_that_becomes_another_program_is_no_python",
    ),
    Mutation(
        "the start-up line needs what it starts",
        "pytest_jitguard.pth",
        '__import__("importlib.util").util.find_spec("_jitguard_start") and ',
        "",
        "tests/packaging/test_start_up.py",
    ),
    Mutation(
        "a foreign server is taken for ours",
        "pytest_jitguard/servers/server.py",
        "        self.port = self.port or free_port(self.command.host)\n        self._check_port()\n",
        "        self.port = self.port or free_port(self.command.host)\n",
        "tests/servers",
    ),
    Mutation(
        "requests share their first tokens",
        "pytest_jitguard/traffic/http.py",
        "salt_of(requests)",
        "0",
        "tests/traffic",
    ),
)
