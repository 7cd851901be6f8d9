"""The campaign of hangs, in small."""

import pytest

from bench.faults import hangs


@pytest.mark.soak
def test_each_kind_of_hang_is_ended_in_time_and_named() -> None:
    chosen = hangs.cases(len(hangs.KINDS), seed=1)
    assert [f"{case}: {wrong}" for case, wrong, _ in hangs.campaign(chosen) if wrong] == []
