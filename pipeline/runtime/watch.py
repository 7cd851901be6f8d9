"""How a hang is found: the main thread of each process leaves marks, a thread of each tells of them in a file that the others read.

.watch/<rank>-<token>     of the run folder: one JSON object, written over once a second
.watch/found-<token>      made by the first to find a hang
.watch/verdict-<token>    who hangs; whoever reads it ends

The main process judges all others by their marks. These judge only whether its thread still lives. Nobody judges
while its own main thread moves, or outside the loops of training and evaluation: a false alarm is worse than none.
Time is counted in looks, so that neither the clocks of other machines nor a Ctrl-Z count.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline.runtime import files

AFTERWARDS = "the same command goes on from the last checkpoint, or begins again"
LENGTH = 1024  # bytes of a file: one that keeps its size needs no room on a full disk
PACKAGE = Path(__file__).parents[1]
WAITING = (f"torch{os.sep}distributed{os.sep}", f"torch{os.sep}autograd{os.sep}", f"runtime{os.sep}exchange.py")  # who wait for others

T = TypeVar("T")


def nothing() -> None: ...


@dataclass
class Marks:
    """Where the main thread is, by its own account. All processes make the same marks in the same order."""

    stage: str = ""  # empty: not to be watched
    step: int = 0
    phase: str = ""
    count: int = 0
    waited: float = 0.0  # seconds, for batches
    begin: Callable[[], None] = nothing  # called before the first loop

    def at(self, phase: str) -> None:
        self.phase = phase
        self.count += 1

    @contextlib.contextmanager
    def watched(self, stage: str) -> Iterator[None]:
        self.begin()
        self.at("begin")
        self.stage = stage
        try:
            yield
        finally:
            self.stage = ""

    def each(self, batches: Iterable[T]) -> Iterator[T]:
        """`batches`, with a mark before each is asked for and one when it is there."""
        self.at("batch")
        asked = time.perf_counter()
        for batch in batches:
            self.waited += time.perf_counter() - asked
            self.at("step")
            yield batch
            self.at("batch")
            asked = time.perf_counter()


@dataclass
class _Seen:
    """Another process as its file tells; `quiet` and `silent` are looks without a new mark, without a sign of life."""

    told: dict[str, Any] = field(default_factory=dict)
    quiet: int = 0
    silent: int = 0


class Watch:
    """The thread of one process; ends the run, by `os._exit`, when nothing has moved for `timeout` seconds."""

    def __init__(
        self, marks: Marks, folder: Path, token: str, *, rank: int, size: int, timeout: float, end: Callable[[int, str], None]
    ) -> None:
        self.end = end  # told the exit code and a line by the process that finds the hang
        self._marks, self._folder, self._rank, self._timeout = marks, folder, rank, timeout
        self._tick = min(1.0, timeout / 6)
        self._verdict = folder / f"verdict-{token}"
        self._me: dict[str, Any] = {"token": token, "rank": rank, "host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}
        self._seen = {other: _Seen() for other in (range(size) if rank == 0 else [0]) if other != rank}
        self._quiet = self._count = self._beat = 0

    def start(self) -> None:
        """Begin with the first loop: before it, the folder may be another run's."""
        self._marks.begin = nothing
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._rank == 0:
            for old in self._folder.glob("*-*"):  # what an earlier start has found
                if not old.name.endswith(self._me["token"]):
                    old.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._tell()  # so that the others know of this process, whatever becomes of it
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def _run(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # the file system may be back at the next look
                self._look()
            time.sleep(self._tick)

    def _look(self) -> None:
        count, stage = self._marks.count, self._marks.stage
        self._quiet = 0 if count != self._count or not stage else self._quiet + 1
        self._count = count
        self._tell()
        if (verdict := files.read_json(self._verdict)) is not None:
            _heed(verdict)
        for other, seen in self._seen.items():
            self._read(other, seen)
        quiet = min([self._quiet, *(self._judged(seen) for seen in self._seen.values())])
        if quiet * self._tick >= self._timeout:
            self._convict()

    def _tell(self) -> None:
        self._beat += 1
        self._me |= {"beat": self._beat, "count": self._count, "stage": self._marks.stage, "step": self._marks.step}
        self._me |= {"phase": self._marks.phase, **(_standing() if self._quiet else {"at": "", "waits": False})}
        text = json.dumps(self._me).encode()
        descriptor = os.open(self._path(self._rank), os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, text.ljust(LENGTH), 0)
        finally:
            os.close(descriptor)

    def _read(self, other: int, seen: _Seen) -> None:
        told = files.read_json(self._path(other))
        if not isinstance(told, dict) or "beat" not in told:  # not there yet, or torn
            told = seen.told
        before, seen.told = seen.told or {"count": 0, "beat": 0}, told
        if told:
            seen.quiet = 0 if told["count"] != before["count"] else seen.quiet + 1
            seen.silent = 0 if told["beat"] != before["beat"] else seen.silent + 1

    def _path(self, rank: int) -> Path:
        return self._folder / f"{rank}-{self._me['token']}"

    def _judged(self, seen: _Seen) -> int:
        """For how many looks that process gave no reason to wait for it: marks where it is watched by this one, else signs of life."""
        by_marks = self._rank == 0 and seen.told.get("stage")
        return seen.quiet if by_marks else seen.silent

    def _convict(self) -> None:
        """The one silent for longest, else the one with the fewest marks; of equals one that does not just wait for the others."""
        silent = [seen for seen in self._seen.values() if seen.silent * self._tick >= self._timeout / 2]
        everyone = [self._me, *(seen.told for seen in self._seen.values())]
        guilty = (
            max(silent, key=lambda seen: seen.silent).told if silent else min(everyone, key=lambda told: (told["count"], told["waits"]))
        )
        verdict = {key: guilty[key] for key in ("machine", "pid")}
        if self._is_first():
            self.end(
                1,
                f"{_sentence(guilty, self._timeout, silent=bool(silent))}; {AFTERWARDS}",
            )
            with contextlib.suppress(OSError):
                files.write_json(self._verdict, verdict)
        else:
            time.sleep(1)  # while the first speaks
        _heed(verdict)

    def _is_first(self) -> bool:
        """Of those that find the same: one speaks."""
        try:
            self._verdict.with_name(f"found-{self._me['token']}").touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError:  # a broken file system is no reason to hang on
            pass
        return True


def _sentence(guilty: dict[str, Any], seconds: float, *, silent: bool) -> str:
    how, seen = ("does not answer: no sign of life", "it was last seen") if silent else ("hangs: no progress", "it is")
    where = f"in {guilty['stage']} after step {guilty['step']}" if guilty["stage"] else "between two loops"
    place = f" at {guilty['at']}" if guilty["at"] else ""
    return (
        f"rank {guilty['rank']} on {guilty['host']} (pid {guilty['pid']}) {how} for {seconds:g} s (run.hang_timeout); "
        f"{seen} {where}, phase {guilty['phase']}{place}"
    )


def _heed(verdict: dict[str, Any]) -> None:
    """End the one that hangs, who may be stopped and cannot; then this process, whose workers the kernel ends."""
    if verdict["machine"] == _machine() and verdict["pid"] != os.getpid():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(verdict["pid"], signal.SIGKILL)
    os._exit(1)


def _standing() -> dict[str, Any]:
    """The line of the main thread, that of the project if there is one; and whether it waits for other processes there."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    innermost = None if frame is None else (frame.f_code.co_filename, frame.f_lineno)
    while frame is not None and PACKAGE not in Path(frame.f_code.co_filename).parents:
        frame = frame.f_back
    if innermost is None:
        return {"at": "", "waits": False}
    path, line = innermost
    at = f"{Path(path).name}:{line}"
    if frame is not None and frame.f_code.co_filename != path:
        at = f"{Path(frame.f_code.co_filename).relative_to(PACKAGE.parent)}:{frame.f_lineno} (in {at})"
    return {"at": at[-200:], "waits": any(part in path for part in WAITING)}


def _machine() -> str:
    """What must be equal for process ids to mean the same."""
    known = [socket.gethostname()]
    with contextlib.suppress(OSError):
        known += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), str(Path("/proc/self/ns/pid").readlink())]
    return " ".join(known)
