"""Deliberate bugs are noticed by the tests."""

import pytest

from bench.faults import mutants
from bench.faults.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_each_bug_can_be_put_in(mutant: Mutant) -> None:
    compile(mutant.source(ROOT), mutant.file, "exec")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_each_bug_names_tests_that_are_there(mutant: Mutant) -> None:
    for file, _, name in (test.partition("::") for test in mutant.tests):
        assert not name or f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()


def test_a_bug_that_cannot_be_put_in_is_told_of() -> None:
    with pytest.raises(ValueError, match=r"errors\.py has 'no such text' 0 times; it must be there once"):
        Mutant("x", "errors.py", "no such text", "", ()).source(ROOT)


@pytest.mark.soak
def test_a_fifth_of_the_bugs_is_noticed() -> None:
    assert [failure for row in mutants.campaign(MUTANTS[::5]) for failure in row.get("failures", [])] == []
