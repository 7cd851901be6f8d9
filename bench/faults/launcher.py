"""A launcher that is itself forked: what torchrun does when all goes well or a process is lost, without its seconds.

It starts the ranks, each in a session of its own; when one fails, the others get SIGTERM, and SIGKILL after a grace.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from pathlib import Path

from processes import CONTEXT, free_port

from bench.faults import strikes
from bench.faults.strikes import Strike

GRACE = 30  # seconds, torchrun's own
ROOT = Path(__file__).parents[2]
CODE = "code"  # a file: that of the launcher


@dataclass(frozen=True)
class How:
    """`words` for the command line on so many processes, struck or counted."""

    words: Sequence[str]
    processes: int = 1
    real: bool = False  # by torchrun itself
    strike: Strike | None = None
    counted: Sequence[str] = ()  # places, of which each rank leaves its number of calls in calls-<rank>.json
    ask_each_step: bool = False  # whether to stop; several processes do so once in ten steps by themselves
    loader: bool = False  # as if the data did not fit on the device: they come through the loader and its workers


Code = Callable[[], int | None]  # the exit code of what was started, once it has ended


def run(folder: Path, how: How, seconds: float = 300) -> int:
    """The exit code; -1 of what does not end in time, and is killed."""
    code, deadline = start(folder, how), time.monotonic() + seconds
    while (ended := code()) is None:
        if time.monotonic() > deadline:
            end(left(folder))
            return -1
        time.sleep(0.01)
    return ended


def start(folder: Path, how: How) -> Code:
    """A launcher at work in `folder`; the forked one has the exit code of its first rank that failed, a signal being 1."""
    for note in (folder / strikes.STRUCK, folder / CODE, *folder.glob("pid-*")):
        note.unlink(missing_ok=True)
    if how.real:
        return _torchrun(folder, how).poll
    process = CONTEXT.Process(target=_launcher, args=(folder, how))
    process.start()

    def code() -> int | None:  # by its own account, if it gave one: the fork server has been seen to lose a code, which is then 255
        return process.exitcode and int((folder / CODE).read_text() if (folder / CODE).exists() else process.exitcode)

    return code


def _torchrun(folder: Path, how: How) -> "subprocess.Popen[bytes]":
    command = [str(Path(sys.executable).with_name("torchrun")), f"--nproc-per-node={how.processes}", f"--master-port={free_port()}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **strikes.environment(how.strike)}
    with (folder / "output.txt").open("wb") as output:
        words = [*command, "-m", "bench.faults.strikes", *how.words]
        return subprocess.Popen(words, cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True)


def left(folder: Path) -> list[int]:
    """All that work in `folder`: a process whose parent is gone has another parent, but stays where it is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append(int(process.name))
    return found


def described(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:80]
    return "gone"


def end(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _launcher(folder: Path, how: How) -> None:
    os.chdir(folder)
    fork = multiprocessing.get_context("fork")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [fork.Process(target=_rank, args=(how, rank, meeting)) for rank in range(how.processes)]
    for process in ranks:
        process.start()
    running = ranks
    while running:
        connection.wait([process.sentinel for process in running])
        running = [process for process in ranks if process.exitcode is None]
        if failed := [process.exitcode for process in ranks if process.exitcode]:
            _stop(ranks)
            Path(CODE).write_text(str(max(failed[0], 0) or 1))
            sys.exit(max(failed[0], 0) or 1)
    Path(CODE).write_text("0")


def _stop(ranks: Sequence[ForkProcess]) -> None:
    for process in ranks:
        if process.exitcode is None:
            os.killpg(process.pid or 0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()


def _rank(how: How, rank: int, meeting: dict[str, str]) -> None:
    os.setsid()
    output = os.open("output.txt" if rank == 0 else f"output-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if how.processes > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": how.processes, "LOCAL_WORLD_SIZE": how.processes}
        os.environ |= {**meeting, "TORCHELASTIC_RUN_ID": "none", **{name: str(value) for name, value in place.items()}}
    _change(how)
    calls = strikes.count(how.counted)
    strikes.expose(rank, how.strike)
    from pipeline.main import main

    code = main(list(how.words))
    if how.counted:
        Path(f"calls-{rank}.json").write_text(json.dumps(calls))
    sys.exit(code)


def _change(how: How) -> None:
    from pipeline.runtime import world

    if how.ask_each_step:
        world.POLL = 1
    if how.loader:
        world.World.fits = lambda self, tensors: False  # type: ignore[method-assign]
