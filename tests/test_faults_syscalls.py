"""Killed at any system call, a run loses no checkpoint, and leaves nothing that only looks whole."""

import pytest

from bench.faults import shim, syscalls, traced
from bench.faults.keepers import Ours, TorchSave

WAYS = [
    pytest.param(traced.run, id="strace", marks=pytest.mark.skipif(bool(traced.refused()), reason=f"strace: {traced.refused()}")),
    pytest.param(shim.run, id="shim"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("keep", [1, 2])
def test_killed_while_saving_the_new_checkpoint_or_the_one_before_loads(way: syscalls.Way, keep: int) -> None:
    tally = syscalls.sweep(syscalls.Keeping(Ours(keep)), cases=6, seed=keep, way=way)
    assert tally.failures == []
    assert tally.killed + tally.elsewhere == 6
    assert tally.killed > 3  # threads sync it: now and then a kill falls a call beside the one meant


@pytest.mark.parametrize("way", WAYS)
def test_a_file_written_in_place_is_seen_to_be_lost(way: syscalls.Way) -> None:
    tally = syscalls.sweep(syscalls.Keeping(TorchSave()), cases=4, way=way)
    if way is shim.run:  # of torch's own writing it sees nothing
        assert tally.points == 0
    else:
        assert not all(found.loads for found in tally.found)


@pytest.mark.soak
@pytest.mark.parametrize("until", ["prepare", "train", "run"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_command_that_was_killed_ends_with_the_same_bytes_when_run_again(until: str, processes: int) -> None:
    tally = syscalls.sweep(syscalls.Command(until, processes), cases=3)
    assert tally.failures == []
    assert tally.killed  # one is now and then killed a call before or after: a checkpoint is written beside the training
