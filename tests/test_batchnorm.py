"""BatchNorm under several processes: over the whole batch, over each process's part, over groups of images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from processes import in_processes
from test_world_size import EXACT, assert_same
from torch import Tensor, nn

from pipeline.runtime import strategies

NET = ["train.model={name: resnet18, width: 2}", "train.epochs=1", "data.source={name: synthetic, train: 120, test: 30}"]
SYNC, LOCAL, GROUPS = ([*NET, *EXACT, f"train.batch_norm={kind}"] for kind in ("sync", "local", "2"))


def last_loss(folder: Path) -> float:
    lines = (folder / "runs/tiny/metrics.jsonl").read_text().splitlines()
    return float([json.loads(line)["train/loss"] for line in lines if "train/loss" in line][-1])


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    "kind",
    [SYNC, GROUPS, [*SYNC, "train.accumulate=2"], [*SYNC, "train.batch_size=all", "train.steps=2", "train.accumulate=3"]],
    ids=["sync", "groups of 2", "sync in parts", "all images in parts"],
)
def test_over_the_batch_or_over_groups_the_number_of_processes_changes_nothing(
    run: Run, tmp_path: Path, kind: list[str], processes: int
) -> None:
    assert run(*kind, until="train", in_folder="alone").code == 0
    assert run(*kind, until="train", in_folder="several", processes=processes).code == 0
    assert_same(tmp_path / "alone", tmp_path / "several")


def test_over_a_part_it_is_another_curve_for_another_number_of_processes(run: Run, tmp_path: Path) -> None:
    for folder, processes in (("alone", 1), ("several", 2)):
        assert run(*LOCAL, until="train", in_folder=folder, processes=processes).code == 0
    assert last_loss(tmp_path / "several") != pytest.approx(last_loss(tmp_path / "alone"), rel=1e-6)


def test_two_processes_that_normalise_by_themselves_are_one_with_groups_of_their_size(run: Run, tmp_path: Path) -> None:
    assert run(*LOCAL, until="train", in_folder="several", processes=2).code == 0
    assert run(*NET, *EXACT, "train.batch_norm=6", until="train", in_folder="alone").code == 0
    assert_same(tmp_path / "alone", tmp_path / "several")


def test_a_batch_that_cannot_be_cut_into_groups_is_refused(run: Run) -> None:
    ended = run(*NET, "train.batch_norm=5")
    assert ended.code == 2
    assert "cannot be cut into groups of 5; make train.batch_size a multiple of 5" in ended.output


@pytest.mark.parametrize(
    ("words", "processes"),
    [(["train.batch_size=1"], 1), (["train.batch_size=9", "train.accumulate=8"], 1), (["train.batch_size=2", "train.batch_norm=local"], 2)],
)
def test_one_image_that_has_no_variance_is_refused(run: Run, words: list[str], processes: int) -> None:
    ended = run(*NET, "data.source={name: synthetic, size: 8}", *words, until="train", processes=processes)
    assert ended.code == 2, ended.output
    assert "train.batch_size: resnet18 cannot learn from parts of one image" in ended.output


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["sync", "local", "2"])
def test_stopped_and_gone_on_equals_undisturbed_on_two_processes(run: Run, tmp_path: Path, kind: str) -> None:
    words = [*NET, "train.epochs=2", f"train.batch_norm={kind}"]
    assert run(*words, until="train", in_folder="whole", processes=2).code == 0
    assert run(*words, until="train", in_folder="parts", processes=2, stop_at=5).code == 75
    assert run(*words, until="train", in_folder="parts", processes=2).code == 0
    for file in ("metrics.jsonl", "train/weights.safetensors"):
        assert (tmp_path / "whole/runs/tiny" / file).read_bytes() == (tmp_path / "parts/runs/tiny" / file).read_bytes()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).double()


def images() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(8, 3, 6, 6)))


def test_groups_are_torchs_batch_norm_on_each_group_by_itself() -> None:
    grouped = strategies.normalise_over(net(), 4, 1, torch.device("cpu"))
    plain = [net(), net()]
    for result, model, part in zip(torch.split(grouped(images()), 4), plain, torch.split(images(), 4), strict=True):
        torch.testing.assert_close(result, model(part), rtol=1e-12, atol=1e-12)
    means = [model.get_buffer("1.running_mean") for model in plain]
    torch.testing.assert_close(grouped.get_buffer("1.running_mean"), (means[0] + means[1]) / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [4, "sync"])
def test_an_activation_that_timm_hides_in_a_norm_stays(kind: str | int) -> None:
    layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layers.BatchNormAct2d(4)).double().eval()
    before = model(images())
    names = list(model.state_dict())
    after = strategies.normalise_over(model, kind, 2, torch.device("cpu"))
    assert torch.equal(after(images()), before)
    assert (before >= 0).all(), "the activation is a ReLU"
    assert list(after.state_dict()) == names


def synchronised(rank: int) -> dict[str, Tensor]:
    """The gradients and statistics of one of two processes that hold 3 and 5 of 8 images."""
    model = strategies.normalise_over(net(), "sync", 2, torch.device("cpu"))
    part = torch.split(images(), [3, 5])[rank]
    result = model(part)
    result.square().sum().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"result": result.detach(), **grads, **dict(model.named_buffers())}


def test_synchronised_it_is_torchs_batch_norm_on_all_images_at_once() -> None:
    whole = net()
    result = whole(images())
    result.square().sum().backward()
    first, second = ({name: torch.from_numpy(np.asarray(v)) for name, v in found.items()} for found in in_processes(synchronised, 2))
    torch.testing.assert_close(torch.cat([first["result"], second["result"]]), result.detach(), rtol=1e-12, atol=1e-12)
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(first[name] + second[name], parameter.grad, rtol=1e-11, atol=1e-11)
    for name, buffer in whole.named_buffers():
        torch.testing.assert_close(first[name], buffer, rtol=1e-12, atol=1e-12)
