"""W&B that is not to be had costs a run neither its bits nor a point; the campaign of outages, in small."""

import pytest

from bench.faults import outages
from bench.faults.outages import Case

SOON = [Case("junk", "log")]  # whose client gives up at once


def wrong(chosen: list[Case]) -> dict[str, str]:
    return {str(case): found.wrong for case, found in outages.campaign(chosen) if found.wrong}


def test_a_run_whose_service_babbles_ends_with_the_same_bits_and_the_service_gets_every_point_later() -> None:
    assert wrong(SOON) == {}


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_whatever_happens_to_the_service_whenever_nothing_is_lost() -> None:
    chosen = outages.cases()
    assert len(chosen) in (36, 40)  # without root there is no disk to fill
    assert wrong(chosen) == {}
