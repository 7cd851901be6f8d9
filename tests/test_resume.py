"""Running the same command again is how one resumes; what comes out is bit for bit the same."""

from pathlib import Path

import pytest
from conftest import Run

RECIPES = {
    "momentum": ["train.optimizer={name: sgd, momentum: 0.9}", "train.mix=[mixup, cutmix]", "train.augment=[alternating_flip, cutout]"],
    "average": ["train.average={name: ema, decay: 0.9}", "train.optimizer=adamw", "train.lr=0.003", "train.clip=0.5", "train.warmup=1"],
    "stochastic weight average": ["train.average={name: swa, start: 0.2}"],
    "muon": ["train.optimizer=muon", "train.lr=0.01"],
    "plateau": ["train.schedule={name: plateau, patience: 0, factor: 0.5}", "train.metric=loss", "train.lr=0.5"],
    "float16": ["train.precision=fp16", "train.lr=1", "train.epochs=3"],
    "muon, channels last": ["train.optimizer=muon", "train.model={name: wrn_16_4, depth: 10, widen: 1}", "run.channels_last=true"],
    "channels last": ["run.channels_last=true", "train.optimizer=rmsprop", "train.lr=0.001"],
    "adam": ["train.optimizer=adam", "train.lr=0.003"],
    "dropout": ["train.model={name: lenet, kernel: 3, channels: [4, 8], hidden: [16], dropout: 0.5}"],
    "batch norm": ["train.model={name: resnet18, width: 2}", "train.epochs=2"],
    "accumulation": ["train.accumulate=3"],
    "bf16": ["train.precision=bf16"],
    "step decay": ["train.schedule={name: step, every: 1}"],
}


def results(folder: Path) -> tuple[bytes, bytes]:
    run = folder / "runs" / "tiny"
    return (run / "train" / "weights.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("recipe", RECIPES)
def test_stopped_and_gone_on_equals_undisturbed(run: Run, tmp_path: Path, recipe: str) -> None:
    assert run(*RECIPES[recipe], until="train", in_folder="whole").code == 0
    assert run(*RECIPES[recipe], until="train", in_folder="parts", stop_at=20).code == 75
    second = run(*RECIPES[recipe], until="train", in_folder="parts")
    assert second.code == 0
    assert "going on from step-000000020" in second.output
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_stopped_again_and_again_it_still_equals_undisturbed(run: Run, tmp_path: Path) -> None:
    assert run(until="train", in_folder="whole").code == 0
    for stop_at in (5, 20, 35):
        assert run(until="train", in_folder="parts", stop_at=stop_at).code == 75
    assert run(until="train", in_folder="parts").code == 0
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_ended_early_it_is_not_begun_again(run: Run, tmp_path: Path) -> None:
    early = ["train.patience=1", "train.lr=1e-9", "train.validate_every=0.5"]
    ended = run(*early, until="train", in_folder="whole")
    assert ended.code == 0, ended.output
    assert "ended early, 1 validations after the best" in ended.output
    assert run(*early, until="train", in_folder="parts", stop_at=15).code == 75
    assert run(*early, until="train", in_folder="parts").code == 0
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_at_its_time_limit_it_stops_with_a_checkpoint(run: Run, processes: int) -> None:
    endless = ["train.epochs=100000", "run.time_limit=3s", "run.checkpoint_every=1000000"]
    for _ in range(2):
        ended = run(*endless, until="train", processes=processes)
        assert ended.code == 75
        assert "with a checkpoint; the same command goes on" in ended.output
    assert "train: going on from step-" in ended.output


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_several_processes_stop_at_one_step_and_go_on_exactly(run: Run, tmp_path: Path, processes: int) -> None:
    assert run(until="train", in_folder="whole", processes=processes).code == 0
    assert run(until="train", in_folder="parts", processes=processes, stop_at=15).code == 75
    assert run(until="train", in_folder="parts", processes=processes).code == 0
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_killed_between_checkpoints_loses_nothing_but_time(run: Run, tmp_path: Path) -> None:
    assert run(until="train", in_folder="whole").code == 0
    assert run(until="train", in_folder="killed", kill_at=25).code == -9
    assert run(until="train", in_folder="killed").code == 0
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


def test_stopped_status_says_so(run: Run, tmp_path: Path) -> None:
    import json

    run(until="train", stop_at=15)
    status = json.loads((tmp_path / "runs" / "tiny" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 75)
    assert "after step 15" in status["message"]


def test_log_cadence_does_not_change_the_weights(run: Run, tmp_path: Path) -> None:
    run(until="train", in_folder="a")
    run("run.log_every=7", "run.checkpoint_every=3", "run.keep=1", until="train", in_folder="b")
    assert results(tmp_path / "a")[0] == results(tmp_path / "b")[0]


@pytest.mark.parametrize("processes", [1, 2, pytest.param(3, marks=pytest.mark.soak)])
def test_a_line_that_spans_the_stop_is_the_same(run: Run, tmp_path: Path, processes: int) -> None:
    lines = ["run.log_every=7", "run.trackers=[]"]
    assert run(*lines, until="train", in_folder="whole", processes=processes).code == 0
    stopped = run(*lines, until="train", in_folder="parts", processes=processes, stop_at=14)  # several stop at 20, within a line
    assert stopped.code == 75
    assert run(*lines, until="train", in_folder="parts", processes=processes).code == 0
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


def test_a_damaged_later_checkpoint_does_not_push_out_the_good_one(run: Run, tmp_path: Path) -> None:
    run("run.keep=1", until="train", stop_at=40)
    for path in tmp_path.glob("artifacts/train/*/checkpoints/step-*/weights.safetensors"):
        path.write_bytes(b"")
    assert "is damaged" in run("run.keep=1", until="train", stop_at=5).output
    assert "going on from step-000000005" in run("run.keep=1", until="train").output


def test_a_forced_training_that_was_stopped_goes_on(run: Run) -> None:
    assert run(until="train").code == 0
    assert "train: forced" in run("--force", "train", until="train", stop_at=15).output
    again = run("--force", "train", until="train")
    assert again.code == 0
    assert "going on from step-000000015" in again.output


def test_stopped_before_its_first_checkpoint_it_says_that_it_starts_again(run: Run) -> None:
    assert run("run.checkpoint_every=1000", until="train", kill_at=15).code == -9
    assert "train: begun before, but nothing was kept; starts again" in run(until="train").output


@pytest.mark.parametrize("what", ["train.patience=1", "train.schedule=plateau"])
def test_what_waits_for_a_validation_that_never_comes_is_refused(run: Run, what: str) -> None:
    ended = run("data.validation=0", what, until="train")
    assert ended.code == 2
    assert "looks at the validation split, but data.validation=0; raise that" in ended.output
