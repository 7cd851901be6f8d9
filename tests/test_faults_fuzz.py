"""Files that are nearly whole, in great number: each reader gives something or raises what is told in a line."""

import pytest

from bench.faults import fuzz


def failures(runs: int) -> list[str]:
    return [failure for row in fuzz.campaign(runs) for failure in row["failures"]]


def test_a_reader_of_a_file_that_is_nearly_whole_fails_only_as_its_caller_expects() -> None:
    assert failures(3_200) == []


@pytest.mark.soak
def test_it_does_so_a_hundred_thousand_times() -> None:
    assert failures(100_000) == []
