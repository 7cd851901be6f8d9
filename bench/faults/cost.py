"""What trust costs: python -m bench.faults.cost [--repeats N]

Steps: the training loop with everything on (checkpoints, their checks, the record's digest, the watch for
hangs), beside the same loop without; from its first step until the last checkpoint is on the disk.
Saves: how long one of ours keeps the loop waiting, and how long until it is synced to the disk, beside
accelerate's `save_state`, and beside that with the syncs it leaves out. Arms take turns; medians of the
repeats, the ratio that of the medians.
"""

import argparse
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conftest import TINY
from processes import launch

from bench.faults.report import Row, report

LOOPS = {
    "LeNet-5, batch 64, a checkpoint every 500 steps": (
        "data.source={name: synthetic, train: 20000, test: 100, size: 28, channels: 1}",
        "train.model=lenet5",
        "train.batch_size=64",
        "train.steps=2000",
    ),
    "ResNet-18 (11 million parameters), batch 32, a checkpoint every 20 steps": (
        "data.source={name: synthetic, train: 2000, test: 100, size: 16, channels: 3}",
        "train.model=resnet18",
        "train.batch_size=32",
        "train.steps=40",
        "run.checkpoint_every=20",
    ),
}
COMMON = ("train.augment=[]", "data.validation=0", "run.log_every=50", "run.checkpoint_every=500", "run.trackers=[]", "train.epochs=1")


def timed(_: int, *, trusted: bool) -> None:
    """Let a training write down how long its loop took; without trust nothing is saved, and nothing looked at."""
    from pipeline.stages.record import Record

    begin, end = Record.__enter__, Record.__exit__

    def enter(record: Record) -> Record:
        record._began = time.perf_counter()  # type: ignore[attr-defined]
        return begin(record)

    def leave(record: Record, *how: Any) -> None:
        end(record, *how)
        Path("seconds").write_text(str(time.perf_counter() - record._began))  # type: ignore[attr-defined]

    Record.__enter__, Record.__exit__ = enter, leave  # type: ignore[method-assign]
    if not trusted:
        Record.save = lambda *_: None  # type: ignore[method-assign]


def loop(folder: Path, words: Sequence[str], *, trusted: bool) -> float:
    """Milliseconds a step."""
    folder.mkdir()
    watch = () if trusted else ("run.hang_timeout=null",)
    ended = launch(folder, ["train", *TINY, *COMMON, *words, *watch], before=functools.partial(timed, trusted=trusted))
    assert ended.code == 0, ended.output
    steps = next(int(word.partition("=")[2]) for word in words if word.startswith("train.steps="))
    return float((folder / "seconds").read_text()) / steps * 1e3


def loops(repeats: int) -> list[Row]:
    rows: list[Row] = []
    for name, words in LOOPS.items():
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(repeats):
            for trusted in times:
                with tempfile.TemporaryDirectory() as work:
                    times[trusted].append(loop(Path(work) / "run", words, trusted=trusted))
        on, off = statistics.median(times[True]), statistics.median(times[False])
        rows.append({"what": f"step, {name}", "without, ms": _ms(off), "ours, ms": _ms(on), "ratio": round(on / off, 3)})
    return rows


def saves(repeats: int) -> list[Row]:
    """Of ResNet-18 with momentum: 94 MB."""
    import torch
    import torchvision
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration
    from torch.amp.grad_scaler import GradScaler

    from pipeline.learning import state as checkpoints
    from pipeline.learning.metrics import Tally

    torch.set_num_threads(1)
    model = torchvision.models.resnet18()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    state = checkpoints.TrainState(model, (optimizer,), GradScaler("cpu", enabled=False), [Tally.zero(torch.device("cpu"))])
    taken: checkpoints.Snapshot | None = None
    times: dict[str, list[float]] = {"waits": [], "synced": [], "theirs": [], "theirs, synced": []}
    with tempfile.TemporaryDirectory(dir=".") as work:
        project = ProjectConfiguration(project_dir=f"{work}/theirs", automatic_checkpoint_naming=True, total_limit=2)
        accelerator = Accelerator(cpu=True, project_config=project)
        accelerator.prepare(model, optimizer)
        ours = Path(work) / "ours"
        ours.mkdir()
        for _ in range(repeats + 1):
            state.step += 1
            began = time.perf_counter()
            taken = checkpoints.snapshot(state, torch.zeros(1, 3), wanted=True, over=taken, journal={}, environment={})
            assert taken.is_finite
            times["waits"].append(time.perf_counter() - began)
            checkpoints.save(taken, ours / "checkpoints", 2)
            times["synced"].append(time.perf_counter() - began)
            began = time.perf_counter()
            accelerator.save_state()
            times["theirs"].append(time.perf_counter() - began)
            _sync_all(max(Path(f"{work}/theirs/checkpoints").iterdir(), key=lambda path: path.stat().st_mtime))
            times["theirs, synced"].append(time.perf_counter() - began)
    middle = {name: statistics.median(found[1:]) * 1e3 for name, found in times.items()}  # the first makes its memory
    return [
        _beside("save: the loop waits", middle["waits"], "accelerate save_state", middle["theirs"]),
        _beside("save: synced to the disk", middle["synced"], "accelerate save_state, which syncs nothing", middle["theirs"]),
        _beside("save: synced to the disk", middle["synced"], "accelerate save_state, then synced", middle["theirs, synced"]),
    ]


def _beside(what: str, ours: float, peer: str, theirs: float) -> Row:
    return {"what": f"{what}, beside {peer}", "without, ms": _ms(theirs), "ours, ms": _ms(ours), "ratio": round(ours / theirs, 3)}


def _sync_all(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder, folder.parent]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _ms(value: float) -> float:
    return round(value, 3 if value < 100 else 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args().repeats
    arms: list[Callable[[int], list[Row]]] = [saves, loops]
    sys.exit(report("cost", [row for arm in arms for row in arm(asked)], repeats=asked))
