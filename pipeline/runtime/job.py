"""The job of SLURM that a run was submitted as: what the run folder notes of it, and what SLURM says.

runs/<name>/job.json   {"jobs": ["123", "124"], "typed": "pipeline submit ...", "at": ...}   in the order in which they run
"""

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.runtime import files
from pipeline.runtime.foreign import json_in

ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
FIELDS = {"JobArrayID": 60, "State": 20, "RestartCnt": 12, "exit_code": 12, "Reason": 80, "NodeList": 4000}  # of `squeue`, and how wide
STOPPED = {75, 130, 143}  # of `errors`: the same command goes on
UNREACHED = re.compile(r"Could not establish a configuration source|Unable to contact slurm controller")
UNKNOWN = "Invalid job id"  # what SLURM says of a job that has ended more than some minutes ago


@dataclass(frozen=True)
class Task:
    """One job, or one task of an array, as `squeue` shows it."""

    number: str
    state: str  # PENDING, RUNNING, ...
    life: int
    code: int  # the exit status of one that has ended
    reason: str
    nodes: str

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    def __str__(self) -> str:
        if self.state == "PENDING":
            return f"queued ({self.reason})" if self.life == 1 else f"queued ({self.reason}) for life {self.life}"
        if not self.has_ended:
            return f"{self.state.lower()} on {self.nodes}, life {self.life}"
        ended = "stopped" if self.code in STOPPED else self.state.lower()
        return f"{ended} (exit code {self.code})" if self.code else ended


def call(*command: str) -> str:
    """What a command of SLURM printed.

    Raises:
        PipelineError: it is not here, or has failed.
    """
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout  # noqa: S603 (no shell)
    except FileNotFoundError:
        raise PipelineError(f"{command[0]} is not here; on a cluster with SLURM it is on the login nodes") from None
    except subprocess.CalledProcessError as error:
        if unreached := UNREACHED.search(error.stderr):
            raise PipelineError(
                f"{command[0]} cannot reach the cluster ({unreached[0]}); is this a login node, its controller up, SLURM_CONF right?"
            ) from None
        raise PipelineError(" ".join(error.stderr.split()) or f"{command[0]} has failed with status {error.returncode}") from None


def note(folder: Path, jobs: Sequence[str], typed: str, *, aside: Path) -> None:
    """Let the run in `folder` be these jobs; `aside` is the claim on it."""
    files.write_json(folder / "job.json", {"jobs": list(jobs), "typed": typed, "at": time.strftime("%FT%T%z")}, aside)


def noted(folder: Path) -> list[str]:
    """The jobs of the run in `folder`, in the order in which they run; none if it was not submitted."""
    jobs = json_in(folder / "job.json").get("jobs")
    return [job for job in jobs if isinstance(job, str) and re.fullmatch(r"[0-9_]+", job)] if isinstance(jobs, list) else []


def tasks(folder: Path) -> list[Task]:
    """What SLURM still knows of the jobs of a run.

    Raises:
        PipelineError: SLURM's commands are not here, or get no answer.
    """
    form = ",".join(f"{name}:{width}" for name, width in FIELDS.items())
    found: list[Task] = []
    for job in noted(folder):
        try:
            lines = call("squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", f"--Format={form}").splitlines()
        except PipelineError as error:
            if UNKNOWN not in str(error):
                raise
            lines = []
        found += map(_task, filter(str.strip, lines))
    return found


def active(folder: Path) -> list[Task]:
    """Of `tasks`, those that are queued or running."""
    return [task for task in tasks(folder) if not task.has_ended]


def job_state(folder: Path) -> str:
    """The job of a run in a line, as `job 123: running on node[1-2], life 2`; empty if it was not submitted."""
    jobs = noted(folder)
    if not jobs:
        return ""
    try:
        found = tasks(folder)
    except PipelineError as error:
        return f"job {jobs[-1]}: {error}"
    going = [task for task in found if not task.has_ended]
    if len(going) > 1 and "_" in going[-1].number:
        counts = {word: sum(task.state == state for task in going) for state, word in (("RUNNING", "running"), ("PENDING", "queued"))}
        told = " and ".join(f"{count} {word}" for word, count in counts.items() if count)
        return f"job {jobs[-1]}: {told} of {len(found)} tasks"
    shown = next(iter(going), found[-1] if found else None)
    return f"job {shown.number}: {shown}" if shown else f"job {jobs[-1]}: ended"


def _task(line: str) -> Task:
    values, start = [], 0
    for width in FIELDS.values():
        values.append(line[start : start + width].strip())
        start += width
    number, state, restarts, status, reason, nodes = values
    return Task(number, state, int(restarts or 0) + 1, int(status or 0) >> 8, reason, nodes)
