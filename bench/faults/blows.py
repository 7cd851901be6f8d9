"""What can happen to a job of SLURM, and when: each kind by the commands, or the deaths, that bring it about on a real cluster."""

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.faults.jobs import Job, described, keepers, processes, send
from bench.faults.lives_at_once import kept
from pipeline.runtime.aside import LOCK

NODES = 4  # a job takes two; one may be lost, and SLURM drain the other: it cannot end a step that it cannot tell of it
MOMENTS = ("training", "checkpoint", "start", "training", "end")  # taken by turns
GONE = 60.0  # seconds in which an old life that wakes has left


@dataclass
class Blow:
    """One of them, as it was carried out."""

    what: str
    at: float  # when the old life was told, or lost: seconds of `time.time`
    wrong: list[str] = field(default_factory=list)
    afterwards: Callable[[], list[str]] = list  # what is wrong, to be asked when the job has ended


def come(job: Job, moment: str, draw: random.Random, latest: float = 0.95) -> str:
    """Wait for it, which comes before that share of the training is done; told in words."""
    if moment == "start":
        lives = len(job.lives())
        job.wait(lambda: len(job.lives()) >= max(lives, 1), "the first line")
        time.sleep(seconds := draw.uniform(0, 6))
        return f"{seconds:.1f} s after the first line"
    if moment == "end":
        job.wait(lambda: "evaluate: " in job.log, "the end of training")
        time.sleep(seconds := draw.uniform(0, 1.5))
        return f"{seconds:.1f} s after the end of training"
    share = draw.uniform(0.02, latest)
    job.wait(lambda: job.steps[0] > 0 and job.steps[0] >= share * job.steps[1], "a step")
    if moment == "checkpoint":
        job.wait(lambda: any(job.folder.glob("artifacts/train/*/checkpoints/partial")) or "evaluate: " in job.log, "a checkpoint")
        return f"as one is written after step {job.steps[0]}"
    return f"after step {job.steps[0]}"


def time_limit(job: Job, moment: str, draw: random.Random) -> Blow:
    """Of two minutes, by SLURM's clock, which looks every 30 s; at the start and the end by the same signal, sent by hand."""
    if moment in ("start", "end"):
        when = come(job, moment, draw)
        job.cluster.call("scancel", "--signal=USR1", job.number)
        return Blow(f"warned {when}", time.time())
    when = come(job, "training", draw, latest=0.1)
    job.cluster.call("scontrol", "update", f"JobId={job.number}", "TimeLimit=2")  # of which the last 120 s are warned of
    job.wait(lambda: job.lives()[-1].status is not None, "the warning, or the end", 90)
    job.cluster.call("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    return Blow(f"a time limit set {when}", job.lives()[-1].last_line)


def preemption(job: Job, moment: str, draw: random.Random) -> Blow:
    when = come(job, moment, draw)
    job.cluster.call("sbatch", "--partition=high", f"--nodes={NODES}", "--exclusive", "--output=/dev/null", "--wrap=sleep 2", at=job.folder)
    return Blow(f"preempted {when}", time.time())


def cancelled(job: Job, moment: str, draw: random.Random) -> Blow:
    """For good, without a warning; and submitted again as soon as SLURM lets go of it."""
    when = come(job, moment, draw)
    job.cluster.call("scancel", job.number)
    told = time.time()
    state = job.end()
    job.submit()
    return Blow(f"cancelled {when} ({state.lower()})", told)


def requeued(job: Job, moment: str, draw: random.Random) -> Blow:
    when = come(job, moment, draw)
    job.cluster.call("scontrol", "requeue", job.number)
    return Blow(f"requeued {when}", time.time())


def controller_lost(job: Job, moment: str, draw: random.Random) -> Blow:
    """Killed, for a while; in half of the cases the job is warned just before, and has to requeue itself without it."""
    warned = draw.random() < 0.5
    when = come(job, moment, draw)
    if warned:
        job.cluster.call("scancel", "--signal=USR1", job.number)
    job.cluster.kill("slurmctld")
    told = time.time()
    time.sleep(seconds := draw.uniform(1, 12))
    job.cluster.start("slurmctld")
    return Blow(f"slurmctld killed {when}{', after a warning' if warned else ''}, back after {seconds:.0f} s", told)


def node_lost(job: Job, moment: str, draw: random.Random, what: str) -> Blow:
    """Its daemon is killed. Its processes are, too; or live on; or are frozen and wake while the next life trains, or after it."""
    when = come(job, moment, draw)
    node = draw.choice(("node1", "node2"))  # the first has the script and the main process
    there = processes(job.folder, node)
    doomed = [*keepers(there), *there]
    job.cluster.kill(node)
    if what == "off":
        send(signal.SIGKILL, doomed)
    elif what != "cut off":
        send(signal.SIGSTOP, doomed)
    blow = Blow(f"{node} {what} {when}", time.time())
    if what == "frozen, wakes half-way":
        lives = len(job.lives())
        job.wait(lambda: len(job.lives()) > lives, "the next life")
        come(job, "start", draw)
        send(signal.SIGCONT, doomed)
    blow.afterwards = lambda: _fenced(job, node, doomed)
    return blow


def _fenced(job: Job, node: str, doomed: list[int]) -> list[str]:
    """The old life wakes, if it has not: it leaves and changes nothing."""
    before = _made(job.folder)
    send(signal.SIGCONT, doomed)
    deadline = time.time() + GONE
    while (left := processes(job.folder, node)) and time.time() < deadline:
        time.sleep(0.05)
    wrong = [f"of the old life there is yet {'; '.join(described(left))}"] if left else []
    send(signal.SIGKILL, [*doomed, *left])
    after = _made(job.folder)
    if changed := sorted(path for path in before.keys() | after if before.get(path) != after.get(path)):
        wrong.append(f"the old life changed {changed}")
    return wrong


def _made(folder: Path) -> dict[str, str]:
    """All that is of the run, but for what its script prints, and what is told to W&B, which those of the new life may be at yet."""
    return {
        path: digest
        for path, digest in kept(folder).items()
        if "wandb" not in Path(path).parts and Path(path).name not in (LOCK, "job.log")
    }


KINDS: dict[str, Callable[[Job, str, random.Random], Blow]] = {
    "time limit": time_limit,
    "preemption": preemption,
    "scancel, submitted again": cancelled,
    "scontrol requeue": requeued,
    **{f"node {what}": partial(node_lost, what=what) for what in ("off", "cut off", "frozen, wakes half-way", "frozen, wakes at the end")},
    "slurmctld restarted": controller_lost,
}
