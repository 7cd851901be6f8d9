"""Stopped under one strategy and number of processes, gone on with under another."""

import pytest

from bench.faults import worlds


@pytest.mark.soak
def test_it_ends_where_one_process_does_and_has_seen_the_same_images() -> None:
    (row,) = worlds.run([("DDP on 2", "one process")])
    assert not row["failures"]
    assert row["steps with the same images"] == "36 of 36"


@pytest.mark.soak
@pytest.mark.parametrize("way", worlds.WAYS)
def test_four_processes_take_over_from_any_way_and_any_way_from_four(way: str) -> None:
    pairs = [pair for four in ("DDP on 4", "FSDP on 4") for pair in ((way, four), (four, way))]
    assert [row["failures"] for row in worlds.run(list(dict.fromkeys(pairs)))] == [[]] * len(set(pairs))
