"""Every safety net removed once, in a copy of the source: a named test must notice.

The product has no switches for this. A mutation is a text replacement; if the text is not there any more, the mutation
itself fails, so that the list cannot rot.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.mutations import (
    of_builds,
    of_contract,
    of_deep_gemm,
    of_dsls,
    of_nets,
    of_processes,
    of_tier3,
    of_torch,
    of_witness,
)
from tests.mutations.mutation import Mutation

pytestmark = pytest.mark.mutation

PLUGIN, MONITORS = "tests/plugin", "tests/monitors"
START_UP = ("_jitguard_start.py", "pytest_jitguard.pth", "pytest_jitguard.start")
FOLDERS = ("pytest_jitguard", "tests", "examples", "docs", "tools")
COPIED = (*FOLDERS, "conftest.py", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", *START_UP)


MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "monitors are not armed",
        "pytest_jitguard/assemble.py",
        "    monitors.arm()\n",
        "",
        f"{PLUGIN}/test_guard_phases.py::test_each_moment_of_a_test_is_warmup_serving_or_teardown",
    ),
    Mutation(
        "the warmup is skipped",
        "pytest_jitguard/guard.py",
        "            self._warmup_failure = self._warm_session()\n",
        "            pass\n",
        f"{PLUGIN}/test_guard_warmups.py::test_session_warmup_counts_for_all_and_each_worker_warms_itself",
    ),
    Mutation(
        "nothing is parked",
        "pytest_jitguard/monitors/residents.py",
        "            _quietly(monitor, monitor.forget, tokens)\n",
        "            pass\n",
        f"{PLUGIN}/test_guard_independence.py::test_two_tests_of_one_unwarmed_kernel_are_both_violated",
    ),
    Mutation(
        "what a fixture warmed counts for everybody",
        "pytest_jitguard/core/residency.py",
        "return set(resident) - self.of((SHARED, *groups))",
        "return set(resident) - self.of(self._groups)",
        f"{PLUGIN}/test_guard_wide_fixtures.py::test_verdicts_follow_use_and_not_order",
    ),
    Mutation(
        "a rerun starts with a clean slate",
        "pytest_jitguard/judging.py",
        "        if first is not None and not verdict.violated:\n",
        "        if False:\n",
        f"{PLUGIN}/test_guard_outcomes.py::test_reruns_cannot_wash_a_violation_off",
    ),
    Mutation(
        "attribution by end time",
        "pytest_jitguard/judging.py",
        "return self._phases.place(event.started, event.scope)",
        "return self._phases.place(event.ended or event.started, event.scope)",
        f"{PLUGIN}/test_guard_background.py::test_a_compile_is_blamed_on_the_test_in_which_it_began",
    ),
    Mutation(
        "a skip outranks a violation",
        "pytest_jitguard/guard.py",
        "isinstance(error, _SKIPS):\n            _drop_recorded_skip(item)\n            raise UnexpectedCompile",
        "False:\n            _drop_recorded_skip(item)\n            raise UnexpectedCompile",
        f"{PLUGIN}/test_guard_outcomes.py::test_what_the_body_does_besides",
    ),
    Mutation(
        "a skip inside a unittest replaces the violation",
        "pytest_jitguard/guard.py",
        "        recorded.clear()\n",
        "        pass\n",
        f"{PLUGIN}/test_guard_outcomes.py::test_unittest_cases",
    ),
    Mutation(
        "findings do not fail the session",
        "pytest_jitguard/core/findings.py",
        'return [finding for finding in found if finding.name not in waived and finding.severity == "error"]',
        "return []",
        f"{PLUGIN}/test_guard_findings.py::test_a_finding_fails_the_session_unless_waived_by_name",
    ),
    Mutation(
        "a load from disk passes",
        "pytest_jitguard/core/kinds.py",
        'FAILING_KINDS = ("compile", "cache_load", "autotune", "fallback", "download")',
        'FAILING_KINDS = ("compile", "autotune", "fallback", "download")',
        f"{PLUGIN}/test_guard_markers.py::test_arguments_configure_the_judgement",
    ),
    Mutation(
        "expected kernels are taken for reached",
        "pytest_jitguard/judging.py",
        "            if not self._reached(pattern, attempt):\n",
        "            if False:\n",
        f"{PLUGIN}/test_guard_markers.py::test_arguments_configure_the_judgement",
    ),
    Mutation(
        "known debt swallows new debt",
        "pytest_jitguard/core/baseline.py",
        "return debt_of(event, explanation) in self.debts",
        "return bool(self.debts)",
        f"{PLUGIN}/test_guard_findings.py::test_known_debt_passes_new_debt_fails_and_paid_debt_must_be_struck",
    ),
    Mutation(
        "a marker that names a monitor judges nothing",
        "pytest_jitguard/core/policy.py",
        "return kind in self.fail_on and (self.monitors is None or event.system in self.monitors)",
        "return kind in self.fail_on and self.monitors is None",
        f"{PLUGIN}/test_guard_markers.py::test_arguments_configure_the_judgement",
    ),
    Mutation(
        "warmups run inside the first test's timeout",
        "pytest_jitguard/guard.py",
        "    @pytest.hookimpl(wrapper=True, tryfirst=True)\n    def pytest_runtest_protocol(",
        "    @pytest.hookimpl(wrapper=True, trylast=True)\n    def pytest_runtest_protocol(",
        f"{PLUGIN}/test_guard_warmups.py::test_warmups_run_outside_pytest_timeout",
    ),
    Mutation(
        "a usage error of a worker is lost",
        "pytest_jitguard/conclusion.py",
        "        if report.usage_errors:\n            raise",
        "        if False:\n            raise",
        "tests/settings/test_settings_bad_input.py::test_all_complaints_about_all_markers_come_at_once",
    ),
    Mutation(
        "a torn line is trusted",
        "pytest_jitguard/processes/journal.py",
        'record if isinstance(record, dict) and record.get("record") in RECORDS else None',
        "record",
        "tests/processes/test_processes_journal.py::test_a_torn_line_and_foreign_lines_are_reported_and_the_rest_is_read",
    ),
    Mutation(
        "cold leaves Triton's cache where it is",
        "pytest_jitguard/core/places.py",
        'Place("TRITON_CACHE_DIR", "triton"',
        'Place("TRITON_CACHE_ELSEWHERE", "triton"',
        "tests/session/test_session_cold.py",
    ),
    Mutation(
        "Triton: the listener is not put into its slot",
        "pytest_jitguard/monitors/_triton_listener.py",
        "        self._slots.listener = listener\n",
        "",
        f"{MONITORS}/test_triton_compiles.py::test_cold_compile_disk_load_and_hit",
    ),
    Mutation(
        "Triton: the listener that was there is forgotten",
        "pytest_jitguard/monitors/_triton_listener.py",
        "                previous(**compiled)\n",
        "                pass\n",
        f"{MONITORS}/test_triton_liveness.py::test_a_listener_that_was_there_is_kept_called_and_restored",
    ),
    Mutation(
        "Triton: a canary is believed unseen",
        "pytest_jitguard/monitors/triton.py",
        "        if not self._canary_seen:\n",
        "        if False:\n",
        f"{MONITORS}/test_triton_liveness.py::test_a_replaced_listener_is_found_by_the_canary",
    ),
    Mutation(
        "Triton: a canary whose beginning nobody saw is believed",
        "pytest_jitguard/monitors/triton.py",
        "        if not self._canary_begun:\n            # Somebody",
        "        if False:\n            # Somebody",
        f"{MONITORS}/test_triton_liveness.py::test_the_canary_gets_the_truth_test_back_from_a_stranger",
    ),
    Mutation(
        "Triton: a miss does not look who is in the slot",
        "pytest_jitguard/monitors/triton.py",
        '        self._guarded("the listener\'s place", self._seat.take)\n',
        "",
        f"{MONITORS}/test_triton_liveness.py::test_under_a_stranger_a_compile_that_raises_is_seen",
    ),
    Mutation(
        "Triton: what a lower listener is told again is an event again",
        "pytest_jitguard/monitors/_triton_listener.py",
        "if not self.seat.is_told(call) else None",
        "",
        f"{MONITORS}/test_triton_liveness.py::test_a_stranger_goes_below_ours_and_all_are_called_once",
    ),
    Mutation(
        "Triton: interpreted kernels are not watched",
        "pytest_jitguard/monitors/triton.py",
        '        if "interpret" not in self.waived:\n',
        "        if False:\n",
        f"{MONITORS}/test_triton_liveness.py::test_an_interpreted_kernel_makes_blind",
    ),
    Mutation(
        "Triton: what is resident is not reconciled",
        "pytest_jitguard/monitors/_triton_lookups.py",
        "                unseen.append(name)\n",
        "                pass\n",
        f"{MONITORS}/test_triton_liveness.py::test_a_replaced_listener_is_found_by_what_is_resident",
    ),
    Mutation(
        "Triton: a compile that raises leaves no event",
        "pytest_jitguard/monitors/triton.py",
        '            self.recorder.end(opened.event, status="failed", key=key, cure=cure)\n',
        "            pass\n",
        f"{MONITORS}/test_triton_failures.py::test_an_error_in_the_source",
    ),
    Mutation(
        "Triton: a load from disk is told as a compile",
        "pytest_jitguard/monitors/triton.py",
        'kind="cache_load" if compiled["cache_hit"] else "compile"',
        'kind="compile"',
        f"{MONITORS}/test_triton_compiles.py::test_cold_compile_disk_load_and_hit",
    ),
    Mutation(
        "Triton: benchmarks are not watched",
        "pytest_jitguard/monitors/triton.py",
        '        self._patches.wrap(Autotuner, "_bench", self._bench)\n',
        "",
        f"{MONITORS}/test_triton_autotune.py::test_a_new_tuning_key_without_a_new_specialization",
    ),
    Mutation(
        "the beginning is written after the end",
        "pytest_jitguard/core/recorder.py",
        "            self.events.append(event)\n            self._sink(event.begin_record())\n",
        "            self.events.append(event)\n",
        f"{MONITORS}/test_triton_compiles.py::test_a_kill_in_the_middle_leaves_the_beginning_in_the_journal",
    ),
    Mutation(
        "a pasted entry aligns every pointer",
        "pytest_jitguard/monitors/_triton_entry.py",
        '        if "unaligned" in seen:\n            # One',
        '        if "nothing" in seen:\n            # One',
        f"{MONITORS}/test_triton_entry.py::test_the_pasted_entry_makes_the_launch_a_hit",
    ),
    Mutation(
        "hits pass through a line of ours",
        "pytest_jitguard/monitors/triton.py",
        '        self._patches.wrap(Autotuner, "_bench", self._bench)\n',
        '        self._patches.wrap(Autotuner, "_bench", self._bench)\n'
        '        self._patches.wrap(JITFunction, "run", lambda run, *args, **kwargs: run(*args, **kwargs))\n',
        f"{MONITORS}/test_triton_compiles.py::test_ten_thousand_hits_pass_through_no_line_of_ours",
    ),
)


def copy_of_the_source(folder: Path) -> Path:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def run(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "", test]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "JITGUARD"))}
    return subprocess.run(
        command, cwd=folder, env={**environment, "PYTHONPATH": str(folder)}, capture_output=True, text=True, check=False
    )


OTHERS: tuple[Mutation, ...] = (
    *of_builds.MUTATIONS,
    *of_contract.MUTATIONS,
    *of_deep_gemm.MUTATIONS,
    *of_dsls.MUTATIONS,
    *of_nets.MUTATIONS,
    *of_processes.MUTATIONS,
    *of_tier3.MUTATIONS,
    *of_torch.MUTATIONS,
    *of_witness.MUTATIONS,
)
"""Of processes, and of the monitors below Triton's: too many for each run of CI; `./check -m mutation` has them all."""


def _needs(library: str) -> pytest.MarkDecorator:
    """Skip without a library. It is looked for, and not imported; its parent package is imported for that."""
    try:
        is_here = importlib.util.find_spec(library) is not None
    except ModuleNotFoundError:
        is_here = False
    return pytest.mark.skipif(not is_here, reason=f"needs {library}")


HEAVY = [(library, mutation) for library, some in of_tier3.HEAVY.items() for mutation in some]
ALL = (
    *MUTATIONS,
    *(pytest.param(mutation, marks=pytest.mark.soak) for mutation in OTHERS),
    *(pytest.param(mutation, marks=[pytest.mark.soak, _needs(library)]) for library, mutation in HEAVY),
)


@pytest.mark.parametrize("mutation", ALL, ids=lambda mutation: re.sub(r"\W+", "-", mutation.name))
def test_a_named_test_notices(mutation: Mutation, tmp_path: Path) -> None:
    folder = copy_of_the_source(tmp_path)
    target = folder / mutation.file
    text = target.read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1, f"{mutation.file} does not have this text exactly once: {mutation.old!r}"
    target.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    done = run(folder, mutation.test)
    # Exit 1 is a test that failed. 2 to 5 would be a mistake of the mutation: a syntax error, a test that is gone.
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-1000:]


def test_the_named_tests_pass_on_an_unbroken_copy(tmp_path: Path) -> None:
    folder = copy_of_the_source(tmp_path)
    for test in sorted({mutation.test for mutation in MUTATIONS}):
        done = run(folder, test)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
