"""The number of processes changes the speed, never the result."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Run
from processes import launch
from safetensors.numpy import load_file

EXACT = ["train.precision=fp64"]


def curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "runs/tiny/metrics.jsonl").read_text().splitlines()]


def assert_same(a: Path, b: Path) -> None:
    """Curves, weights and counts of two runs agree to 1e-12."""
    assert curve(a) == [pytest.approx(line, rel=1e-12, abs=1e-12) for line in curve(b)]
    weights = [load_file(folder / "runs/tiny/train/weights.safetensors") for folder in (a, b)]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        np.testing.assert_allclose(weights[0][name], weights[1][name], rtol=1e-11, atol=1e-12)


def counts(folder: Path) -> Any:
    return json.loads((folder / "runs/tiny/evaluate/metrics.json").read_text())["test"]["confusion"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which one process ran the experiment."""
    folder = tmp_path_factory.mktemp("alone")
    assert launch(folder, ["evaluate", *TINY, *EXACT]).code == 0
    return folder


@pytest.mark.parametrize(
    ("processes", "how"),
    [(2, []), (3, []), (1, ["train.accumulate=4"]), (2, ["train.accumulate=2"]), (1, ["run.strategy=dp"]), (3, ["run.strategy=fsdp"])],
    ids=["two processes", "three processes", "accumulation", "two processes that accumulate", "DataParallel", "FSDP on three"],
)
def test_same_curve_weights_and_counts(run: Run, tmp_path: Path, alone: Path, processes: int, how: list[str]) -> None:
    several = run(*EXACT, *how, until="evaluate", processes=processes)
    assert several.code == 0, several.output
    assert_same(alone, tmp_path)
    assert counts(alone) == counts(tmp_path)
    assert sum(map(sum, counts(tmp_path))) == 57


def test_the_gradient_of_all_images_is_the_same_in_one_part_or_in_many(run: Run, tmp_path: Path) -> None:
    whole = [*EXACT, "train.batch_size=all", "train.epochs=5", "train.lr=0.5"]
    assert run(*whole, until="train", in_folder="one").code == 0
    ended = run(*whole, "train.accumulate=7", until="train", in_folder="many", processes=2)
    assert ended.code == 0, ended.output
    assert "train: 5 steps in" in ended.output
    assert_same(tmp_path / "one", tmp_path / "many")


@pytest.mark.parametrize(
    "what",
    [
        ["train.mix=[mixup, cutmix]", "train.augment=[alternating_flip, rand_augment]", "train.loss=focal"],
        ["train.optimizer=adamw", "train.clip=0.1", "train.average=ema", "train.warmup=1", "train.schedule=plateau"],
    ],
    ids=["mixed images", "clipped and averaged"],
)
def test_what_a_step_depends_on_is_the_global_batch(run: Run, tmp_path: Path, what: list[str]) -> None:
    assert run(*EXACT, *what, until="train", in_folder="one").code == 0
    assert run(*EXACT, *what, "run.strategy=fsdp", until="train", in_folder="two", processes=2).code == 0
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2)])
def test_stopped_on_some_processes_goes_on_on_others(run: Run, tmp_path: Path, alone: Path, before: int, after: int) -> None:
    assert run(*EXACT, until="train", processes=before, stop_at=15).code == 75
    assert run(*EXACT, until="train", processes=after).code == 0
    assert_same(alone, tmp_path)


def test_other_processes_are_quiet_and_log_to_files(run: Run, tmp_path: Path) -> None:
    run(until="train", processes=2)
    assert (tmp_path / "output-1.txt").read_text() == ""
    assert "2 processes (shared)" in (tmp_path / "runs/tiny/logs/rank-1.log").read_text()


def test_a_batch_smaller_than_the_world_is_refused(run: Run) -> None:
    ended = run("train.batch_size=1", processes=2)
    assert ended.code == 2
    assert "train.batch_size: 1 images cannot be cut into 2 parts" in ended.output


@pytest.mark.parametrize(("strategy", "processes"), [("dp", 2), ("ddp", 1)])
def test_a_strategy_that_does_not_fit_is_refused(run: Run, strategy: str, processes: int) -> None:
    ended = run(f"run.strategy={strategy}", processes=processes)
    assert ended.code == 2
    assert f"run.strategy: {strategy}" in ended.output
