"""Several lives of a run at once: one works; an old one that wakes leaves with a line and changes nothing."""

from pathlib import Path

import pytest

from bench.faults import lives_at_once


@pytest.mark.soak
@pytest.mark.parametrize("kind", [kind for kind in lives_at_once.KINDS if kind != "time"])
def test_one_life_works(tmp_path: Path, kind: str) -> None:
    (row,) = lives_at_once.campaign(tmp_path, 1, [kind])
    assert row["failures"] == []
