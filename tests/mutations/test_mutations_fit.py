"""Mutations that fit no more would only be noticed where all of them run; this looks at their texts."""

from __future__ import annotations

from tests.conftest import ROOT
from tests.mutations.mutation import Mutation
from tests.mutations.test_mutations import HEAVY, MUTATIONS, OTHERS


def _fits(mutation: Mutation) -> bool:
    return (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.old) == 1


def test_each_changes_one_place_and_names_a_file_of_tests_that_is_there() -> None:
    every = (*MUTATIONS, *OTHERS, *(mutation for _, mutation in HEAVY))
    assert [f"{mutation.file}: {mutation.name}" for mutation in every if not _fits(mutation)] == []
    assert [mutation.name for mutation in every if not (ROOT / mutation.test.partition("::")[0]).exists()] == []
