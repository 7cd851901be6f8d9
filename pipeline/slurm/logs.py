"""What a job has printed, in all its lives."""

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline import reading
from pipeline.errors import ConfigError, PipelineError
from pipeline.runtime import job

POLL, ASK = 0.5, 5.0  # seconds between looks at the files, and between questions to SLURM


def logs(folder: Path, *, rank: int | None, follow: bool) -> None:
    """Print the log of a run's job, of an array those of all tasks; or of its process `rank`. If `follow`, to the end of its last life.

    Raises:
        ConfigError: there is none.
    """
    if rank is None and not job.noted(folder):
        raise ConfigError(f"{folder} was not submitted; what its processes other than the main one print is in {folder / 'logs'}")
    name = "job.log" if rank is None else f"logs/rank-{rank}.log"
    seen: dict[Path, int] = {}  # bytes of each that are printed
    shown: Path | None = None
    for _ in _while_it_goes(folder, follow):
        for path in [folder / name, *sorted(folder.glob(f"seed-*/{name}"))]:
            if new := _after(path, seen.get(path, 0)):
                if path != shown and (shown or path.parent != folder):
                    print(f"==> {path} <==", flush=True)
                seen[path], shown = seen.get(path, 0) + len(new), path
                sys.stdout.buffer.write(new)
                sys.stdout.flush()
    if not seen:
        raise ConfigError(f"{folder / name} is not there: {job.job_state(folder) or 'it was not submitted'}")


def _while_it_goes(folder: Path, follow: bool) -> Iterator[None]:
    """Now, and if `follow` again and again until some time after the run's job has ended."""
    asked, going = time.monotonic(), follow and bool(job.active(folder))
    yield
    while going:
        time.sleep(POLL)
        if time.monotonic() - asked > ASK:
            with contextlib.suppress(PipelineError):  # SLURM may be out of reach for a while
                asked, going = time.monotonic(), bool(job.active(folder))
        yield


def _after(path: Path, start: int) -> bytes:
    """What is in a file from a byte on; nothing if it is not there."""
    try:
        with reading.opened(path) as file:
            file.seek(start)
            return file.read()
    except FileNotFoundError:
        return b""
