"""Several lives of a run at once: one works; an old one that wakes leaves with a line and changes nothing."""

from pathlib import Path

import pytest

from bench.faults.lives_at_once import campaign


def failures(folder: Path, *kinds: str) -> list[str]:
    return [failure for row in campaign(folder, 1, kinds) for failure in row["failures"]]


@pytest.mark.soak
def test_of_several_starts_one_works_and_an_old_life_that_wakes_changes_nothing(tmp_path: Path) -> None:
    assert failures(tmp_path, "one run", "operation") == []


@pytest.mark.soak
def test_however_lives_meet_one_works(tmp_path: Path) -> None:
    assert failures(tmp_path, "shared artifacts", "line", "half-way", "two processes") == []
