"""A loss or a gradient that is no number, wherever and whatever it is."""

import pytest

from bench.faults import nonfinite


@pytest.mark.soak
def test_the_policy_is_followed_by_all_processes_and_nothing_of_it_is_kept() -> None:
    assert [failure for row in nonfinite.campaign(9) for failure in row["failures"]] == []
