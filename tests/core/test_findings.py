"""What makes a session's green worthless, in plain English."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest

from pytest_jitguard.core.findings import Facts, findings


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (Facts(), "no test ran"),
        (Facts(not_run={"skipped": 2, "not run": 0}), "no test ran (2 skipped)"),
        (Facts(tests=1), "1 test ran and it was not guarded"),
        (Facts(tests=3, not_run={"skipped": 1}), "3 tests ran, none of them guarded (1 skipped)"),
        (Facts(guarded=1), "1 guarded test ran, but no monitor was ever armed in any process"),
        (Facts(guarded=2), "2 guarded tests ran, but no monitor was ever armed in any process"),
    ],
)
def test_a_green_that_proves_nothing(facts: Facts, message: str) -> None:
    assert [finding.message for finding in findings(facts)] == [message]


@pytest.mark.parametrize(
    ("facts", "remedy"),
    [
        (Facts(), "mark tests with *"),
        (Facts(tests=3, not_run={"skipped": 1}), "mark tests with *"),
        (Facts(not_run={"failed in setup": 1}), ""),
        (Facts(guarded=1), "was the JIT library imported at all?"),
        (Facts(guarded=1, silent_servers=["vllm (vllm serve m)"]), "* only if its processes report"),
    ],
)
def test_the_remedy_fits_the_cause(facts: Facts, remedy: str) -> None:
    assert fnmatch(findings(facts)[0].remedy, remedy)


def test_one_record_is_one_record() -> None:
    found = findings(Facts(guarded=1, ever_armed=frozenset({"triton"}), lost_records=1))
    assert [finding.message for finding in found] == ["1 record could not be written or read back"]
