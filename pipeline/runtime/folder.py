"""runs/<name>/: what a person opens, and what scripts read.

prepare, train, evaluate, export   links to this run's artifacts
config.yaml                        the resolved configuration
status.json                        how it stands: running, done, stopped or failed, and the exit code
summary.json                       of a finished run: results, counts, seconds, paths
metrics.jsonl, report              links into the artifacts
job.json, job.sbatch, job.yaml     the job of SLURM that was submitted for it, its script and its configuration; see job.py
job.log, lives.json                what the job printed in all its lives; what each of them has added
.watch                             signs of life of the processes; see watch.py
logs/rank-<n>.log                  what the processes other than the main one print
.run.claim-<n>                     whose it is; what is written is renamed out of it, so that a life that has lost it cannot
"""

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import Config, dump
from pipeline.errors import ConfigError
from pipeline.runtime import claims, files

SAID = ("config.yaml", "status.json")
LINKS = {"train": ("metrics.jsonl",), "evaluate": ("report",)}  # stage -> what is linked besides its folder


class RunFolder:
    """Written by the main process alone, as long as it is this run's; but for the status when that hangs."""

    def __init__(self, config: Config, lost: Callable[[str], None]) -> None:
        """Claim the folder; `lost` is told if another life takes it over.

        Raises:
            ConfigError: another run is working in it; nothing in it was touched.
        """
        self.path = config.run.folder / config.run.name
        self.claim = claimed(self.path, lost)
        self._before: dict[str, bytes] = {}
        self._data: Path | None = None

    def open(self, config: Config) -> None:
        """Say in it what is to be done."""
        self._before = {name: (self.path / name).read_bytes() for name in SAID if (self.path / name).is_file()}
        self._data = (self.path / "prepare").readlink() if (self.path / "prepare").is_symlink() else None
        files.write_whole(self.path / "config.yaml", dump(config), aside=self.claim.place)
        self.status("running")

    def status(self, state: str, **facts: Any) -> None:
        write_status(self.path, state, aside=self.claim.place, **facts)

    def restored(self) -> bool:
        """Whether it says again what it said before this life, which may be nothing; a job's is left as it is, to be looked at."""
        if is_of_job(self.path):
            return False
        for name in (*SAID, *(["prepare"] if self._data is None else [])):
            if name not in self._before and os.path.lexists(self.path / name):
                (self.path / name).rename(self.claim.place / name)  # which a life that has lost it cannot
                (self.claim.place / name).unlink()
        for name, content in self._before.items():
            files.write_whole(self.path / name, content, aside=self.claim.place)
        if self._data is not None:
            self._link(self.path / "prepare", self.path / self._data)
        return True

    def link(self, stage: str, place: Path, done: bool) -> None:
        """Show what `stage` writes in `place` while it does; when it is done, let that be this run's artifact."""
        if done:
            self._link(self.path / stage, place)
        for name in LINKS.get(stage, ()):
            self._link(self.path / name, place / name)

    def summary(self, values: dict[str, Any]) -> None:
        files.write_json(self.path / "summary.json", values, aside=self.claim.place)

    def _link(self, link: Path, target: Path) -> None:
        relative = os.path.relpath(target.absolute(), link.parent.absolute())
        if link.is_symlink() and str(link.readlink()) == relative:
            return
        fresh = self.claim.place / link.name
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(relative)
        fresh.replace(link)


def is_of_job(folder: Path) -> bool:
    """Whether the run in `folder` was submitted to SLURM."""
    return (folder / "job.json").exists()


def vacate(folder: Path, claim: claims.Claim | None) -> None:
    """Remove a folder that nobody works in and that says nothing of a run, with what processes left in it; and that above, if empty.

    Of claims it removes that of the caller alone, which was left: another's may be there by now.
    """
    if any((folder / name).exists() for name in SAID) or claims.holder(folder / ".run"):
        return
    for left in (folder / ".watch", *([claim.place] if claim else [])):
        files.remove(left)
    for log in folder.glob("logs/rank-*.log"):
        log.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # there is something else in it
        for empty in (folder / "logs", folder, folder.parent):
            if empty.is_dir() and not empty.samefile(Path()):
                empty.rmdir()


def claimed(folder: Path, lost: Callable[[str], None] = lambda why: None) -> claims.Claim:
    """The claim on a run folder; `lost` is told if another life takes it over.

    Raises:
        ConfigError: another run is working in it; nothing in it was touched.
    """
    claim = claims.take(folder / ".run", folder, lost)
    if isinstance(claim, claims.Owner):
        raise ConfigError(
            f"{folder} is being worked on by pid {claim.pid} on host {claim.host} since {claim.since}; "
            "wait for it to end, or choose another run.name"
        )
    return claim


def write_status(folder: Path, state: str, *, aside: Path, **facts: Any) -> None:
    """`aside` is the claim of the life that it tells of: if another has taken the folder over, this fails with OSError."""
    values = {"state": state, "pid": os.getpid(), "at": time.strftime("%FT%T%z"), **facts}
    try:
        files.write_json(folder / "status.json", values, aside=aside)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not aside.is_dir():
            raise
        with (folder / "status.json").open("r+") as file:  # on a full disk there is room where it was
            file.write(json.dumps(values, indent=2, sort_keys=True) + "\n")
            file.truncate()
