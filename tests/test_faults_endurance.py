"""A run may write as many checkpoints as it likes."""

import pytest

from bench.faults import endurance


@pytest.mark.soak
def test_hundreds_of_checkpoints_leave_no_more_behind_than_a_few() -> None:
    assert endurance.campaign(300, 1)["failures"] == []
