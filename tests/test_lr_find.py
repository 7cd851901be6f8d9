"""A learning rate range test, and the table of a model's layers."""

import json
from pathlib import Path

import pytest
from conftest import Run

SMALL = ["train.model={name: lenet, kernel: 3, channels: [4, 8], hidden: [16]}"]


def test_lr_find_draws_the_losses_and_names_a_rate(run: Run, tmp_path: Path) -> None:
    ended = run(*SMALL, until="lr-find")
    assert ended.code == 0, ended.output
    found = json.loads((tmp_path / "runs/tiny-lr-find/lr_find/lr_find.json").read_text())
    assert f"try train.lr={found['suggestion']:.2g}" in ended.output
    assert found["suggestion"] in found["rates"]
    assert found["rates"] == sorted(found["rates"])
    assert len(found["losses"]) == len(found["rates"])
    assert (tmp_path / "runs/tiny-lr-find/lr_find/lr_find.png").read_bytes().startswith(b"\x89PNG")


def test_lr_find_finds_the_same_on_several_processes_and_then_it_is_fresh(run: Run, tmp_path: Path) -> None:
    found = []
    for folder, processes in (("one", 1), ("two", 2)):
        assert run("train.precision=fp64", until="lr-find", in_folder=folder, processes=processes).code == 0
        found.append(json.loads((tmp_path / folder / "runs/tiny-lr-find/lr_find/lr_find.json").read_text())["suggestion"])
    assert found[0] == found[1]
    assert "lr_find: fresh" in run("train.precision=fp64", until="lr-find", in_folder="one").output


def test_a_finished_run_of_the_same_name_is_left_alone(run: Run, tmp_path: Path) -> None:
    assert run(until="train").code == 0
    before = [(tmp_path / "runs/tiny" / name).read_bytes() for name in ("config.yaml", "status.json")]
    assert run("train.lr=0.3", until="lr-find").code == 0
    assert run("train.lr=0.4", until="model").code == 0
    assert [(tmp_path / "runs/tiny" / name).read_bytes() for name in ("config.yaml", "status.json")] == before


@pytest.mark.parametrize(("std", "policy"), [(1000, "stop"), (1e20, "stop"), (1e20, "skip"), (1e20, "restore")])
def test_lr_find_that_finds_nothing_says_so(run: Run, std: float, policy: str) -> None:
    words = ["train.freeze=['[0-8].*']", "train.loss={name: mse, of: logits}", f"train.init={{name: normal, std: {std}}}"]
    ended = run(*words, f"train.nonfinite={policy}", until="lr-find")
    assert ended.code == 4, ended.output
    assert "no rate made the loss fall" in ended.output


def test_the_layers_of_the_model_are_listed(run: Run) -> None:
    ended = run(until="model")
    assert ended.code == 0, ended.output
    rows = {line.split()[0]: line.split()[1:] for line in ended.output.splitlines() if line and line[0].isdigit()}
    assert rows["0"] == ["Conv2d", "4x10x10", "112", "21,600"]
    assert "total: 620 parameters" in ended.output
