"""A run that is half done, and then asked for otherwise: python -m bench.faults.changes

Each key of `train` is changed under it: that must be another training, which leaves the half of the first alone.
And it is gone on with on other terms, as other threads or another torch: the training is the same, and that its
bits may not be is said, by name.
"""

import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from conftest import TINY
from processes import launch

from bench.faults.report import Row, report
from pipeline.config import TrainConfig

# What each key is changed to; a key that is added to TrainConfig has to be added here.
OTHER = {
    "model": "mlp",
    "init": "orthogonal",
    "freeze": "[0.*]",
    "batch_norm": "local",
    "loss": "mse",
    "optimizer": "adam",
    "lr": "0.04",
    "schedule": "cosine",
    "lr_by": "epoch",
    "warmup": "1",
    "clip": "1",
    "nonfinite": "skip",
    "epochs": "5",
    "steps": "60",
    "batch_size": "13",
    "accumulate": "2",
    "augment": "[]",
    "mix": "[mixup]",
    "average": "ema",
    "mean": "0.5",
    "std": "0.5",
    "precision": "bf16",
    "validate_every": "2",
    "metric": "loss",
    "select": "last",
    "patience": "3",
    "seed": "1",
    "determinism": "elastic",
    "shards": "4",
}


def has_another(_: int, what: str) -> None:
    from pipeline.runtime.world import World

    real = World.environment
    World.environment = property(lambda world: {**real.__get__(world), what: "another"})  # type: ignore[assignment]


# What it is gone on with, on so many processes, and what has to be said of it.
TERMS: dict[str, tuple[tuple[str, ...], int, Callable[[int], None] | None]] = {
    "": ((), 1, None),
    "threads": (("run.threads=2",), 1, None),
    "processes": ((), 2, None),
    "strategy": (("run.strategy=dp",), 1, None),
    "compile": (("run.compile=aot_eager",), 1, None),
    "channels_last": (("run.channels_last=true",), 1, None),
    "torch": ((), 1, functools.partial(has_another, what="torch")),
    "device": ((), 1, functools.partial(has_another, what="device")),
}


def begun(folder: Path) -> None:
    folder.mkdir()
    assert launch(folder, ["train", *TINY], stop_at=15).code == 75


def changed_keys(folder: Path) -> Row:
    """Of the keys of `train`, those whose change is another training and leaves the first as it was."""
    begun(folder)
    failures = [f"{key} is not in OTHER" for key in TrainConfig.model_fields.keys() - OTHER.keys()]
    for key, value in OTHER.items():
        told = launch(folder, ["status", *TINY, f"train.{key}={value}"]).output
        if "train     not fresh goes on" in told or "train     not fresh" not in told:
            failures.append(f"train.{key}={value}: {told}")
    if "train     not fresh goes on where it stopped" not in launch(folder, ["status", *TINY]).output:
        failures.append("the first is not as it was")
    return {"what": "a key of train is changed", "cases": len(OTHER), "as promised": len(OTHER) - len(failures), "failures": failures}


def changed_terms(folder: Path) -> Row:
    """Of other terms, those that are said, and do not keep the run from its end."""
    folder.mkdir()
    failures = []
    for what, (words, processes, before) in TERMS.items():
        place = folder / (what or "same")
        begun(place)
        ended = launch(place, ["train", *TINY, *words], processes=processes, before=before)
        line = next((line for line in ended.output.splitlines() if "not to the bit as before" in line), "")
        if set(ended.codes) != {0} or (f"{what} " in line) != bool(what) or bool(line) != bool(what):
            failures.append(f"{what or 'nothing'} changed: {ended.codes}, {line!r}")
    count = len(TERMS)
    return {"what": "gone on with on other terms", "cases": count, "as promised": count - len(failures), "failures": failures}


def campaign(work: Path) -> list[Row]:
    return [changed_keys(work / "keys"), changed_terms(work / "terms")]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(report("changes", campaign(Path(folder))))
