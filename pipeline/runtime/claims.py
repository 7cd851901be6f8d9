"""Who works in a place: one life of a run at a time. Once another has taken over, it can commit nothing any more.

    <path>.claim-<n>/owner.json   who, and since when; locked while it lives, touched every `BEAT` seconds
    <path>.partial-<n>/           what it works in, until that is whole and gets its final name

The highest n holds the claim. Nothing is decided by looking and then doing: a claim appears with its owner
in it, by a rename that fails if another was first, and all that its owner commits is renamed out of these two
folders. The next life renames them away, and what the old one still tries fails for want of them, however long
it was asleep in between.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import TextIO

from pipeline import reading
from pipeline.errors import TakenOver
from pipeline.runtime import files

BEAT, STALE = 3.0, 30.0  # seconds between signs of life, and without one until it counts as gone
OWNER, LEFT = "owner.json", "left.json"
LONGEST = 1 << 16  # bytes of them


@dataclass(frozen=True)
class Owner:
    """One life of a run: its main process."""

    host: str
    kernel: str  # on which locks and process ids mean the same: names of hosts may be equal, as in containers
    pid: int
    job: str  # of SLURM, if any
    restart: int  # of that job
    since: str

    @classmethod
    def here(cls) -> "Owner":
        job, restart = os.environ.get("SLURM_JOB_ID", ""), int(os.environ.get("SLURM_RESTART_COUNT", 0))
        return cls(socket.gethostname(), _kernel(), os.getpid(), job, restart, time.strftime("%FT%T%z"))

    def follows(self, other: "Owner") -> bool:
        """Whether SLURM has started this job again, after it has ended that life."""
        return bool(self.job) and self.job == other.job and self.restart > other.restart


class Claim:
    """A place that is ours, until another takes it over or we leave; `shown` names it to people."""

    def __init__(self, path: Path, number: int, file: TextIO, shown: Path, lost: Callable[[str], None]) -> None:
        self.path, self.number, self.shown = path, number, shown
        self.place = Path(f"{path}.claim-{number}")
        self._file, self._lost, self._left = file, lost, threading.Event()
        os.register_at_fork(after_in_child=file.close)  # workers that outlive a killed owner would hold its lock
        threading.Thread(target=self._beat, daemon=True, name=f"claim of {shown}").start()

    def lost(self) -> str:
        """Who has it now, in a line; empty while it is ours."""
        if (self.place / OWNER).exists() or self._left.is_set():  # in this order: we may be leaving just now
            return ""
        owner = _read(newest(self.path, "claim"))
        return _taken_over(self.shown, owner) if owner else f"{self.shown} was removed; this one leaves"

    def folder(self, adopt: Path | None = None) -> Path:
        """What to work in: that of the life before, or else `adopt` if there is one, or else an empty one."""
        mine = Path(f"{self.path}.partial-{self.number}")
        while not mine.is_dir():
            before = newest(self.path, "partial")
            if before is not None and _number(before) > self.number:
                raise TakenOver(self.lost())
            if before is None:
                before = self.place / "new"  # by way of the claim: a life that has lost it cannot come by
                if adopt is not None and adopt.is_dir():
                    adopt.rename(before)
                else:
                    before.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # an old life, or a new one, was faster
                before.rename(mine)
                files.sync(mine.parent)
        return mine

    def commit(self, final: Path) -> None:
        """Give what was worked in its name, in the place of what has had it."""
        if final.is_dir():
            final.rename(self.place / "replaced")
        Path(f"{self.path}.partial-{self.number}").rename(final)
        files.sync(final.parent)
        files.remove(self.place / "replaced")

    def leave(self) -> None:
        """Let anybody have it at once."""
        self._left.set()
        with contextlib.suppress(OSError):  # it may be another's by now
            (self.place / OWNER).rename(self.place / LEFT)
        self._file.close()

    def _beat(self) -> None:
        while not self._left.wait(BEAT):
            with contextlib.suppress(OSError, ValueError):  # a disk that does not answer; or we have just left
                if lost := self.lost():
                    self._lost(lost)
                    return
                os.utime(self._file.fileno())


def take(path: Path, shown: Path, lost: Callable[[str], None] = lambda why: None) -> Claim | Owner:
    """The claim on `path`, or else who holds it; `lost` is told, by a thread, when another has taken it over."""
    mine = Owner.here()
    files.make_folder(path.parent)
    while True:
        draft = Path(f"{path}.draft-{secrets.token_hex(4)}")
        try:
            draft.mkdir()
        except OSError as error:  # what people know is where it would be
            raise OSError(error.errno, error.strerror, str(path.parent)) from None
        file = (draft / OWNER).open("x")
        try:
            with contextlib.suppress(OSError):  # a file system without it: then only the signs of life tell
                fcntl.flock(file, fcntl.LOCK_EX)
            with files.named(path.parent):
                file.write(json.dumps(asdict(mine)) + "\n")
                file.flush()
                os.fsync(file.fileno())
            worked, held = newest(path, "partial"), newest(path, "claim")  # in this order: the first has no higher number
            holder = _holder(held, mine, now=os.fstat(file.fileno()).st_mtime)
            number = 1 + max(_number(worked), _number(held))
            if holder is None and _became(draft, path, number):
                claim = Claim(path, number, file, shown, lost)
                _fence(claim)
                return claim
        finally:
            files.remove(draft)
        file.close()
        if holder is not None:
            return holder


def holder(path: Path) -> Owner | None:
    """Who works in it, for those that only look."""
    return _holder(newest(path, "claim"), Owner.here(), now=time.time())


def succeeded(path: Path, shown: Path) -> str:
    """Who has worked in it since, in a line, if SLURM has started this job again by now; empty if it has not."""
    owner = _read(newest(path, "claim"))
    return _taken_over(shown, owner) if owner and owner.follows(Owner.here()) else ""


def held_by(path: Path, host: str, pid: int) -> Path | None:
    """The claim on `path`, if it is of that process."""
    place = newest(path, "claim")
    owner = _read(place)
    return place if owner and (owner.host, owner.pid) == (host, pid) else None


def newest(path: Path, kind: str) -> Path | None:
    """The folder `<path>.<kind>-<n>` with the highest n."""
    return max(_numbered(path, kind), key=_number, default=None)


def _became(draft: Path, path: Path, number: int) -> bool:
    """Whether `draft` has become the claim of that number, and the highest."""
    place = Path(f"{path}.claim-{number}")
    try:
        draft.rename(place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    if _number(newest(path, "claim")) == number:
        return True
    files.remove(place)  # what was seen was old: others have come and gone since
    return False


def _fence(claim: Claim) -> None:
    """Take the place of the claims before, whose owners can commit nothing from here on."""
    for old in _numbered(claim.path, "claim"):
        if _number(old) < claim.number:
            with contextlib.suppress(FileNotFoundError):
                old.rename(claim.place / old.name)
            files.remove(claim.place / old.name)


def _holder(place: Path | None, mine: Owner, *, now: float) -> Owner | None:
    """Who holds the claim `place`; None if nobody does, or its owner is gone.

    `now` is by the clock of the file system, as the signs of life are, so that those of the machines do not matter.
    """
    if place is None:
        return None
    try:
        with reading.opened(place / OWNER) as file:  # opened, since what NFS remembers of a file that is not may be old
            owner = Owner(**json.loads(file.read(LONGEST)))
            age = now - os.fstat(file.fileno()).st_mtime
            gone = age > STALE or mine.follows(owner) or (owner.kernel == mine.kernel and _is_free(file))
    except (FileNotFoundError, ValueError, TypeError, RecursionError):  # it has left; or a power cut has left the file empty
        return None
    return None if gone else owner


def _taken_over(shown: Path, owner: Owner) -> str:
    return f"{shown} was taken over by {owner.host} pid {owner.pid} at {owner.since}; this one leaves"


def _kernel() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _is_free(file: BufferedReader) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _read(place: Path | None) -> Owner | None:
    found = place and (files.read_json(place / OWNER) or files.read_json(place / LEFT))
    try:
        return Owner(**found) if found else None
    except TypeError:  # it is none of ours
        return None


def _numbered(path: Path, kind: str) -> list[Path]:
    start = f"{path.name}.{kind}-"
    beside = path.parent.iterdir() if path.parent.is_dir() else []
    return [p for p in beside if p.name.startswith(start) and p.name[len(start) :].isdecimal()]


def _number(place: Path | None) -> int:
    return 0 if place is None else int(place.name.rpartition("-")[2])
