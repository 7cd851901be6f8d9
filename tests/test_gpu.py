"""What only a GPU can show; skipped where there is none."""

import json
from pathlib import Path

import pytest
import torch
from conftest import Run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

NET = ["train.model={name: resnet18, width: 8}", "train.steps=40", "train.lr=0.01"]


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.parametrize(
    ("how", "tolerance"),
    [
        ("train.precision=fp64", 1e-9),
        ("train.precision=no", 1e-2),
        ("train.precision=tf32", 2e-2),
        ("train.precision=bf16", 5e-2),
        ("train.precision=fp16", 5e-2),
        ("run.channels_last=true", 1e-2),
        ("run.compile=inductor", 1e-2),
    ],
)
def test_a_gpu_gives_the_curve_of_a_cpu(run: Run, tmp_path: Path, how: str, tolerance: float) -> None:
    assert run(*NET, "train.precision=fp64", "run.device=cpu", until="train", in_folder="cpu").code == 0
    ended = run(*NET, how, until="train", in_folder="gpu")
    assert ended.code == 0, ended.output
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), abs=tolerance)


@pytest.mark.parametrize("how", ["train.precision=no", "train.precision=bf16", "train.precision=fp16", "run.channels_last=true"])
def test_stopped_and_gone_on_gives_the_same_bits(run: Run, tmp_path: Path, how: str) -> None:
    assert run(*NET, how, until="train", in_folder="whole").code == 0
    assert run(*NET, how, until="train", in_folder="parts", stop_at=20).code == 75
    assert run(*NET, how, until="train", in_folder="parts").code == 0
    for file in ("metrics.jsonl", "train/weights.safetensors"):
        assert (tmp_path / "whole/runs/tiny" / file).read_bytes() == (tmp_path / "parts/runs/tiny" / file).read_bytes()


@pytest.mark.parametrize(
    "how",
    [
        ["train.augment=[alternating_flip, {name: crop, padding: 2}]", "train.precision=bf16", "run.channels_last=true"],
        ["train.model={name: lenet, kernel: 3, channels: [4, 8], hidden: [16], dropout: 0.5}", "train.mix=[mixup, cutmix]"],
        ["train.optimizer={name: muon, normalize: true, rest: sgd}", "train.model={name: fast_cifar, widths: [8, 8, 8]}"],
        ["train.optimizer=adamw", "train.clip=0.5", "train.average={name: ema, every: 3}"],
        ["train.optimizer=rmsprop"],
    ],
    ids=["augmented", "dropout and mixes", "muon", "adamw", "rmsprop"],
)
def test_a_recorded_step_gives_the_bits_of_a_plain_one(run: Run, tmp_path: Path, how: list[str]) -> None:
    for graph in ("auto", "no"):
        ended = run(*NET, *how, f"run.cuda_graph={graph}", until="train", in_folder=graph)
        assert ended.code == 0, ended.output
        assert ("a step is recorded and launched as one" in ended.output) == (graph == "auto")
        assert "piece by piece, not as one" not in ended.output
    for file in ("metrics.jsonl", "train/weights.safetensors"):
        assert (tmp_path / "auto/runs/tiny" / file).read_bytes() == (tmp_path / "no/runs/tiny" / file).read_bytes()


def test_a_batch_that_does_not_fit_is_cut_and_the_curve_stays(run: Run, tmp_path: Path) -> None:
    large = [
        "data.source={name: synthetic, train: 4096, test: 64, size: 64}",
        "train.batch_size=all",
        "train.accumulate=1",
        "train.steps=2",
    ]
    wide = ["train.model={name: lenet, kernel: 3, channels: [256, 256], pool: none, hidden: [8]}", "train.lr=0.001"]
    ended = run(*large, *wide, until="train", in_folder="whole")
    assert ended.code == 0, ended.output
    if "out of memory; a batch is cut into" not in ended.output:
        pytest.skip("it fits into the memory of this GPU")
    assert run(*large, *wide, "train.accumulate=64", until="train", in_folder="parts").code == 0
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "parts"), rel=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs here")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_give_the_curve_of_one(run: Run, tmp_path: Path, strategy: str) -> None:
    assert run(*NET, "train.precision=fp64", until="train", in_folder="one").code == 0
    ended = run(*NET, "train.precision=fp64", f"run.strategy={strategy}", until="train", in_folder="two", processes=2)
    assert ended.code == 0, ended.output
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-9)
