"""Experiments as jobs of a real SLURM: they end with the result of one process, however often they are stopped."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import ENDED, Cluster, cluster, missing, until
from conftest import TINY, Run
from test_world_size import counts, curve

from pipeline.runtime.job import job_state, noted

pytestmark = pytest.mark.slurm

SCRIPTS = Path(__file__).parents[1] / "slurm"
# long enough to be warned in the middle, too tame for rounding to grow
EXPERIMENT = ["train.precision=fp64", "train.epochs=30", "train.lr=0.01", "run.trackers=[]"]
HOSTILE = "$(id);`id`"  # stands in each script, and is no command there
TWO_NODES = ["--nodes", "2", "--cpus-per-task", "1"]


@dataclass(frozen=True)
class Job:
    """What was submitted in `folder`, where its runs, artifacts and log are."""

    cluster: Cluster
    folder: Path
    number: str
    log_file: str = "runs/tiny/job.log"

    @property
    def log(self) -> str:
        path = self.folder / self.log_file
        return path.read_text() if path.exists() else ""

    def facts(self) -> dict[str, str]:
        return self.cluster.job(self.number)

    def end(self) -> dict[str, str]:
        """What SLURM says of the job when it has ended for good."""
        until(lambda: self.facts()["JobState"] in ENDED, 120, self.report)
        return self.facts()

    def report(self) -> str:
        """For the message of an assertion."""
        facts = self.facts()
        return f"job {self.number}: {facts['JobState']} {facts['ExitCode']}, {facts['Restarts']} restarts; its log:\n{self.log}"


def pipeline(cluster: Cluster, folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pipeline", *words]
    return subprocess.run(command, cwd=folder, env=cluster.environment, capture_output=True, text=True, check=False, timeout=120)


def place(folder: Path) -> Path:
    """A folder to submit from, with the settings of this cluster: both nodes are this machine, whatever its name resolves to."""
    (folder / "slurm").mkdir(parents=True)
    (folder / "slurm/site.yaml").write_text(f"interface: lo\nsbatch: [--comment={HOSTILE}]\n")
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def submit(cluster: Cluster, folder: Path, *words: str, log_file: str = "runs/tiny/job.log") -> Job:
    ended = pipeline(cluster, folder, "submit", *TINY, *EXPERIMENT, *words)
    assert ended.returncode == 0, ended.stderr
    return Job(cluster, folder, ended.stdout.split()[1], log_file)


def submit_by_hand(cluster: Cluster, folder: Path, script: str, *words: str) -> Job:
    options = ["--parsable", "--output=log.txt", "--cpus-per-task=1"]
    number = cluster.call("sbatch", *options, SCRIPTS / script, *TINY, *EXPERIMENT, *words, at=folder, GLOO_SOCKET_IFNAME="lo").strip()
    return Job(cluster, folder, number, "log.txt")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if why := missing():
        pytest.skip(why)
    with cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Submitted, and waited for only where it is looked at."""
    return submit_by_hand(slurm, place(tmp_path_factory.mktemp("jobs") / "undisturbed"), "train.sbatch")


def equal(first: Job, second: Job) -> None:
    assert first.end()["JobState"] == "COMPLETED", first.report()
    for name in ("train/weights.safetensors", "metrics.jsonl"):
        one, other = (job.folder / "runs/tiny" / name for job in (first, second))
        assert one.read_bytes() == other.read_bytes(), f"{name} differs\n{second.report()}"


def test_by_hand_two_nodes_give_the_curve_and_the_counts_of_one_process(run: Run, tmp_path: Path, undisturbed: Job) -> None:
    alone = run(*EXPERIMENT, in_folder="alone", until="evaluate")
    assert alone.code == 0, alone.output
    assert undisturbed.end()["JobState"] == "COMPLETED", undisturbed.report()
    assert json.loads((undisturbed.folder / "runs/tiny/summary.json").read_text())["world_size"] == 2, undisturbed.report()
    assert curve(undisturbed.folder) == [pytest.approx(line, rel=1e-12, abs=1e-12) for line in curve(tmp_path / "alone")]
    assert counts(undisturbed.folder) == counts(tmp_path / "alone")


def test_a_misspelt_key_ends_a_job_by_hand_with_exit_code_2_for_good(tmp_path: Path, slurm: Cluster) -> None:
    job = submit_by_hand(slurm, place(tmp_path / "misspelt"), "node.sbatch", "train.epoch=1")
    end = job.end()
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("FAILED", "2:0", "0"), job.report()
    assert "did you mean 'epochs'?" in job.log, job.report()


def test_submitted_and_warned_it_requeues_itself_goes_on_and_ends_with_the_same_bits(
    tmp_path: Path, slurm: Cluster, undisturbed: Job
) -> None:
    job = submit(slurm, place(tmp_path / "warned"), *TWO_NODES)
    until(lambda: "train 20/" in job.log, 60, job.report)
    slurm.call("scancel", "--signal=USR1", job.number)  # as --signal=USR1@120 does, to every process of the step
    followed = pipeline(slurm, job.folder, "logs", "tiny", "--follow")
    end = job.end()
    assert (end["JobState"], end["Restarts"]) == ("COMPLETED", "1"), job.report()
    assert followed.stdout == job.log
    for words in ("life 1, on node[1-2]", "ended with status 75", "train: going on from step-", "life 2, on", "ended with status 0"):
        assert words in job.log, job.report()
    equal(undisturbed, job)


def test_warned_before_there_is_anything_to_keep_it_lives_again_but_not_for_ever(tmp_path: Path, slurm: Cluster) -> None:
    job = submit(slurm, place(tmp_path / "early"), "data.source.train=100000")
    for life in (1, 2):
        until(lambda: job.log.count("prepare: ") == life, 60, job.report)  # noqa: B023 (called here)
        slurm.call("scancel", "--signal=USR1", job.number)
    end = job.end()
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("FAILED", "143:0", "1"), job.report()
    assert "2 lives in a row have added no checkpoint" in job.log, job.report()


def test_cancelled_at_a_checkpoint_and_submitted_again_it_goes_on(
    tmp_path: Path, slurm: Cluster, undisturbed: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    folder = place(tmp_path / "cancelled")
    first = submit(slurm, folder, *TWO_NODES)
    twice = pipeline(slurm, folder, "submit", *TINY)
    assert (twice.returncode, twice.stderr.count("\n")) == (2, 1), twice.stderr
    assert f"runs/tiny is submitted already, as job {first.number}" in twice.stderr
    until(lambda: "train 20/" in first.log, 60, first.report)
    assert job_state(folder / "runs/tiny") == f"job {first.number}: running on node[1-2], life 1"
    cancelled = pipeline(slurm, folder, "cancel", "tiny")
    assert cancelled.returncode == 0, cancelled.stderr
    assert "with a checkpoint; the same command goes on" in cancelled.stdout
    end = first.facts()
    assert (end["JobState"], end["ExitCode"], end["Restarts"]) == ("FAILED", "75:0", "0"), first.report()
    assert job_state(folder / "runs/tiny") == f"job {first.number}: stopped (exit code 75)"
    second = submit(slurm, folder, *TWO_NODES)
    assert second.end()["JobState"] == "COMPLETED", second.report()
    assert "train: going on from step-" in second.log, second.report()
    equal(undisturbed, second)


def test_of_two_that_submit_at_once_one_is_refused_and_what_waits_is_taken_from_the_queue(
    tmp_path: Path, slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    folder = place(tmp_path / "waiting")
    with ThreadPoolExecutor() as pool:  # for three nodes: the cluster has two
        both = [*pool.map(lambda _: pipeline(slurm, folder, "submit", *TINY, "--nodes", "3"), range(2))]
    assert sorted(ended.returncode for ended in both) == [0, 2], both
    (number,) = noted(folder / "runs/tiny")
    job = Job(slurm, folder, number)
    until(lambda: job_state(folder / "runs/tiny").startswith(f"job {number}: queued (Partition"), 60, job.report)  # SLURM has looked at it
    assert pipeline(slurm, folder, "status", *TINY).stdout.splitlines()[1].startswith(f"job {number}: queued (")
    assert job.facts()["Comment"] == HOSTILE
    cancelled = pipeline(slurm, folder, "cancel", "tiny")
    assert (cancelled.returncode, cancelled.stdout) == (0, f"job {number}: cancelled\n"), cancelled.stderr
    assert job.end()["JobState"] == "CANCELLED", job.report()


def test_an_array_makes_the_seeds_that_pipeline_seeds_sums_up(tmp_path: Path, slurm: Cluster) -> None:
    folder = place(tmp_path / "seeds")
    job = submit(slurm, folder, "--array", "seeds=0-1", "--prepare-partition", "main", "train.epochs=2", log_file="runs/tiny-seeds/job.log")
    logs = pipeline(slurm, folder, "logs", "tiny-seeds", "-f").stdout
    assert job.end()["JobState"] == "COMPLETED", logs
    assert "prepare: first time" in job.log, logs
    for seed in (0, 1):
        assert f"==> runs/tiny-seeds/seed-{seed}/job.log <==" in logs
    together = pipeline(slurm, folder, "seeds", "2", *TINY, *EXPERIMENT, "train.epochs=2")
    assert together.returncode == 0, together.stderr
    assert together.stdout.count(": fresh") == 8, together.stdout
    assert json.loads((folder / "runs/tiny-seeds/seeds.json").read_text())["failed"] == []


def test_a_training_whose_data_cannot_be_prepared_does_not_wait_for_ever(tmp_path: Path, slurm: Cluster) -> None:
    folder = place(tmp_path / "no-data")
    job = submit(slurm, folder, "--prepare-partition", "main", "data.source=folder", "--data-dir", "nowhere")
    assert job.end()["JobState"] == "CANCELLED", job.report()
    assert "nowhere" in job.log
