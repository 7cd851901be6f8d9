"""A search without a service: what a trial is, that it goes on, and that one which fails ends no other."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import until
from conftest import TINY
from processes import Ended, begin, launch

from pipeline.attempt import bound
from pipeline.runtime import journal
from pipeline.runtime.claims import Claim, take
from pipeline.search import read, trials

ROOT = Path(__file__).parent.parent
TRIAL = ["${interpreter}", "-m", "pipeline", "train", "${args_no_hyphens}"]


def write(folder: Path, parameters: dict[str, Any], **changes: Any) -> None:
    metric = {"name": "validation/accuracy", "goal": "maximize"}
    search = {"name": "rates", "command": TRIAL, "method": "grid", "metric": metric, "parameters": parameters, **changes}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(search))


def swept(folder: Path, *words: str) -> Ended:
    """`pipeline sweep`, with the tiny experiment but for what the sweep is about."""
    about = yaml.safe_load((folder / "sweep.yaml").read_text())["parameters"]
    return launch(folder, ["sweep", "sweep.yaml", *(word for word in TINY if word.partition("=")[0] not in about), *words])


def results(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "runs/rates-sweep/sweep.json").read_text()))


def said(folder: Path) -> str:
    return (folder / "output.txt").read_text() if (folder / "output.txt").exists() else ""


def test_a_trial_that_fails_ends_no_other_and_the_same_command_tries_it_again(tmp_path: Path) -> None:
    few = {"train.accumulate": {"value": 2}, "train.epochs": {"value": 1}}
    write(tmp_path, {"train.batch_size": {"values": [1, 12, 20]}, **few})
    for size in (12, 20):  # before, so that the trials find it
        assert launch(tmp_path, ["train", *TINY, "train.accumulate=2", "train.epochs=1", f"train.batch_size={size}"]).code == 0
    ended = swept(tmp_path)
    assert ended.code == 1, ended.output
    found = results(tmp_path)
    assert [row["state"] for row in found["trials"]] == ["done", "done", "failed"]
    assert found["trials"][2]["parameters"]["train.batch_size"] == 1
    assert "train.batch_size: 1 images cannot be cut into 2 parts" in ended.output
    best, second = found["trials"][:2]
    assert best["validation/accuracy"] >= second["validation/accuracy"]
    measured = [line.get("validation/accuracy", 0) for line in journal.read(tmp_path / best["run"] / "metrics.jsonl")]
    assert best["validation/accuracy"] == max(measured)  # of the weights that are kept
    assert len(list((tmp_path / "artifacts/prepare").glob("*/manifest.json"))) == 1
    assert not (tmp_path / "artifacts/evaluate").exists()  # nothing has read the test split
    assert (tmp_path / "runs/rates-sweep/sweep.png").is_file()
    assert f"next: {found['next']}" in ended.output

    again = swept(tmp_path, "--count", "2")
    assert again.code == 1
    assert again.output.count("of 2: ") == 1  # the one that failed
    assert [row["state"] for row in results(tmp_path)["trials"]] == ["done", "failed"]


def test_a_trial_that_cannot_begin_is_refused_before_the_first_starts(tmp_path: Path) -> None:
    write(tmp_path, {"train.model.kernel": {"values": [3, 50]}})
    ended = swept(tmp_path)
    assert (ended.code, ended.output.count("\n")) == (2, 1)
    assert ended.output.startswith("pipeline: trial 2 (train.model.kernel=50): train.model: lenet does not take images of 3x12x12: ")
    assert not (tmp_path / "runs").exists()


def test_a_trial_that_would_never_leave_its_warmup_is_refused_where_the_number_of_images_is_known(tmp_path: Path) -> None:
    assert launch(tmp_path, ["prepare", *TINY]).code == 0
    write(tmp_path, {"train.warmup": {"values": [0, 3]}, "train.steps": {"value": 5}})
    ended = swept(tmp_path)
    assert (ended.code, ended.output.splitlines()[-1].partition(" (")[0]) == (2, "pipeline: trial 2"), ended.output


@pytest.mark.soak
@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL],
    ids=lambda number: number.name,
)
def test_a_sweep_that_is_stopped_or_killed_stops_its_trial_with_a_checkpoint_and_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    write(tmp_path, {"train.epochs": {"value": 60}})
    (process,) = begin(tmp_path, ["sweep", "sweep.yaml", *(word for word in TINY if "epochs" not in word)])
    until(lambda: any(tmp_path.glob("artifacts/train/*/checkpoints/step-*")), 60, lambda: said(tmp_path))
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(60)
    if number != signal.SIGKILL:
        assert process.exitcode == 75, said(tmp_path)
        assert results(tmp_path)["trials"][0]["state"] == "stopped"
        assert said(tmp_path).endswith("pipeline: stopped in trial 1 of 1; the same command goes on\n")
    ended = swept(tmp_path)
    assert ended.code == 0, ended.output
    assert "train: going on from step" in ended.output

    (tmp_path / "alone").mkdir()
    assert launch(tmp_path / "alone", ["train", *TINY, "train.epochs=60"]).code == 0
    weights = [tmp_path / "runs/rates-sweep/trial-1/train/weights.safetensors", tmp_path / "alone/runs/tiny/train/weights.safetensors"]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_what_is_wrong_with_any_trial_is_said_before_the_first(tmp_path: Path) -> None:
    mistakes = {
        "train.lrr": ({"values": [1]}, "trial 1 (train.lrr=1): train.lrr: no such key; did you mean 'lr'?"),
        "train.model": ({"values": ["lenet5", "lenet55"]}, "trial 2 (train.model=lenet55): train.model: no 'lenet55'; did you mean"),
        "data.validation": ({"value": 0}, "trial 1 (data.validation=0): data.validation=0 leaves nothing to choose by"),
    }
    for name, (given, message) in mistakes.items():
        write(tmp_path, {name: given})
        ended = swept(tmp_path)
        assert ended.code == 2
        assert ended.output.startswith(f"pipeline: {message}")
        assert ended.output.count("\n") == 1
    write(tmp_path, {"train.lr": {"value": 1}}, command=["nothing", "${args_no_hyphens}"])
    assert "there is no nothing here" in swept(tmp_path).output
    write(tmp_path, {"train.lr": {"value": 1}}, command=["python", "mine.py", "${args_no_hyphens}"])
    assert "starts neither launch/train.py nor `pipeline train`" in swept(tmp_path).output
    write(tmp_path, {"train.seed": {"value": 1}})
    assert "train.seed=3: sweep.yaml has parameters.train.seed; change it there" in swept(tmp_path, "train.seed=3").output
    assert not (tmp_path / "runs").exists()


def test_one_sweep_works_in_a_folder_at_a_time(tmp_path: Path) -> None:
    claim = take(tmp_path / "runs/rates-sweep/.sweep", tmp_path)
    assert isinstance(claim, Claim)
    write(tmp_path, {"train.seed": {"value": 1}})
    ended = swept(tmp_path)
    claim.leave()
    assert ended.code == 2
    assert "runs/rates-sweep is being worked on by pid" in ended.output


def test_the_shipped_sweep_is_valid() -> None:
    search = read(ROOT / "configs/sweep.yaml")
    attempts = [bound(search, trial, [], "sweep") for trial in trials(search, None, 0)]
    assert len({attempt.place for attempt in attempts}) == len(attempts) > 1
    assert {attempt.until for attempt in attempts} == {"train"}
