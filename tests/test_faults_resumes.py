"""Wherever a run is interrupted, the same command makes what it would have made: weights, optimizer, average, record."""

from pathlib import Path

import pytest

from bench.faults import resumes
from bench.faults.resumes import RECIPES, Case, cases


def spread() -> list[Case]:
    """Of each recipe, on one process or on two, another place to interrupt it."""
    return [list(cases(recipe, 1 + k % 2, 7))[2 * k] for k, recipe in enumerate(RECIPES)]


@pytest.mark.soak
def test_interrupted_anywhere_it_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    found = resumes.campaign(spread(), tmp_path, at_once=2)
    assert {str(case): wrong for case, wrong in found.items() if wrong} == {}


@pytest.mark.soak
def test_killed_three_times_at_the_edges_of_epochs_it_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    case = Case("momentum", 1, "killed", (14, 15, 28))
    assert resumes.campaign([case], tmp_path) == {case: ""}


@pytest.mark.soak
def test_another_result_would_be_noticed(tmp_path: Path) -> None:
    other = resumes.undisturbed("mixup, plateau", 1, tmp_path / "other")
    wrong = resumes.carried_out(Case("momentum", 1, "stopped", (40,)), other, tmp_path / "stopped")
    assert "weights differs" in wrong
    assert "metrics.jsonl differs" in wrong
    assert "step-000000040/optimizer.safetensors differs" in wrong
