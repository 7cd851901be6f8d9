"""What can happen to a job of SLURM leaves no trace in what comes out; the campaign on a cluster, in small."""

import tempfile
from pathlib import Path

import pytest
from cluster import missing

from bench.faults import cluster


@pytest.mark.slurm
def test_requeued_or_with_a_node_lost_that_wakes_later_a_job_ends_as_if_nothing_had_been() -> None:
    if why := missing():
        pytest.skip(why)
    cases = [("scontrol requeue", 0), ("node frozen, wakes at the end", 1)]
    with tempfile.TemporaryDirectory() as folder:  # a test's own has too long a path for SLURM's sockets
        outcomes = [*cluster.campaign(cases, Path(folder), "train.epochs=6")]
    assert [failure for outcome in outcomes for failure in outcome.failures] == []
    assert [outcome.lives for outcome in outcomes] == [2, 2]
