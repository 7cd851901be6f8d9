"""Prepared data on a disk of the machine's own: copied there by one of its processes, checked, shared by all.

<run.scratch>/<digest>/          the shards that training reads, there only when whole
<run.scratch>/<digest>.checked   by which start of a training they have been checked
<run.scratch>/<digest>.lock      held by the process that copies or checks
"""

import os
import secrets
import shutil
import socket
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import ConfigError, PipelineError
from pipeline.runtime import files
from pipeline.runtime.console import say
from pipeline.runtime.runner import Workspace
from pipeline.stages.artifacts import PreparedData

POLL = 0.5  # seconds between looks at whether to stop


def at_hand(data: PreparedData, space: Workspace) -> PreparedData:
    """`data` where training is to read them: where they are, or if `run.scratch` is set, a copy of its shards there.

    Raises:
        ConfigError: the folder depends on a variable that is not set.
        PipelineError: the copy differs.
        Interrupted: told to stop meanwhile.
    """
    if space.config.run.scratch is None:
        return data
    start = space.world.agree(secrets.token_hex(8))
    place = _folder(space.config.run.scratch) / data.digest[:16]
    files.make_folder(place.parent)
    checked = Path(f"{place}.checked")
    with _held(FileLock(f"{place}.lock"), space):
        if not checked.is_file() or checked.read_text() != start:
            _make_whole(data, place, space)
            checked.write_text(start)
    return data.model_copy(update={"dir": place})


def _folder(scratch: str) -> Path:
    found = os.path.expandvars(scratch)  # of the machine it is on
    if "$" in found:
        raise ConfigError(f"run.scratch: {scratch} is not set on {socket.gethostname()}; give a folder")
    return Path(found).expanduser()


def _held(lock: FileLock, space: Workspace) -> AbstractContextManager[FileLock]:
    """`lock`, once it is free."""
    while True:
        try:
            return lock.acquire(timeout=POLL)
        except Timeout:
            if space.stop:
                raise space.stop.interrupted("while the data were copied") from None


def _make_whole(data: PreparedData, place: Path, space: Workspace) -> None:
    """See that the copy in `place` is there and equal; else make it."""
    names = [name for split in ("train", "validation") for name in data.shards[split]]
    manifest, _ = files.read_manifest(data.dir)
    assert manifest is not None
    listed = {name: manifest["outputs"][name] for name in names}
    if not files.damage(place, listed):
        return
    say(f"train: copying {sum(each['size'] for each in listed.values()) / 1e6:,.1f} MB to {place}")
    partial = Path(f"{place}.partial")
    for old in (partial, place):
        files.remove(old)
    partial.mkdir()
    for name in names:
        if space.stop:
            raise space.stop.interrupted("while the data were copied")
        with files.named(partial / name):
            shutil.copyfile(data.dir / name, partial / name)
    if broken := files.damage(partial, listed):
        raise PipelineError(f"{partial}: {broken}, though it has just been copied; run again, without run.scratch")
    partial.rename(place)
