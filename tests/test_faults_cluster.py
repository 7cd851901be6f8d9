"""What can happen to a job of SLURM leaves no trace in what comes out; the campaign on a cluster, in small."""

from pathlib import Path

import pytest
from cluster import missing

from bench.faults import cluster


@pytest.mark.slurm
def test_requeued_or_with_a_node_lost_that_wakes_later_a_job_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    if why := missing():
        pytest.skip(why)
    cases = [("scontrol requeue", 0), ("node frozen, wakes at the end", 1)]
    outcomes = [*cluster.campaign(cases, tmp_path, "train.epochs=6")]
    assert [failure for outcome in outcomes for failure in outcome.failures] == []
    assert [outcome.lives for outcome in outcomes] == [2, 2]
