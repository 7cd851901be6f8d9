"""What trust costs: python -m bench.faults.cost [--repeats N]

Steps: windows of one training, each from a checkpoint to where the next is due, by turns with everything on (the
checkpoint, until it is on the disk, its checks, the marks of the watch for hangs, the agreement to stop) and with
all that off. The ratio is the median of those of neighbours, on a machine whose speed drifts; the first window,
which warms up, is left out.
Saves: how long one of ours keeps the loop waiting, and how long until it is synced to the disk, beside
accelerate's `save_state`, and beside that with the syncs it leaves out. They take turns; medians of the repeats.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from conftest import TINY

from bench.alternate import ratio
from bench.alternate import windows as windows_of
from bench.faults.report import Row, report

LENET = ("data.source={name: synthetic, train: 20000, test: 100, size: 28, channels: 1}", "train.model=lenet5", "train.batch_size=64")
RESNET = ("data.source={name: synthetic, train: 2000, test: 100, size: 16, channels: 3}", "train.model=resnet18", "train.batch_size=32")
LOOPS = {  # overrides, steps from checkpoint to checkpoint, windows with trust and without, processes
    "LeNet-5, batch 64, a checkpoint every 100 steps": (LENET, 100, 60, 1),
    "the same on 2 processes": (LENET, 100, 60, 2),
    "ResNet-18 (11 million parameters), batch 32, a checkpoint every 40 steps": (RESNET, 40, 20, 1),
}
TRUST = ("pipeline.runtime.watch:Marks.at", "pipeline.runtime.world:World.stopping")
COMMON = ("train.augment=[]", "data.validation=0", "run.trackers=[]", "train.epochs=1")


def loops() -> list[Row]:
    rows: list[Row] = []
    for name, (words, every, windows, processes) in LOOPS.items():
        with tempfile.TemporaryDirectory() as work:
            often = (f"run.checkpoint_every={every}", f"run.log_every={every // 4}", f"train.steps={(2 * windows + 1) * every}")
            on, off = windows_of(Path(work), ["train", *TINY, *COMMON, *words, *often], TRUST, processes=processes)
        ms = [_ms(statistics.median(seconds) / every * 1e3) for seconds in (off, on)]
        rows.append({"what": f"step, {name}", "without, ms": ms[0], "ours, ms": ms[1], "ratio": round(ratio(on, off), 3), "pairs": windows})
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
    parser.add_argument("--repeats", type=int, default=20)
    asked = parser.parse_args().repeats
    sys.exit(report("cost", [*saves(asked), *loops()], repeats=asked))
