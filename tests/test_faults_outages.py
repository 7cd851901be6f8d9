"""W&B that is not to be had costs a run neither its bits nor a point; the campaign of outages, in small."""

import pytest

from bench.faults import outages
from bench.faults.outages import Case


def wrong(chosen: list[Case]) -> dict[str, str]:
    return {str(case): found.wrong for case, found in outages.campaign(chosen) if found.wrong}


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_whatever_happens_to_the_service_whenever_nothing_is_lost() -> None:
    cases = outages.cases()
    assert len(cases) in (36, 40)  # without root there is no disk to fill
    assert wrong(cases[::5]) == {}  # of the four moments each comes twice
