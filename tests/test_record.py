"""What is told of a training, line by line."""

import datetime
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from safetensors.numpy import load_file

from pipeline.runtime import journal

ONE_STEP = ["train.precision=fp64", "train.batch_size=all", "train.steps=1", "train.optimizer={name: sgd, momentum: 0}", "train.augment=[]"]
PLAIN = ["train.schedule=constant", "train.warmup=0"]


def lines(folder: Path, name: str = "metrics") -> list[dict[str, Any]]:
    return journal.read(folder / f"runs/tiny/train/{name}.jsonl")


def weights(folder: Path) -> np.ndarray[Any, Any]:
    return np.concatenate([tensor.ravel() for tensor in load_file(folder / "runs/tiny/train/weights.safetensors").values()])


@pytest.mark.parametrize(("how", "clip"), [([], np.inf), (["train.clip=0.01"], 0.01)], ids=["plain", "clipped"])
def test_the_gradients_norm_is_that_of_the_step_before_it_is_clipped(run: Run, tmp_path: Path, how: list[str], clip: float) -> None:
    for rate in (1, 2):
        assert run(*ONE_STEP, *PLAIN, *how, f"train.lr={rate}", until="train", in_folder=str(rate)).code == 0
    (told,) = (line["train/gradient_norm"] for line in lines(tmp_path / "1") if "train/loss" in line)
    assert run(*ONE_STEP, *PLAIN, "train.lr=1", until="train", in_folder="plain").code == 0
    (unclipped,) = (line["train/gradient_norm"] for line in lines(tmp_path / "plain") if "train/loss" in line)
    step = np.linalg.norm(weights(tmp_path / "1") - weights(tmp_path / "2"))  # of a rate of one
    assert told == unclipped
    assert step == pytest.approx(min(told, clip), rel=1e-4)


def test_each_life_begins_with_a_line_and_each_line_has_its_share_of_waiting_and_its_memory(run: Run, tmp_path: Path) -> None:
    assert run(until="train", stop_at=30).code == 75
    assert run(until="train").code == 0
    timings = lines(tmp_path, "timings")
    assert [line["step"] for line in timings if "start" in line] == [0, 30]
    assert all(datetime.datetime.fromisoformat(line["start"]).tzinfo for line in timings if "start" in line)
    told = [line for line in timings if "images/s" in line]
    assert [line["step"] for line in told] == [line["step"] for line in lines(tmp_path) if "train/loss" in line]
    assert all(0 < line["data_wait"] < 1 and line["memory_mb"] > 10 for line in told)


def test_to_wait_for_batches_of_a_validation_is_no_part_of_training(run: Run, tmp_path: Path) -> None:
    assert run("train.validate_every=1", "run.log_every=1", until="train", before=_validating_slowly).code == 0
    told = [line["data_wait"] for line in lines(tmp_path, "timings") if "data_wait" in line]
    assert len(told) == 61
    assert all(0 < share < 1 for share in told)


def _validating_slowly(_: int) -> None:
    """Each batch of it comes late, by more than a step takes."""
    from pipeline.stages import evaluate

    batches = evaluate.eval_batches  # type: ignore[attr-defined]

    def late(*what: Any, **how: Any) -> Iterator[Any]:
        for batch in batches(*what, **how):
            time.sleep(0.05)
            yield batch

    evaluate.eval_batches = late  # type: ignore[attr-defined]
