"""A small experiment on synthetic images, and a way to run it."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Ended, launch

TINY = [
    "data.source={name: synthetic, train: 200, test: 57}",
    "train.model={name: lenet, kernel: 3, channels: [4, 8], hidden: [16]}",
    "train.epochs=4",
    "train.batch_size=12",
    "train.lr=0.05",
    "train.augment=[flip, {name: crop, padding: 1}]",
    "run.name=tiny",
    "run.log_every=5",
    "run.checkpoint_every=10",
    "run.trackers=[]",
    "run.threads=1",
]

Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run(*overrides, until="run", processes=1, ...)`: the tiny experiment, in the test's folder; the rest as in `processes.begin`."""

    def run(*overrides: str, until: str = "run", in_folder: str = ".", **how: Any) -> Ended:
        folder = tmp_path / in_folder
        folder.mkdir(exist_ok=True)
        words = [until, *TINY, *overrides, *(["--json"] if until == "run" else [])]
        return launch(folder, words, **how)

    return run
