"""How much faster P processes of one machine are than one: python -m bench.processes [--only NAME ...] [--repeats N] [--processes P ...]

efficiency = images/s of P processes / (P x images/s of one), of each loop against itself. "weak" is with the same batch for
each process (the global batch is P times as large), "strong" with the same global batch (each has a P-th of it).

Ours adds gradients through shared memory; beside it stand ours over DDP and gloo (run.strategy=ddp), and a DDP loop
written by hand, on tensors in memory. One thread a process, the same net and batch, SGD with momentum, synthetic images,
no augmentation. All loops are running processes that take turns, in windows of so many steps; a window takes as long as
its slowest process. A figure is the median over the rounds. "busy" is the same efficiency by the seconds that the
processes were computing, not waiting: on a machine that others use too, the one to believe.
"""

import argparse
import functools
import itertools
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from bench import faults  # noqa: F401  (which puts the two below in reach)
from bench.measure import Row, keep, spread

# isort: split
from conftest import TINY
from processes import CONTEXT, begin, free_port

Seconds = tuple[float, float]  # passed; computing


@dataclass(frozen=True)
class Work:
    model: str
    shape: tuple[int, int, int]
    batch_size: int
    steps: int  # of a window


WORKS = {
    "LeNet-5, batch 64": Work("lenet5", (1, 28, 28), 64, 60),
    "tutorial net, batch 32": Work("cifar_tutorial", (3, 32, 32), 32, 100),
    "tutorial net, batch 512": Work("cifar_tutorial", (3, 32, 32), 512, 12),
}
IMAGES, CLASSES = 20_000, 10
EVERY = (
    "train.augment=[]",
    "data.validation=0",
    "train.epochs=100000",
    "run.trackers=[]",
    "run.log_every=50",
    "run.checkpoint_every=1000000",
)
LOOPS = ("ours", "ours, DDP", "DDP by hand")


class Windows:
    """In a process that works: `step` after each of its steps."""

    def __init__(self, parent: Connection, steps: int) -> None:
        self._parent, self._steps = parent, steps
        self._done, self._began = 0, clocks()

    def step(self) -> None:
        """Tell of the window if it is over, and wait for the next turn."""
        self._done += 1
        if self._done % self._steps == 0:
            self._parent.send(tuple(now - before for now, before in zip(clocks(), self._began, strict=True)))
            self._parent.recv()
            self._began = clocks()


def clocks() -> Seconds:
    return time.perf_counter(), time.process_time()


@dataclass(frozen=True)
class Arm:
    """A loop on some processes, which wait for their turn."""

    processes: Sequence[ForkServerProcess]
    ends: Sequence[Connection]
    steps: int

    def window(self) -> Seconds:
        """Seconds a step, of the slowest process."""
        for end in self.ends:
            end.send(None)
        return self.first()

    def first(self) -> Seconds:
        passed, busy = zip(*(end.recv() for end in self.ends), strict=True)
        return max(passed) / self.steps, max(busy) / self.steps

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


def arm(loop: str, work: Work, batch_size: int, size: int, folder: Path) -> Arm:
    pairs = [CONTEXT.Pipe() for _ in range(size)]
    theirs = [pair[1] for pair in pairs]
    if loop == "DDP by hand":
        run = functools.partial(by_hand, work=work, batch_size=batch_size, size=size, port=free_port())
        started = [CONTEXT.Process(target=run, args=(rank, parent)) for rank, parent in enumerate(theirs)]
        for process in started:
            process.start()
    else:
        channels, side, _ = work.shape
        source = f"data.source={{name: synthetic, train: {IMAGES}, test: 10, size: {side}, channels: {channels}}}"
        strategy = ["run.strategy=ddp"] if loop == "ours, DDP" else []
        words = ["train", *TINY, *EVERY, source, f"train.model={work.model}", f"train.batch_size={batch_size}", "run.hang_timeout=null"]
        words += ["train.optimizer={name: sgd, momentum: 0.9}", "train.lr=0.001", *strategy]
        started = begin(folder, words, processes=size, before=functools.partial(in_windows, parents=theirs, steps=work.steps))
    return Arm(started, [pair[0] for pair in pairs], work.steps)


def in_windows(rank: int, parents: Sequence[Connection], steps: int) -> None:
    """Let the training loop of this process work in windows."""
    from pipeline.stages.record import Record

    windows, real = Windows(parents[rank], steps), Record.step

    def step(self: Record, done: bool) -> None:
        real(self, done)
        windows.step()

    Record.step = step  # type: ignore[method-assign]


def by_hand(rank: int, parent: Connection, *, work: Work, batch_size: int, size: int, port: int) -> None:
    """What a good engineer writes: tensors in memory, each process its rows of a permutation, DDP with its fastest settings."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    from pipeline.config import Spec
    from pipeline.learning import models

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: nn.Module = models.build(Spec(name=work.model), work.shape, CLASSES)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
        with warnings.catch_warnings():  # `broadcast_buffers` has another name in newer torch
            warnings.simplefilter("ignore", FutureWarning)
            model = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    images, labels = torch.rand(IMAGES, *work.shape), torch.randint(0, CLASSES, (IMAGES,))
    windows = Windows(parent, work.steps)
    for epoch in itertools.count():
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(epoch))
        for rows in order[: IMAGES // batch_size * batch_size].view(-1, size, batch_size // size)[:, rank]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            windows.step()


def measured(work: Work, counts: Sequence[int], repeats: int, folder: Path, *, weak: bool) -> dict[tuple[str, int], list[Seconds]]:
    """Seconds a step of each loop on each number of processes, round after round; the first window of each, which warms up, is left out."""
    arms: dict[tuple[str, int], Arm] = {}
    try:
        for size in (1, *counts):
            for loop in LOOPS:
                if (loop, size) != ("ours, DDP", 1):
                    place = folder / f"{loop}-{size}-{weak}"
                    place.mkdir()
                    arms[loop, size] = arm(loop, work, work.batch_size * (size if weak else 1), size, place)
                    arms[loop, size].first()
        rounds = [{which: each.window() for which, each in arms.items()} for _ in range(repeats)]
    finally:
        for each in arms.values():
            each.close()
    return {which: [found[which] for found in rounds] for which in arms}


def rows(name: str, work: Work, counts: Sequence[int], repeats: int) -> Iterator[Row]:
    for weak in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            found = measured(work, counts, repeats, Path(folder), weak=weak)
        for (loop, size), seconds in found.items():
            alone = found["DDP by hand" if loop == "DDP by hand" else "ours", 1]
            images = work.batch_size * (size if weak else 1)
            row: dict[str, Any] = {
                "work": name,
                "scaling": "weak" if weak else "strong",
                "processes": size,
                "loop": loop if size > 1 or loop == "ours" else "by hand",
                "images/s": round(images / _median(passed for passed, _ in seconds)),
            }
            for clock, column in ((0, "efficiency"), (1, "busy")):
                each = [(one[clock] / (1 if weak else size)) / several[clock] for one, several in zip(alone, seconds, strict=True)]
                row |= {column: round(statistics.median(each), 3), f"{column}, spread": spread(each)}
            yield row


def _median(values: Iterator[float]) -> float:
    return statistics.median(list(values))


def main(only: Sequence[str], counts: Sequence[int], repeats: int) -> None:
    found: list[Row] = []
    for name in only:
        for row in rows(name, WORKS[name], counts, repeats):
            found.append(row)
            print(row, file=sys.stderr, flush=True)
    keep("processes", found, n=repeats)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(WORKS), default=tuple(WORKS))
    parser.add_argument("--processes", nargs="+", type=int, default=(2, 4))
    parser.add_argument("--repeats", type=int, default=15)
    asked = parser.parse_args()
    main(asked.only, asked.processes, asked.repeats)
