"""runs/<name>/: what a person opens, and what scripts read.

prepare, train, evaluate, export   links to this run's artifacts
config.yaml                        the resolved configuration
status.json                        how it stands: running, done, stopped or failed, and the exit code
summary.json                       of a finished run: results, counts, seconds, paths
metrics.jsonl, report              links into the artifacts
logs/rank-<n>.log                  what the processes other than the main one print
"""

import os
import time
from pathlib import Path
from typing import Any

from pipeline.config import Config, dump
from pipeline.runtime import files

LINKS = {"train": ("metrics.jsonl",), "evaluate": ("report",)}  # stage -> what is linked besides its folder


class RunFolder:
    """Written by the main process alone."""

    def __init__(self, config: Config) -> None:
        self.path = config.run.folder / config.run.name
        self.path.mkdir(parents=True, exist_ok=True)
        files.write_whole(self.path / "config.yaml", dump(config))
        self.status("running")

    def status(self, state: str, **facts: Any) -> None:
        files.write_json(self.path / "status.json", {"state": state, "pid": os.getpid(), "at": time.strftime("%FT%T%z"), **facts})

    def link(self, stage: str, place: Path, done: bool) -> None:
        """Show what `stage` writes in `place` while it does; when it is done, let that be this run's artifact."""
        if done:
            _link(self.path / stage, place)
        for name in LINKS.get(stage, ()):
            _link(self.path / name, place / name)

    def summary(self, values: dict[str, Any]) -> None:
        files.write_json(self.path / "summary.json", values)


def _link(link: Path, target: Path) -> None:
    relative = os.path.relpath(target.absolute(), link.parent.absolute())
    if link.is_symlink() and str(link.readlink()) == relative:
        return
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(relative)
    fresh.replace(link)
