"""Stopped under one strategy and number of processes, gone on with under another: the result, and the images, of one process undisturbed.

    python -m bench.faults.worlds [--cases N]

In float64, so that nothing but the order of additions is left to differ: weights, the optimizer's state and the average of the last
checkpoint, each tensor against its largest value. And every process notes which images its model is given in which step: not the
indices that were computed, but the pixels that arrive at the forward pass. Over all processes, and over the stop, a step has to have
seen the images that it sees on one process, each as often (once, as its batch does not straddle two epochs).
"""

import argparse
import collections
import functools
import hashlib
import itertools
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from processes import launch
from safetensors.numpy import load_file

from bench.faults.report import Row, report

IMAGES, BATCH_SIZE, STEPS, STOP_AT = 192, 12, 36, 10
RECIPE = [
    f"data.source={{name: synthetic, train: {IMAGES}, test: 30}}",
    "data.validation=0",
    "train.model={name: lenet, kernel: 3, channels: [4, 8], hidden: [16]}",
    "train.augment=[]",  # pixels tell the image
    "train.precision=fp64",
    "train.optimizer=adamw",
    "train.lr=0.003",
    "train.average={name: ema, decay: 0.9}",
    "train.clip=0.5",
    f"train.batch_size={BATCH_SIZE}",
    f"train.steps={STEPS}",
    "run.name=worlds",
    "run.log_every=5",
    "run.checkpoint_every=10",
    "run.trackers=[]",
    "run.threads=1",
]
WAYS: dict[str, tuple[int, list[str]]] = {
    "one process": (1, []),
    "DataParallel": (1, ["run.strategy=dp"]),
    "DDP on 2": (2, ["run.strategy=ddp"]),
    "DDP on 4": (4, ["run.strategy=ddp"]),
    "FSDP on 2": (2, ["run.strategy=fsdp"]),
    "FSDP on 4": (4, ["run.strategy=fsdp"]),
}
PAIRS = tuple(itertools.product(WAYS, WAYS))
FILES = ("weights", "optimizer", "average")
TOLERANCE = 1e-12
Seen = dict[int, collections.Counter[str]]  # step -> how often each image


def note_images(folder: Path, rank: int) -> None:
    """From now on keep the digest of each image that the model of this process is given to learn from."""
    from pipeline.runtime.world import World
    from pipeline.stages import train

    update, forward = train.update, World.forward  # type: ignore[attr-defined]
    step = -1

    def noting_update(state: Any, *more: Any, **measured: Any) -> bool:
        nonlocal step
        step = state.step
        done, step = update(state, *more, **measured), -1
        return done

    def noting_forward(self: Any, model: Any, images: Any) -> Any:
        if step >= 0:
            with (folder / f"seen-{rank}.jsonl").open("a") as file:
                file.writelines(json.dumps([step, hashlib.sha256(image.numpy().tobytes()).hexdigest()]) + "\n" for image in images)
        return forward(self, model, images)

    train.update, World.forward = noting_update, noting_forward  # type: ignore[attr-defined, method-assign]


def seen(folder: Path) -> Seen:
    found: Seen = {}
    for path in folder.glob("seen-*.jsonl"):
        for step, image in map(json.loads, path.read_text().splitlines()):
            found.setdefault(step, collections.Counter())[image] += 1
    return found


def train(folder: Path, way: str, *, stop_at: int = 0) -> None:
    processes, words = WAYS[way]
    folder.mkdir(exist_ok=True)
    ended = launch(folder, ["train", *RECIPE, *words], processes=processes, stop_at=stop_at, before=functools.partial(note_images, folder))
    if set(ended.codes) != {75 if stop_at else 0}:
        raise RuntimeError(f"{way}: exit codes {ended.codes}: {ended.output.splitlines()[-1:]}")


def largest_difference(folder: Path, whole: Path) -> float:
    """Of any tensor of the last checkpoint, as a share of its largest value."""
    ours, theirs = (sorted(each.glob("artifacts/train/*/checkpoints/step-*"))[-1] for each in (folder, whole))
    if ours.name != theirs.name:
        raise RuntimeError(f"{ours.name} instead of {theirs.name}")
    largest = 0.0
    for name in FILES:
        a, b = load_file(ours / f"{name}.safetensors"), load_file(theirs / f"{name}.safetensors")
        if a.keys() != b.keys():
            raise RuntimeError(f"{name}: other names {a.keys() ^ b.keys()}")
        largest = max([largest, *(float(np.abs(a[k] - b[k]).max() / np.abs(b[k]).max()) for k in b)])
    return largest


def refuse_epochs(images: Seen) -> None:
    """See that `images`, those of the undisturbed run, are what is promised: each once an epoch."""
    per_epoch = IMAGES // BATCH_SIZE
    for first in range(0, STEPS - per_epoch + 1, per_epoch):
        epoch = sum((images[step] for step in range(first, first + per_epoch)), collections.Counter[str]())
        if len(epoch) != IMAGES or set(epoch.values()) != {1}:
            raise RuntimeError(f"undisturbed, the epoch that begins with step {first} has seen {len(epoch)} images of {IMAGES}")


def run(pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """A row for each pair of ways to run."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = folder / "whole"
        train(whole, "one process")
        expected = seen(whole)
        refuse_epochs(expected)
        for before, after in pairs:
            row: dict[str, Any] = {"stopped under": before, "gone on with under": after}
            begun, on = folder / f"begun {before}", folder / "on"
            try:
                if not begun.exists():
                    train(begun, before, stop_at=STOP_AT)
                shutil.copytree(begun, on, symlinks=True)
                train(on, after)
                row["largest difference"] = difference = largest_difference(on, whole)
                found = seen(on)
                row["steps with the same images"] = f"{sum(found.get(k) == expected[k] for k in expected)} of {STEPS}"
                failed = found != expected or not difference <= TOLERANCE
            except RuntimeError as error:
                row["error"], failed = str(error), True
            row["failures"] = [f"{row}: pipeline train {' '.join(map(repr, RECIPE))}"] if failed else []
            shutil.rmtree(on, ignore_errors=True)
            rows.append(row)
            print({k: v for k, v in row.items() if k != "failures"}, file=sys.stderr)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=len(PAIRS))
    options = parser.parse_args()
    sys.exit(report("worlds", run(PAIRS[: options.cases]), cases=options.cases, tolerance=TOLERANCE))
