"""Stopped on one number of processes, gone on with on another: the same bytes."""

import pytest

from bench.faults import elastic


@pytest.mark.soak
@pytest.mark.parametrize("seed", [0, 1])
def test_whichever_numbers_of_processes_take_turns_the_bytes_are_those_of_one(seed: int) -> None:
    cases = range(seed * len(elastic.PAIRS), (seed + 1) * len(elastic.PAIRS))
    assert elastic.run(cases) == {pair: [""] for pair in elastic.PAIRS}


@pytest.mark.soak
def test_without_it_they_are_not() -> None:
    (found,) = elastic.run([elastic.PAIRS.index((1, 2))], "resume").values()
    assert found[0].startswith("weights, metrics.jsonl differ")
