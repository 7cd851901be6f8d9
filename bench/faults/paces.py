"""What a start and a restart of a job take: the cluster's own seconds, of a job of one line, and ours beyond them."""

import itertools
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import Cluster, cluster, until

from bench.faults.jobs import FURTHER, Job, Life, place
from bench.faults.report import Row

NODES = "--nodes=2"


@dataclass(frozen=True)
class Pace:
    """Of one life that follows another, in seconds."""

    cluster: float  # from the end of the one before, or from what has ended it, to the first line of the script
    ours: float  # from there to the first new step


def restarts(lives: Sequence[Life], blow: float) -> list[Pace]:
    """Of the lives after the first, but for those that had nothing left to train."""
    found = []
    for before, after in itertools.pairwise(lives):
        end = before.last_line if before.status is not None else blow
        if after.first_step is not None:
            found.append(Pace(after.first_line - end, after.first_step - after.first_line))
    return found


def spread(seconds: Sequence[float]) -> str:
    """Median, and the least and the most."""
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})" if seconds else ""


def rows(work: Path, repeats: int) -> Iterator[Row]:
    """By turns: a job of one line, and a run; each is started, requeued and cancelled, beside no other job."""
    (work / "slurm").mkdir(parents=True)
    alone, ours = list[tuple[float, float]](), list[tuple[float, float, float, Pace]]()
    with cluster(work / "slurm", further=FURTHER) as started:
        for number in range(repeats):
            alone.append(_of_one_line(started, work / f"line-{number}"))
            ours.append(_of_a_run(started, work / f"run-{number}"))
    shutil.rmtree(work)
    for what, seconds in {
        "a job of one line: sbatch to that line": [each[0] for each in alone],
        "a job of one line: scontrol requeue to that line": [each[1] for each in alone],
        "a run: `pipeline submit` typed to its end": [each[0] for each in ours],
        "a run: from there to the first line of the script": [each[1] for each in ours],
        "a run: from there to its first steps, data prepared": [each[2] for each in ours],
        "a run: scontrol requeue to the first line of the script": [each[3].cluster for each in ours],
        "a run: from there to its first new steps": [each[3].ours for each in ours],
    }.items():
        yield {"pace": what, "n": repeats, "s, median (least to most)": spread(seconds)}


def _of_one_line(started: Cluster, folder: Path) -> tuple[float, float]:
    folder.mkdir()
    log, at = folder / "log.txt", time.time()
    options = ["--parsable", NODES, "--requeue", "--open-mode=append", f"--output={log}"]
    number = started.call("sbatch", *options, "--wrap=echo here; sleep 600", at=folder).strip()
    until(lambda: log.exists() and log.read_text().count("here") == 1, 60, started.logs)
    first, again = time.time() - at, time.time()
    started.call("scontrol", "requeue", number)
    until(lambda: log.read_text().count("here") == 2, 60, started.logs)
    second = time.time() - again
    _cancel(started, number)
    return first, second


def _of_a_run(started: Cluster, folder: Path) -> tuple[float, float, float, Pace]:
    job = Job(started, place(folder))
    job.submit()
    job.wait(lambda: job.steps[0] > 500, "training")
    started.call("scontrol", "requeue", job.number)
    at = time.time()
    job.wait(lambda: len(job.lives()) == 2 and job.lives()[1].first_step is not None, "the next life")
    _cancel(started, job.number)
    job.closed.set()
    lives = job.lives()
    assert lives[0].first_step is not None
    (pace,) = restarts(lives, at)
    return job.submitted - job.typed, lives[0].first_line - job.submitted, lives[0].first_step - lives[0].first_line, pace


def _cancel(started: Cluster, number: str) -> None:
    started.call("scancel", number)
    until(lambda: not started.call("squeue", "--noheader"), 60, started.logs)
