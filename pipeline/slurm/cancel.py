"""A run is stopped where it can go on: as a job of SLURM, or as a process of this machine."""

import os
import signal
import socket
import time
from pathlib import Path

from pipeline.errors import ConfigError, PipelineError
from pipeline.runtime import files, job
from pipeline.runtime.claims import Owner, holder
from pipeline.runtime.console import say

POLL, AGAIN = 0.5, 5.0  # seconds between looks, and between signals: a process that still starts up ignores them


def cancel(folder: Path) -> None:
    """Have the run save and leave, and wait until it has; what is only queued is taken from the queue.

    A job is told not to requeue itself first, so that nothing that it does from then on brings it back.

    Raises:
        ConfigError: nothing runs there.
        PipelineError: it runs on another machine, and not as a job; or SLURM does not answer.
    """
    owner = holder(folder / ".run")
    if going := [] if owner and not owner.job else job.active(folder):
        _cancel_jobs(folder, going)
        say(job.job_state(folder))
    elif owner:
        _cancel_here(folder, owner)
    else:
        raise ConfigError(f"nothing runs or is queued in {folder}")
    for place in [folder, *sorted(folder.glob("seed-*"))]:
        status = files.read_json(place / "status.json")
        if isinstance(status, dict):
            say(f"{place}: {status.get('message') or status.get('state')}")


def _cancel_jobs(folder: Path, going: list[job.Task]) -> None:
    signalled = -AGAIN
    while going:
        if time.monotonic() - signalled > AGAIN:
            signalled = time.monotonic()
            for task in going[::-1]:  # those that wait for others first
                _cancel_task(folder, task)
        time.sleep(POLL)
        going = job.active(folder)


def _cancel_task(folder: Path, task: job.Task) -> None:
    try:
        if task.state == "PENDING":
            job.call("scancel", "--state=PENDING", task.number)
        elif task.state == "RUNNING":
            job.call("scontrol", "update", f"JobId={task.number}", "Requeue=0")
            job.call("scancel", "--signal=USR1", task.number)
    except PipelineError:
        if task in job.active(folder):  # and has neither begun nor ended just now
            raise


def _cancel_here(folder: Path, owner: Owner) -> None:
    if (owner.host, owner.kernel) != (socket.gethostname(), Owner.here().kernel):
        raise PipelineError(f"{folder} is being worked on by pid {owner.pid} on host {owner.host}; cancel it there")
    say(f"{folder}: pid {owner.pid} is told to stop")
    os.kill(owner.pid, signal.SIGTERM)
    while holder(folder / ".run") == owner:
        time.sleep(POLL)
