"""slurm/train.sbatch on two nodes: the result of one process, through a warning and a requeue."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from cluster import ENDED, Cluster, cluster, missing, until
from conftest import TINY, Run
from test_world_size import counts, curve

pytestmark = pytest.mark.slurm

PROJECT = Path(__file__).parents[1]
# long enough to be warned in the middle, too tame for rounding to grow
EXPERIMENT = ["train.precision=fp64", "train.epochs=30", "train.lr=0.01", "run.trackers=[]"]


@dataclass(frozen=True)
class Job:
    """The script with an experiment, submitted; its runs, artifacts and log are in `folder`."""

    cluster: Cluster
    folder: Path
    number: str

    @property
    def log(self) -> str:
        path = self.folder / "log.txt"
        return path.read_text() if path.exists() else ""

    @cached_property
    def end(self) -> dict[str, str]:
        """What SLURM says of the job when it has ended for good."""
        until(lambda: self.cluster.job(self.number)["JobState"] in ENDED, 120, self.report)
        return self.cluster.job(self.number)

    def report(self) -> str:
        """For the message of an assertion."""
        facts = self.cluster.job(self.number)
        return f"job {self.number}: {facts['JobState']} {facts['ExitCode']}, {facts['Restarts']} restarts; its log:\n{self.log}"


def submit(cluster: Cluster, folder: Path, *overrides: str) -> Job:
    folder.mkdir()
    options = [f"--output={folder}/log.txt", "--cpus-per-task=1"]
    words = [*TINY, *EXPERIMENT, f"run.folder={folder}/runs", f"run.artifacts={folder}/artifacts", *overrides]
    command = ["sbatch", "--parsable", *options, "slurm/train.sbatch", *words]
    # both nodes are this machine, whatever its host name resolves to
    number = cluster.call(*command, at=PROJECT, PIPELINE_PYTHON=sys.executable, GLOO_SOCKET_IFNAME="lo").strip()
    return Job(cluster, folder, number)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if why := missing():
        pytest.skip(why)
    with cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = submit(slurm, tmp_path_factory.mktemp("jobs") / "undisturbed")
    assert job.end["JobState"] == "COMPLETED", job.report()
    return job


def test_two_nodes_give_the_curve_and_the_counts_of_one_process(run: Run, tmp_path: Path, undisturbed: Job) -> None:
    assert json.loads((undisturbed.folder / "runs/tiny/summary.json").read_text())["world_size"] == 2, undisturbed.report()
    alone = run(*EXPERIMENT, in_folder="alone")
    assert alone.code == 0, alone.output
    assert curve(undisturbed.folder) == [pytest.approx(line, rel=1e-12, abs=1e-12) for line in curve(tmp_path / "alone")]
    assert counts(undisturbed.folder) == counts(tmp_path / "alone")


def test_warned_it_requeues_itself_goes_on_and_ends_with_the_same_bits(tmp_path: Path, slurm: Cluster, undisturbed: Job) -> None:
    job = submit(slurm, tmp_path / "warned")
    until(lambda: "train 20/" in job.log, 60, job.report)
    slurm.call("scancel", "--signal=USR1", job.number)  # as --signal=USR1@120 does, to every process of the step
    assert (job.end["JobState"], job.end["Restarts"]) == ("COMPLETED", "1"), job.report()
    assert "ended with status 75" in job.log, job.report()
    assert "train: going on from step-" in job.log, job.report()
    for name in ("train/weights.safetensors", "metrics.jsonl"):
        first, second = (folder / "runs/tiny" / name for folder in (undisturbed.folder, job.folder))
        assert first.read_bytes() == second.read_bytes(), f"{name} differs\n{job.report()}"


def test_a_misspelt_key_ends_the_job_with_exit_code_2_for_good(tmp_path: Path, slurm: Cluster) -> None:
    job = submit(slurm, tmp_path / "misspelt", "train.epoch=1")
    assert (job.end["JobState"], job.end["ExitCode"], job.end["Restarts"]) == ("FAILED", "2:0", "0"), job.report()
    assert "did you mean 'epochs'?" in job.log, job.report()
