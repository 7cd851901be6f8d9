"""Whether the folders that a run writes to are fast, shared by all processes, and keep what claims rely on; and the clocks beside them."""

import contextlib
import errno
import os
import secrets
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.doctor import limits
from pipeline.doctor.findings import Finding
from pipeline.errors import of_the_machine
from pipeline.runtime import files

NAME = ".doctor-"
BLOCK, MOST, SPEND = 1 << 20, 64 << 20, 1.0  # bytes written at a time, and at most; seconds after which that is enough
SMALL = 5  # small files, of which the median time counts
TICK = 0.05  # seconds between two looks
FULL = 100 << 20  # bytes; with less no run goes far
CURE = "choose another with run.folder= and run.artifacts=, or make room and see that this user may write there"
SHARE = "all nodes must see the same run.folder and run.artifacts: put them on a file system that the nodes share"


@dataclass(frozen=True)
class Trial:
    """A folder to try things in, below one that a run writes to or would make: `up` folders above that."""

    what: str  # key of the configuration
    up: int
    name: str

    def folder(self, config: Config) -> Path:
        """Where this process sees it, or should."""
        path = _asked(config)[self.what]
        return (path if self.up == 0 else path.parents[self.up - 1]) / self.name

    def told(self) -> dict[str, Any]:
        return asdict(self)


def _asked(config: Config) -> dict[str, Path]:
    return {"run.folder": config.run.folder.absolute(), "run.artifacts": config.run.artifacts.absolute()}


def existing(path: Path) -> Path:
    """`path`, or what there is of it."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _see_way(path: Path) -> None:
    """That `path` is a folder, or could be made.

    Raises:
        NotADirectoryError: something else has its name, or one above it.
    """
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(part))


def trials(config: Config) -> list[Trial]:
    """One for each of the two folders, or one for both; nothing has been made yet."""
    found: dict[Path, Trial] = {}
    for what, path in _asked(config).items():
        here = existing(path)
        found.setdefault(here, Trial(what, len(path.parts) - len(here.parts), f"{NAME}{secrets.token_hex(6)}"))
    return [*found.values()]


def tried(config: Config, trial: Trial) -> Iterator[Finding]:
    """Make the trial's folder, and see how fast it is and whether renaming does there as claims need."""
    folder = trial.folder(config)
    try:
        _see_way(_asked(config)[trial.what])
        folder.mkdir()
        (folder / "hello").write_text(trial.name)
        speed, small = _speeds(folder)
        wrong = _renames(folder)
    except OSError as error:
        yield Finding(trial.what, wrong=f"{folder.parent}: {of_the_machine(error)}", cure=CURE)
        return
    free = shutil.disk_usage(folder).free
    value = f"{folder.parent}: {speed / 1e6:,.0f} MB/s written and synced, a small file in {small * 1e3:.1f} ms, {free / 1e9:,.1f} GB free"
    if free < FULL:
        yield Finding(trial.what, wrong=f"{folder.parent} has {free / 1e6:,.0f} MB free", cure=CURE)
    else:
        yield Finding(trial.what, value)
    cure = "claims on runs need that; use a local file system, NFS, Lustre, GPFS or another with POSIX names"
    yield Finding("rename", f"in {trial.what}, whole and never over what is there", wrong, cure if wrong else "")


def _speeds(folder: Path) -> tuple[float, float]:
    """Bytes a second of one large file, synced; and seconds of a small one that is written, synced and renamed."""
    block, written, began = os.urandom(BLOCK), 0, time.monotonic()
    with (folder / "large").open("wb") as file:
        while written < MOST and time.monotonic() - began < SPEND:
            written += file.write(block)
        file.flush()
        os.fsync(file.fileno())
    speed = written / max(time.monotonic() - began, 1e-9)
    (folder / "large").unlink()
    seconds = []
    for _ in range(SMALL):
        began = time.monotonic()
        files.write_whole(folder / "small", b"x" * 1000)
        seconds.append(time.monotonic() - began)
    return speed, statistics.median(seconds)


def _renames(folder: Path) -> str:
    """What is wrong with the renaming of folders; empty if it refuses a name that is taken, and leaves both as they were."""
    for name in ("first", "second"):
        (folder / name).mkdir()
        (folder / name / "owner").write_text(name)
    try:
        (folder / "first").rename(folder / "second")
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            return f"a folder cannot be renamed: {error.strerror}"
    else:
        return "a folder was renamed over another that was not empty"
    (folder / "first").rename(folder / "third")
    whole = (folder / "third/owner").read_text() == "first" and (folder / "second/owner").read_text() == "second"
    return "" if whole and not (folder / "first").exists() else "a renamed folder is not whole"


def visited(config: Config, trial: Trial, rank: int, who: str) -> tuple[list[Finding], float]:
    """Whether a process sees what the main one wrote and can write beside it; and by how much its clock is ahead of the file system's."""
    folder = trial.folder(config)
    if not _appears(folder / "hello"):
        return [Finding(trial.what, wrong=f"{folder.parent} is not the one of rank 0", cure=SHARE, who=who)], 0.0
    try:
        draft = folder / f"draft-{rank}"
        draft.mkdir()
        before = time.time()
        (draft / "owner").write_text(who)
        after, made = time.time(), (draft / "owner").stat().st_mtime
    except OSError as error:
        return [Finding(trial.what, wrong=f"{folder.parent}: {of_the_machine(error)}", cure=CURE, who=who)], 0.0
    return [], max(0.0, before - made) - max(0.0, made - after)


def _appears(path: Path) -> bool:
    end = time.monotonic() + limits.SEEN
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(TICK)
    return True


def raced(config: Config, trial: Trial, rank: int) -> str:
    """How it went to give one's own folder a name that all want: `won`, `lost`, or what is wrong."""
    folder = trial.folder(config)
    try:
        (folder / f"draft-{rank}").rename(folder / "claim")
    except OSError as error:
        return "lost" if error.errno in (errno.ENOTEMPTY, errno.EEXIST) else of_the_machine(error)
    return "won"


def judged_race(trial: Trial, outcomes: Mapping[int, str], names: Sequence[str]) -> Iterator[Finding]:
    winners = [names[rank] for rank, outcome in outcomes.items() if outcome == "won"]
    cure = "two runs could take the same claim; use a file system with POSIX names that all nodes share"
    if len(winners) != 1 and outcomes:
        yield Finding("rename", wrong=f"{len(winners)} of {len(outcomes)} processes got one name in {trial.what}", cure=cure)
    for rank, outcome in outcomes.items():
        if outcome not in ("won", "lost"):
            yield Finding("rename", wrong=outcome, cure=cure, who=names[rank])


def unseen(config: Config, trial: Trial, visitors: Mapping[int, str]) -> Iterator[Finding]:
    """On the main process: those of `visitors` whose files do not come to be seen here."""
    for rank, name in visitors.items():
        if not _appears(trial.folder(config) / f"draft-{rank}" / "owner"):
            yield Finding(trial.what, wrong="what it writes is not seen by rank 0", cure=SHARE, who=name)


def removed(config: Config, trials: Sequence[Trial]) -> None:
    for trial in trials:
        with contextlib.suppress(OSError):
            shutil.rmtree(trial.folder(config), ignore_errors=True)
