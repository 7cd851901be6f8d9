"""Files and words made to harm every reader: one line, nothing executed, little memory; the campaign, a part of it by default."""

from pathlib import Path

import pytest

from bench.faults import hostile, hostile_runs
from bench.faults.hostile import Case

SOME = 7  # one case in so many is struck by default


def every() -> list[object]:
    """The cases; the slow ones, those that need finished runs, and most others, for the soak."""
    cases = hostile.cases()
    slow = {case for case in cases if " GB" in case.name or case.reader.startswith("Parquet")}
    rare = {case for number, case in enumerate(cases) if number % SOME} | slow | {*hostile_runs.IN_RUNS}
    return [pytest.param(case, id=f"{case.reader}: {case.name}", marks=[pytest.mark.soak] * (case in rare)) for case in cases]


@pytest.mark.parametrize("case", every())
def test_what_is_made_to_harm_does_none(case: Case, tmp_path: Path) -> None:
    assert hostile.strike(case, tmp_path).wrong(case) == ""


def test_a_payload_that_is_executed_is_noticed(tmp_path: Path) -> None:
    found = hostile.strike(Case("", "", lambda work: hostile.canary(work).touch(), ("--version",), 0, ""), tmp_path)
    assert "the payload executed" in found.wrong(Case("", "", lambda work: None, (), 0, ""))
