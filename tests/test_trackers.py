"""W&B mirrors the record through its real client, offline here, and can fail without harm."""

import functools
import json
import math
from pathlib import Path

import wandb_file
from conftest import TINY, Run
from processes import launch

from bench.faults import nonfinite

WANDB = "run.trackers=[wandb]"


def offline_files(folder: Path) -> list[Path]:
    return sorted((folder / "runs/tiny/wandb").glob("offline-run-*/*.wandb"))


def test_everything_reaches_an_offline_run_without_a_prompt(run: Run, tmp_path: Path) -> None:
    ended = run(WANDB)
    assert ended.code == 0, ended.output
    assert "wandb: offline, run" in ended.output
    (path,) = offline_files(tmp_path)
    mirrored = {line["step"]: line["train/loss"] for line in wandb_file.history(path) if "train/loss" in line}
    record = [json.loads(line) for line in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert mirrored == {line["step"]: line["train/loss"] for line in record if "train/loss" in line}
    names = {name for line in wandb_file.history(path) for name in line}
    assert wandb_file.summary(path)["test/accuracy"] == ended.summary["test_accuracy"]
    assert {"validation/accuracy", "images/s", "curves", "confusion", "samples"} <= {n.split(".")[0] for n in names}
    assert set(wandb_file.artifacts(path)) == {("tiny", "model"), ("tiny-export", "export")}


def test_a_restart_is_the_same_run_and_tells_no_step_twice(run: Run, tmp_path: Path) -> None:
    stops = "run.trackers=[wandb, signal]"
    assert run(stops, until="train", stop_at=20).code == 75
    assert run(stops, until="train").code == 0
    first, second = offline_files(tmp_path)
    assert wandb_file.run_id(first) == wandb_file.run_id(second)
    steps = [line["step"] for path in (first, second) for line in wandb_file.history(path) if "train/loss" in line]
    assert steps == [*range(5, 61, 5), 61]


def test_going_back_to_a_checkpoint_it_tells_no_step_twice(run: Run, tmp_path: Path) -> None:
    case = nonfinite.Case("", "loss", math.nan, range(27, 28), 1, 0, "")
    ended = run(WANDB, "train.nonfinite=restore", until="train", before=functools.partial(nonfinite.breaks, case=case))
    assert "going on from step-000000020" in ended.output
    (path,) = offline_files(tmp_path)
    assert [line["step"] for line in wandb_file.history(path) if "train/loss" in line] == [*range(5, 61, 5), 61]


def test_another_recipe_is_another_run(run: Run, tmp_path: Path) -> None:
    run(WANDB, until="train")
    run(WANDB, "train.lr=0.01", until="train")
    assert len({wandb_file.run_id(path) for path in offline_files(tmp_path)}) == 2


def test_without_its_server_it_goes_on_offline_and_keeps_every_point(run: Run, tmp_path: Path) -> None:
    online = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_MODE": "online"}
    ended = launch(tmp_path, ["train", *TINY, WANDB], environment=online)
    assert ended.code == 0, ended.output
    assert "connection refused; going on offline" in ended.output
    (path,) = offline_files(tmp_path)
    assert [line["step"] for line in wandb_file.history(path) if "train/loss" in line] == [*range(5, 61, 5), 61]


def test_a_tracker_that_cannot_write_costs_no_step(run: Run, tmp_path: Path) -> None:
    whole = run(until="train", in_folder="whole")
    (tmp_path / "broken/runs/tiny").mkdir(parents=True)
    (tmp_path / "broken/runs/tiny/wandb").write_text("a file where its folder should go")
    broken = run(WANDB, until="train", in_folder="broken")
    assert (whole.code, broken.code) == (0, 0)
    assert "going on without it" in broken.output
    weights = [(tmp_path / name / "runs/tiny/train/weights.safetensors").read_bytes() for name in ("whole", "broken")]
    assert weights[0] == weights[1]
