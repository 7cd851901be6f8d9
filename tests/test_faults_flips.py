"""What is kept, harmed at random: noticed before use, the file named, and made good."""

from collections.abc import Iterator

import pytest

from bench.faults import flips, flips_peers
from bench.faults.flips import WHOLE_WAY, Kept
from pipeline.runtime import files

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    with flips.kept() as kept:
        yield kept


def failures(kept: Kept, *numbers: int) -> list[str]:
    return [failure for row in flips.campaign(kept, numbers) for failure in row["failures"]]


def test_harm_to_anything_that_is_kept_is_noticed_and_named(kept: Kept) -> None:
    assert failures(kept, *(number for number in range(80) if number % WHOLE_WAY)) == []


def test_without_digests_it_would_not_be(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "damage", lambda folder, outputs: "")
    assert failures(kept, 4, 5, 6, 7, 8, 9, 10, 11) != []


@pytest.mark.soak
def test_what_comes_out_in_the_end_is_that_of_an_undisturbed_run(kept: Kept) -> None:
    assert failures(kept, *range(0, 8 * WHOLE_WAY, WHOLE_WAY)) == []


@pytest.mark.soak
@pytest.mark.filterwarnings("default")  # what others warn of while they load is theirs
def test_others_load_some_of_it_without_a_word() -> None:
    assert all(row["silently wrong"] > 0 for row in flips_peers.flips(range(20)))
