"""An error of the file system, put by strace into a process at one of its system calls, once or from then on."""

import contextlib
import os
import random
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench.faults import traced
from bench.faults.traced import Call

_WRITTEN = dict.fromkeys(("write", "pwrite64", "writev", "pwritev", "sendfile", "copy_file_range", "fallocate"), ("ENOSPC", "EIO"))
_SYNCED = dict.fromkeys(("fsync", "fdatasync", "ftruncate"), ("EIO", "ENOSPC"))
_NAMED = dict.fromkeys(
    ("rename", "renameat", "renameat2", "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat"), ("ENOSPC", "EIO", "EROFS")
)
_UNNAMED = dict.fromkeys(("unlink", "unlinkat", "rmdir"), ("EIO", "EROFS"))
_OPENED = dict.fromkeys(("open", "openat", "creat"), ("ENOSPC", "EROFS", "EMFILE"))
WRITER = Path("output-writer")  # holds the number of a thread
ERRORS: Mapping[str, Sequence[str]] = MappingProxyType({**_WRITTEN, **_SYNCED, **_NAMED, **_UNNAMED, **_OPENED})


RANDOM = re.compile(r"/\.tmp\w{6}$")  # what safetensors calls a file until it is whole


@dataclass(frozen=True)
class Fault:
    """`error` in the `count`-th call `name` of a thread that names one of `paths`; `lasting`: and in all that follow.

    Without `paths`, where a name is another each time, in the `count`-th of `thread` that names anything.
    """

    name: str
    paths: tuple[str, ...]  # as strace compares them; {pid} stands for the process's
    thread: int  # 0: the main one, 1: another, that writes the checkpoints
    count: int
    error: str
    lasting: bool
    where: str  # for a person

    def __str__(self) -> str:
        thread = "" if self.paths else f", thread {self.thread}"
        return f"{self.error} {'from' if self.lasting else 'at'} {self.name} number {self.count} of {self.where}{thread}"

    def words(self, pid: int) -> list[str]:
        places = [f"-P{path.replace('{pid}', str(pid))}" for path in self.paths]
        return [*places, f"-einject={self.name}:error={self.error}:when={self.count}{'+' * self.lasting}"]


def faults(calls: Sequence[Call], pid: int) -> list[Fault]:
    """All that may befall a process `pid` that made `calls`: at each that writes, each of its errors, once and lasting."""
    points = [call for call in traced.touching(calls) if call.name in ERRORS]
    everywhere = tuple(sorted({place for place in map(_place, points) if not RANDOM.search(place)}))
    found = []
    for call in points:
        for lasting in (False, True):
            random_name = RANDOM.search(_place(call))
            paths = () if random_name else everywhere if lasting else (_place(call),)
            before = [c for c in calls[: calls.index(call) + 1] if c.thread == call.thread and c.name == call.name]
            count = call.count if random_name else sum(bool(set(paths) & set(_names(c))) for c in before)
            general = tuple(path.replace(f".{pid}", ".{pid}") for path in paths)
            where = "all files" if lasting else "any file" if random_name else Path(_place(call)).name.replace(str(pid), "PID")
            found += [Fault(call.name, general, min(call.thread, 1), count, error, lasting, where) for error in ERRORS[call.name]]
    return list(dict.fromkeys(found))


def drawn(among: Sequence[Fault], cases: int, seed: int) -> list[Fault]:
    """So many of them, of every pair of a call and an error in turn."""
    turn: Counter[tuple[str, str]] = Counter()
    ordered = []
    for fault in random.Random(seed).sample(among, len(among)):
        turn[fault.name, fault.error] += 1
        ordered.append((turn[fault.name, fault.error], fault))
    return [fault for _, fault in sorted(ordered, key=lambda each: each[0])][:cases]


def waits(rank: int) -> None:
    """For `watched`, if this is the main process."""
    if rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)


def waits_to_save(rank: int) -> None:
    """For `watched`, in the thread that is about to write the first checkpoint."""
    from pipeline.learning import state

    real = state.save

    def save(*taken: Any) -> None:
        if rank == 0 and not WRITER.exists():
            WRITER.write_text(str(threading.get_native_id()))
            os.kill(os.getpid(), signal.SIGSTOP)
        real(*taken)

    state.save = save  # type: ignore[assignment]


@contextlib.contextmanager
def watched(pid: int, folder: Path, fault: Fault | None = None) -> Iterator[list[Call]]:
    """Let a process that waits in `folder` go on, with `fault` in its way; its calls are there at the end, by when it must have ended."""
    while (state := Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) != "T":
        assert state not in "ZX", "ended before it waited"
        time.sleep(0.002)
    calls: list[Call] = []
    alone = fault is not None and not fault.paths
    thread = int((folder / WRITER).read_text()) if alone and fault is not None and fault.thread else pid
    with tempfile.NamedTemporaryFile() as log:
        words = ["strace", *([] if alone else ["-f"]), "-y", "-xx", "-s0", f"-o{log.name}", f"-p{thread}"]
        words += [f"-etrace={traced.NAMED},{traced.OPENED}", *(fault.words(pid) if fault else [])]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd="/") as strace:
            assert strace.stderr is not None
            assert any("attached" in line for line in strace.stderr), "strace did not attach"
            os.kill(pid, signal.SIGCONT)
            yield calls
            strace.stderr.read()
        if alone:  # then strace does not say whose a call is
            lines = Path(log.name).read_text().splitlines()
            Path(log.name).write_text("".join(f"{thread} {line}\n" for line in lines))
        calls.extend(traced._calls(Path(log.name)))


def hits(calls: Sequence[Call], folder: Path, fault: Fault | None) -> int:
    """How many of them were made to fail; where any file may be meant, those in `folder`."""
    return sum(call.injected and (bool(fault and fault.paths) or any(path.is_relative_to(folder) for path in call.paths)) for call in calls)


def _names(call: Call) -> list[str]:
    """The paths that strace compares: those of descriptors, and texts as they were given."""
    result = traced._RESULT.search(call.text)
    found = traced._PLACE.finditer(call.text[: result.start()] if result else call.text)
    texts = [place["text"] if place["open"] is None else place["open"] * (place["number"] != "AT_FDCWD") for place in found]
    return [str(traced._path(text)) for text in texts if text]


def _place(call: Call) -> str:
    names = _names(call)
    return names[-1] if call.name.startswith("symlink") else names[0]
