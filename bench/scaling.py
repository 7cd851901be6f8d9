"""A model of the time of a step, fitted to 1, 2 and 4 processes of this machine, and one of GPUs: python -m bench.scaling [--repeats N]

Fitted on 1 and 2 processes, it has to predict 4, which were measured beside them; the errors are kept. Then it is fitted to all.
Loops are those of bench/processes.py: ours on CPU processes, through shared memory and by DDP over gloo, one thread each, which
take turns in windows; a figure is the median over the rounds. For GPUs nothing is measured: operations, parameters and layers are
counted, rates are stated (docs/scaling.md has their sources).

Writes bench/results/scaling.json, docs/scaling.svg and the tables of docs/scaling.md (python -m bench.scaling_page makes the last two
anew without measuring).
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.measure import RESULTS, machine, spread
from bench.processes import CLASSES, Arm, Work, arm
from bench.scaling_model import BUCKET, GLOO, LINES, SHARED, How, Net, Point, all_reduce, efficiency, fitted, predicted, step
from bench.scaling_page import write
from pipeline.config import Spec
from pipeline.learning import models

COUNTS = (1, 2, 4)
LOOPS = {"ours": SHARED, "ours, DDP": GLOO}
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
GOOD = 0.8


@dataclass(frozen=True)
class Small:
    """A net that is measured, on batches of so many images a process."""

    spec: Spec
    batches: tuple[int, ...]
    steps: tuple[int, ...]  # of a window, for each


SHAPE = (1, 28, 28)
NETS = {
    "LeNet-5": Small(Spec(name="lenet5"), (16, 64, 256), (150, 60, 20)),
    "MLP": Small(Spec(name="mlp", options={"hidden": [3000, 2400]}), (8, 32, 128), (10, 8, 4)),
}
LARGE = {
    "ResNet-50, 224": (Spec(name="torchvision", options={"arch": "resnet50"}), (3, 224, 224), 1000, 128),
    "ResNet-18, CIFAR-10": (Spec(name="resnet18"), (3, 32, 32), 10, 128),
    "LeNet-5, MNIST": (Spec(name="lenet5"), SHAPE, 10, 64),
}
TOTAL = {"ResNet-50, 224": 8192, "ResNet-18, CIFAR-10": 2048, "LeNet-5, MNIST": 1024}  # images of one batch that is shared out
CHANGES = {
    "as it is": How(),
    "images on each node's own disks": How(local=True),
    "and BatchNorm of a GPU's own": How(local=True, sync=False),
    "both, and a batch four times as large": How(local=True, sync=False, larger=4),
    "both, and four batches an update": How(local=True, sync=False, accumulate=4),
    "both, and FSDP": How(local=True, sync=False, sharded=True),
}
BEST = How(local=True, sync=False)


def gradient(spec: Spec) -> tuple[int, float]:
    """Its bytes, and the share of them that is ready before DDP's last bucket."""
    sizes = [4 * parameter.numel() for parameter in models.build(spec, SHAPE, CLASSES).parameters()]
    buckets, limit = [0], 1 << 20  # the first is of 1 MB
    for size in reversed(sizes):  # as the backward pass makes them
        buckets[-1] += size
        if buckets[-1] >= limit:
            buckets.append(0)
            limit = BUCKET
    last = next(size for size in reversed(buckets) if size)
    return sum(sizes), 1 - last / sum(sizes)


def measured(repeats: int) -> Iterator[dict[str, Any]]:
    """Each net on batches of each size, one after the other; loops and numbers of processes by turns."""
    for name, net in NETS.items():
        count, early = gradient(net.spec)
        for images, steps in zip(net.batches, net.steps, strict=True):
            model = json.dumps({"name": net.spec.name, **net.spec.options})
            with tempfile.TemporaryDirectory() as folder:
                found = _turns(Work(model, SHAPE, images, steps), repeats, Path(folder))
            for (loop, processes), seconds in found.items():
                point = Point(name, images, processes, LOOPS[loop], count, early, statistics.median(seconds))
                yield {**asdict(point), "spread": spread(seconds)}


def _turns(work: Work, repeats: int, folder: Path) -> dict[tuple[str, int], list[float]]:
    """Seconds a step in each round; the first window, which warms up, is left out."""
    arms: dict[tuple[str, int], Arm] = {}
    (folder / "prepare").mkdir()
    try:
        for loop in LOOPS:
            for processes in COUNTS if loop == "ours" else COUNTS[1:]:
                place = folder / f"{loop}-{processes}"
                (place / "artifacts").mkdir(parents=True)
                (place / "artifacts/prepare").symlink_to(folder / "prepare")
                arms[loop, processes] = arm(loop, work, work.batch_size * processes, processes, place)
                arms[loop, processes].first()
        rounds = [{which: each.window()[0] for which, each in arms.items()} for _ in range(repeats)]
    finally:
        for each in arms.values():
            each.close()
    return {which: [found[which] for found in rounds] for which in arms}


def checked(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fitted on 1 and 2 processes and held against 4; and fitted on all."""
    points = [Point(**{name: value for name, value in row.items() if name not in ("spread", "predicted")}) for row in rows]
    few = fitted([point for point in points if point.processes < max(COUNTS)])
    for row, point in zip(rows, points, strict=True):
        row["predicted"] = predicted(point, few)
    held_out = [abs(row["predicted"] / row["seconds"] - 1) for row in rows if row["processes"] == max(COUNTS)]
    known = [abs(row["predicted"] / row["seconds"] - 1) for row in rows if row["processes"] < max(COUNTS)]
    every = fitted(points)
    left = [abs(predicted(point, every) / point.seconds - 1) for point in points]
    errors = {"fitted": statistics.median(known), "held out": statistics.median(held_out), "held out, most": max(held_out)}
    return {"parameters, of 1 and 2": few, "parameters": every, "errors": {**errors, "all": statistics.median(left)}}


def counted() -> list[Net]:
    """The nets of the GPUs, their operations, parameters and layers."""
    nets = []
    for name, (spec, shape, classes, batch) in LARGE.items():
        model = models.build(spec, shape, classes)
        leaves = [layer for layer in model.modules() if not [*layer.children()]]
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(2, *shape)).sum().backward()
        count = sum(parameter.numel() for parameter in model.parameters())
        norms = sum(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in leaves)
        pixels = shape[0] * shape[1] * shape[2] if shape[1] > 32 else 0  # small images are all on the GPU
        nets.append(Net(name, counter.get_total_flops() / 2, 4 * count, len(leaves), norms, pixels, batch))
    return nets


def foretold(nets: Sequence[Net]) -> list[dict[str, Any]]:
    """Each net on 8 to 1,024 GPUs: efficiencies, and the parts of a step."""
    rows = []
    for net in nets:
        for line in LINES:
            for gpus in GPUS:
                parts = {f"{part}, ms": 1e3 * seconds for part, seconds in step(net, gpus, line).items()}
                strong = efficiency(net, gpus, line, BEST, TOTAL[net.name]) if gpus <= TOTAL[net.name] else None
                weak = {"as it is": efficiency(net, gpus, line), "weak": efficiency(net, gpus, line, BEST), "strong": strong}
                reduce = {"all-reduce, ms": 1e3 * all_reduce(gpus, net.bytes, line)}
                rows.append({"net": net.name, "line": line.name, "gpus": gpus, **parts, **reduce, **weak})
    return rows


def advised(nets: Sequence[Net]) -> list[dict[str, Any]]:
    """What each change brings on most GPUs, and up to how many all stays efficient."""
    rows = []
    for net in nets:
        for line in LINES:
            for change, how in CHANGES.items():
                each = {gpus: efficiency(net, gpus, line, how) for gpus in GPUS}
                enough = [gpus for gpus in GPUS if all(each[fewer] >= GOOD for fewer in GPUS if fewer <= gpus)]
                facts = {"up to": max(enough, default=0), "at most": each[GPUS[-1]]}
                rows.append({"net": net.name, "line": line.name, "change": change, **facts})
    return rows


def concluded(rows: Sequence[dict[str, Any]], repeats: int, here: dict[str, Any]) -> dict[str, Any]:
    """What is kept of measured `rows`."""
    nets = counted()
    kept = {"command": "python -m bench.scaling", "n": repeats, "machine": here, "measured": rows, **checked(rows)}
    return kept | {"nets": [asdict(net) for net in nets], "total": TOTAL, "foretold": foretold(nets), "advised": advised(nets)}


def main(repeats: int) -> None:
    here, rows = machine(), []
    for row in measured(repeats):
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    kept = concluded(rows, repeats, here)
    (RESULTS / "scaling.json").write_text(json.dumps(kept, indent=1) + "\n")
    write(kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    main(parser.parse_args().repeats)
