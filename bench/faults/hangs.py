"""A rank that stands still: the run is ended within `run.hang_timeout` and 3 s, the rank is named, no process stays.

    python -m bench.faults.hangs [--cases N] [--seed S] [--case K]

A rank is stopped (SIGSTOP), its main thread sleeps, or sleeps and lets no other thread run (`gil`), or a worker
of its loader is stuck; in several phases, each rank of 1, 2 and 3. Then the same command must end with the same bits.

A single process that is stopped, or lets no thread run, is not among the cases: nobody is there to see it.
"""

import ctypes
import functools
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conftest import TINY

from bench.faults.launched import Launched, Trap, alive, options, start
from bench.faults.report import report
from bench.faults.signals import results, row

TIMEOUT, BEYOND = 3, 3  # seconds: run.hang_timeout, and what is allowed after it
PHASES = ("forward", "backward", "validation", "save", "evaluation")
KINDS = ("SIGSTOP", "sleep", "gil", "worker")
WORDS = [*TINY, "train.epochs=2", "run.trackers=[]", "run.eval_batch_size=5", f"run.hang_timeout={TIMEOUT}s"]
STUCK_AT = 12  # the step whose batch never comes


@dataclass(frozen=True)
class Case:
    number: int
    kind: str
    phase: str
    size: int
    rank: int
    alone: bool  # nobody looks after the ranks

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())


def cases(count: int, seed: int = 0) -> list[Case]:
    """One kind after the other, each in its phases, sizes and ranks in an order that is drawn."""
    drawn = random.Random(seed)
    places = {}
    for kind in KINDS:
        sizes = (1, 2, 3) if kind in ("sleep", "worker") else (2, 3)
        phases = ("batch",) if kind == "worker" else PHASES
        every = [(phase, size, rank) for phase in phases for size in sizes for rank in range(size)]
        places[kind] = itertools.cycle(drawn.sample(every, len(every)))
    kinds = itertools.islice(itertools.cycle(KINDS), count)
    return [Case(number, kind, *next(places[kind]), alone=drawn.random() < 0.5) for number, kind in enumerate(kinds)]


def stand_still(kind: str, folder: Path) -> None:
    if kind == "worker":
        _let_a_worker_stick(folder)
        return
    _strike(folder)
    if kind == "SIGSTOP":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "gil":
        ctypes.PyDLL(None).sleep(1000)  # a call that keeps the interpreter's lock
    else:
        time.sleep(1000)


def _let_a_worker_stick(folder: Path) -> None:
    """The data are read by a worker, which never comes back with one batch."""
    from pipeline.data.batches import TrainBatches
    from pipeline.runtime.world import World

    read = TrainBatches.__getitem__

    def stuck(self: Any, step: int) -> Any:
        if step == STUCK_AT:
            _strike(folder)
            time.sleep(1000)
        return read(self, step)

    World.fits = lambda self, tensors: False  # type: ignore[method-assign]
    TrainBatches.__getitem__ = stuck  # type: ignore[method-assign]


def _strike(folder: Path) -> None:
    (folder / "stands").write_text(str(os.getpid()))
    (folder / "struck").write_text(str(time.time()))


def play(case: Case, folder: Path, whole: tuple[bytes, bytes]) -> tuple[str, float]:
    """What is wrong, empty if nothing; and the seconds from the hang to the end of the last process."""
    phase = "start" if case.kind == "worker" else case.phase
    words = ["evaluate" if case.phase == "evaluation" else "train", *WORDS, *(["run.workers=1"] if case.kind == "worker" else [])]
    run = start(folder, words, case.size, trap=Trap(phase, case.rank, functools.partial(stand_still, case.kind)), alone=case.alone)
    codes = run.join(60)
    if not (folder / "struck").exists():
        return f"the phase never came: {codes} {run.output()[-600:]}", 0.0
    seconds = time.time() - float((folder / "struck").read_text())
    told = f"{codes} {run.output()[-900:]}"
    if wrong := _wrong(case, codes, run, seconds):
        return f"{wrong}: {told}", seconds
    again = start(folder, words, case.size)
    if set(again.join(60)) != {0}:
        return f"the same command did not end well: {again.output()[-600:]}", seconds
    return ("" if results(folder) == whole else f"other bits than undisturbed: {told}"), seconds


def _wrong(case: Case, codes: Sequence[int | None], run: Launched, seconds: float) -> str:
    if alive(int((run.folder / "stands").read_text())):
        return "the one that stood still is still there"
    if seconds > TIMEOUT + BEYOND:
        return f"it took {seconds:.1f} s to end"
    others = {code for rank, code in enumerate(codes) if rank != case.rank}
    if not others <= ({1} if case.alone else {1, 143}) or codes[case.rank] not in (1, -signal.SIGKILL):  # a launcher tells the rest
        return "other exit codes than documented"
    stage = "evaluate" if case.phase == "evaluation" else "train"
    stands = rf"it is in {stage} after step \d+, phase \w+ at \S+:\d+"
    seen = stands if case.kind in ("sleep", "worker") else r"it was last seen (between|in) .*, phase \w+"
    if not re.search(rf"pipeline: rank {case.rank} on {re.escape(socket.gethostname())} .*; {seen}", run.output()):
        return "not named"
    status = json.loads((run.folder / "runs/tiny/status.json").read_text())
    if (status["state"], status["exit_code"]) != ("failed", 1) or f"rank {case.rank} on" not in status["message"]:
        return f"status.json: {status}"
    return "a traceback" if "Traceback" in run.output() else ""


def campaign(chosen: Sequence[Case]) -> Iterator[tuple[Case, str, float]]:
    """Each case, what is wrong with it, and how long its end took."""
    work = Path(tempfile.mkdtemp(prefix="hangs-"))
    for case in chosen:
        before = work / f"whole-{case.size}"
        if not before.exists():
            codes = start(before, ["train", *WORDS], case.size).join(120)
            assert set(codes) == {0}, f"undisturbed: {codes}\n{(before / 'output.txt').read_text()}"
        folder = work / f"case-{case.number}"
        yield case, *play(case, folder, results(before))
        shutil.rmtree(folder)
    shutil.rmtree(work)


def main() -> int:
    asked = options(__doc__, cases=30)
    found: dict[str, list[tuple[str, str, float]]] = {}
    chosen = cases(max(asked.cases, (asked.case or 0) + 1), asked.seed)
    for case, wrong, seconds in campaign(chosen if asked.case is None else [chosen[asked.case]]):
        print(f"{case}: {wrong or 'passed'} ({seconds:.1f} s)", flush=True)
        found.setdefault(case.kind, []).append((str(case), wrong, seconds))
    if asked.case is not None:
        return int(any(wrong for each in found.values() for _, wrong, _ in each))
    return report("hangs", [row(kind, each) for kind, each in found.items()], seed=asked.seed, hang_timeout_s=TIMEOUT)


if __name__ == "__main__":
    sys.exit(main())
