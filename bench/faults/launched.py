"""Runs under a launcher that does as torchrun does, forked and not executed; and traps that spring at a point of a run.

pids       in the folder of a run: those of its processes, rank by rank
code-<n>   how rank n ended, by its own account
ended      of each rank, as its launcher has seen it: null where that killed it itself
"""

import functools
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkProcess, ForkServerProcess
from pathlib import Path
from typing import Any, NoReturn

from processes import CONTEXT, _child, free_port

KILLED_AFTER = 15.0  # seconds that ranks are given to leave; torchrun gives 30
PLACES = {  # phase -> (module, function whose n-th call is in it, n)
    "start": ("pipeline.runtime.world", "World.__init__", 1),
    "waiting": ("pipeline.runtime.world", "World.__init__", 1),
    "step": ("pipeline.stages.train", "update", 12),
    "forward": ("pipeline.runtime.world", "World.forward", 15),
    "backward": ("pipeline.runtime.world", "World.backward", 12),
    "validation": ("pipeline.stages.train", "scores", 1),
    "save": ("pipeline.stages.record", "Record.save", 1),
    "evaluation": ("pipeline.stages.evaluate", "answers", 1),
    "describing": ("pipeline.learning.layers", "describe", 1),
    "finish": ("pipeline.stages.train", "finish", 1),
}
Act = Callable[[Path], None]  # given the folder of the run


@dataclass(frozen=True)
class Trap:
    """What rank `rank` does at a point of its run."""

    phase: str
    rank: int
    act: Act

    def set(self, folder: Path, rank: int) -> None:
        if rank == self.rank:
            on_call(*PLACES[self.phase], functools.partial(self.act, folder), evaluating=self.phase == "evaluation")


def on_call(module: str, name: str, number: int, act: Callable[[], None], *, evaluating: bool = False) -> None:
    """Let the `number`-th call of a function begin with `act`; of those that can be stopped, if `evaluating`."""
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    function, calls = getattr(owner, last), 0

    @functools.wraps(function)
    def trapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += not evaluating or options.get("stoppable", False)
        if calls == number:
            calls += 1
            act()
        return function(*arguments, **options)

    setattr(owner, last, trapped)


@dataclass(frozen=True)
class Launched:
    """A run under way."""

    folder: Path
    launcher: ForkServerProcess
    size: int

    def pids(self) -> list[int]:
        return pids(self.folder, self.size)

    def join(self, seconds: float) -> list[int | None]:
        """The exit code of each rank; None for one that had to be killed in the end, or was by its launcher."""
        deadline = time.monotonic() + seconds
        try:
            self.launcher.join(seconds)
            while any(map(alive, self.pids())) and time.monotonic() < deadline:
                time.sleep(0.02)
            left = [alive(pid) for pid in self.pids()]
        finally:
            self.end()
        seen = self.folder / "ended"
        codes: list[int | None] = json.loads(seen.read_text()) if seen.exists() else [_own_code(self.folder, r) for r in range(self.size)]
        return [None if stays else code for stays, code in zip(left, codes, strict=True)]

    def end(self) -> None:
        for pid in (self.launcher.pid, *self.pids()):
            if pid is not None and alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.launcher.join()

    def output(self) -> str:
        """All that was printed on the terminal of any rank."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("output*.txt")))


def start(folder: Path, words: Sequence[str], size: int, *, trap: Trap | None = None, alone: bool = False) -> Launched:
    """`pipeline WORDS` in `folder`; `alone`: the ranks are started, and then nobody looks after them."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (*folder.glob("code-*"), folder / "pids", folder / "ended"):
        stale.unlink(missing_ok=True)
    launcher = CONTEXT.Process(target=_launcher, args=(folder, list(words), size, free_port(), trap, alone))
    launcher.start()
    return Launched(folder, launcher, size)


def pids(folder: Path, size: int) -> list[int]:
    """Of the ranks, once all are started."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if len(found := (folder / "pids").read_text().split()) == size:
                return [int(pid) for pid in found]
        except OSError:
            pass
        time.sleep(0.01)
    raise TimeoutError(f"{folder}: the ranks were not started")


def alive(pid: int) -> bool:
    """Whether it runs or is stopped; one that only waits to be reaped does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _launcher(folder: Path, words: list[str], size: int, port: int, trap: Trap | None, alone: bool) -> None:
    """As torch/distributed/elastic/agent: passes on INT and TERM, ends the rest when one has failed, kills what stays."""
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_rank, args=(folder, words, rank, size, port, trap, alone)) for rank in range(size)]
    for process in ranks:
        process.start()

    deadline = float("inf")

    def pass_on(number: int, _: object = None) -> None:
        nonlocal deadline
        deadline = min(deadline, time.monotonic() + KILLED_AFTER)
        for process in ranks:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    draft = folder / ".pids"
    draft.write_text(" ".join(str(process.pid) for process in ranks))
    draft.replace(folder / "pids")
    _look_after(ranks, alone, pass_on, lambda: deadline)
    (folder / "ended").write_text(json.dumps([process.exitcode for process in ranks]))


def _look_after(ranks: list[ForkProcess], alone: bool, pass_on: Callable[[int], None], deadline: Callable[[], float]) -> None:
    told = alone
    while running := [process for process in ranks if process.is_alive()]:
        wait([process.sentinel for process in running], 0.1)
        if not told and any(process.exitcode for process in ranks):
            told = True
            pass_on(signal.SIGTERM)
        if time.monotonic() > deadline():
            for process in running:
                process.kill()


def _rank(folder: Path, words: list[str], rank: int, size: int, port: int, trap: Trap | None, alone: bool) -> None:
    from pipeline.runtime.signals import leave_at_signals

    leave_at_signals()
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size} if size > 1 else {}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if size > 1 else {}
    by = {} if alone else {"TORCHELASTIC_RUN_ID": "none"}
    variables = {name: str(value) for name, value in {**place, **meeting, **by}.items()}
    if trap is not None:
        trap.set(folder, rank)
    _tell_of_the_end(folder.absolute() / f"code-{rank}")
    _child(folder, words, rank, variables, 0, 0, None)


def _tell_of_the_end(note: Path) -> None:
    """Every way of this process, but being killed, leads through `os._exit`, that of multiprocessing's children too."""
    leave, me = os._exit, os.getpid()

    def tell_and_leave(status: int) -> NoReturn:
        if os.getpid() == me:
            note.write_text(str(status))
        leave(status)

    os._exit = tell_and_leave


def _own_code(folder: Path, rank: int) -> int | None:
    try:
        return int((folder / f"code-{rank}").read_text())
    except OSError:
        return None


def options(doc: str | None, cases: int) -> Any:
    """The command line of a campaign: how many cases, of which seed, or a single one."""
    import argparse

    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=cases)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one alone")
    return parser.parse_args(sys.argv[1:])
