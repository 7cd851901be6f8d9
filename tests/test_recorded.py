"""A step that is recorded and replayed gives the same bits as one that is launched piece by piece."""

from pathlib import Path

import pytest
import torch
from conftest import Run
from processes import always_with_onednn
from recording import Operations, on_the_cpu, refusing_to_wait

from pipeline.runtime.recorded import WARM_UP, Recorded

LENET = "train.model={name: lenet, kernel: 3, channels: [4, 8], hidden: [16], dropout: %g}"
WEIGHTS = "runs/tiny/train/weights.safetensors"

RECIPES = {
    "nothing besides": ["train.augment=[]", "train.optimizer=sgd"],
    "momentum, augmented": ["train.augment=[alternating_flip, {name: crop, padding: 1}, cutout, color_jitter]"],
    "mixes": ["train.mix=[mixup, cutmix]", "train.augment=[flip]"],
    "adam, clipped, averaged, warmed up": [
        *("train.optimizer=adamw", "train.lr=0.003", "train.clip=0.5"),
        *("train.average={name: ema, decay: 0.9, every: 3}", "train.warmup=0.5"),
    ],
    "muon": ["train.optimizer={name: muon, normalize: true, rest: sgd, bias_lr: 4}", "train.lr=0.01"],
    "muon and adamw, plateau": ["train.optimizer=muon", "train.lr=0.01", "train.schedule={name: plateau, patience: 0, factor: 0.5}"],
    "dropout, in parts": [LENET % 0.5, "train.accumulate=3"],
    "batch norm, bfloat16": ["train.model={name: resnet18, width: 2}", "train.precision=bf16"],
    "whitened, channels last": ["train.model={name: fast_cifar, widths: [4, 4, 4]}", "run.channels_last=true"],
    "soft targets": ["train.loss={name: cross_entropy, label_smoothing: 0.2}", "train.batch_size=all", "train.epochs=20"],
}


QUICK = "momentum, augmented", "mixes", "dropout, in parts"
EACH = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.soak) for name in RECIPES]


def on_the_cpu_with_onednn(rank: int) -> None:
    on_the_cpu(rank)
    always_with_onednn(rank)


def bits(folder: Path) -> tuple[bytes, bytes]:
    return (folder / WEIGHTS).read_bytes(), (folder / "runs/tiny/metrics.jsonl").read_bytes()


@pytest.mark.parametrize("recipe", EACH)
def test_replayed_stopped_and_gone_on_it_has_the_bits_of_a_plain_training(run: Run, tmp_path: Path, recipe: str) -> None:
    how = ["train.epochs=2", *RECIPES[recipe], "data.source={name: synthetic, train: 200, test: 57, size: 32}"]
    plain = run(*how, "run.cuda_graph=no", until="train", in_folder="plain", before=on_the_cpu)
    assert plain.code == 0, plain.output
    assert "launched" not in plain.output
    assert run(*how, until="train", in_folder="replayed", before=on_the_cpu, stop_at=10).code == 75
    replayed = run(*how, until="train", in_folder="replayed", before=on_the_cpu)
    assert replayed.code == 0, replayed.output
    assert "a step is recorded and launched as one" in replayed.output
    assert "piece by piece, not as one" not in replayed.output
    assert bits(tmp_path / "replayed") == bits(tmp_path / "plain")


@pytest.mark.parametrize("recipe", ["momentum, augmented", "adam, clipped, averaged, warmed up"])
def test_a_rate_in_a_tensor_changes_no_bit(run: Run, tmp_path: Path, recipe: str) -> None:
    assert run(*RECIPES[recipe], until="train", in_folder="number", before=always_with_onednn).code == 0
    assert run(*RECIPES[recipe], until="train", in_folder="tensor", before=on_the_cpu).code == 0
    assert bits(tmp_path / "number") == bits(tmp_path / "tensor")


@pytest.mark.soak
@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("train.nonfinite=skip", "train.nonfinite=skip looks into each step"),
        ("train.precision=fp16", "train.precision=fp16 cannot be recorded"),
        ("train.determinism=elastic", "run.strategy=elastic cannot be recorded"),
        ("train.augment=rand_augment", "an augmentation changes groups of images, whose sizes are drawn"),
        ("train.augment=progressive_resize", "an augmentation changes with the progress of the training"),
        ("train.optimizer=lion", "train.optimizer=lion takes its rate from the host"),
        ("train.optimizer=rmsprop", "aten::_local_scalar_dense waits for the device"),
    ],
)
def test_what_cannot_be_recorded_is_done_plainly_and_says_why(run: Run, tmp_path: Path, what: str, why: str) -> None:
    how = ["train.epochs=1", "train.lr=0.001", what]
    if "lion" in what:
        pytest.importorskip("timm")
    ended = run(*how, until="train", in_folder="recorded", before=on_the_cpu_with_onednn)
    assert ended.code == 0, ended.output
    assert f"is launched piece by piece, not as one: {why}" in ended.output, ended.output
    assert run(*how, "run.cuda_graph=no", until="train", in_folder="plain", before=always_with_onednn).code == 0
    assert bits(tmp_path / "recorded") == bits(tmp_path / "plain")


def test_what_cannot_be_recorded_on_the_way_is_done_plainly_from_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of the attempt is left: neither what it wrote nor what it drew."""
    sums, forgotten = torch.zeros(()), []

    def work(given: torch.Tensor) -> torch.Tensor:
        sums.add_(given)
        return torch.tensor(sums.item())

    recorded = Recorded(work, Operations(), sums.device, forget=lambda: forgotten.append(True), what="a sum")
    assert [recorded(torch.ones(())).item() for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    assert forgotten == [True]
    assert "a sum is launched piece by piece, not as one: aten::_local_scalar_dense waits" in capsys.readouterr().out


def test_inputs_are_put_where_the_first_were() -> None:
    seen: list[int] = []

    def work(given: torch.Tensor) -> torch.Tensor:
        seen.append(given.data_ptr())
        return given * 2

    recorded = Recorded(work, Operations(), torch.device("cpu"), forget=lambda: None, what="a product")
    assert [recorded(torch.tensor(float(k))).item() for k in range(9)] == [2 * k for k in range(9)]
    assert len(seen) == WARM_UP + 1


def test_without_a_recorder_nothing_is_said(run: Run) -> None:
    assert "launched" not in run("train.epochs=1", until="train").output


@pytest.mark.parametrize("recipe", ["mixes", "adam, clipped, averaged, warmed up"])
def test_a_plain_step_waits_for_nothing_either(run: Run, recipe: str) -> None:
    ended = run("train.epochs=1", *RECIPES[recipe], until="train", before=refusing_to_wait)
    assert ended.code == 0, ended.output


def test_a_wait_would_be_noticed(run: Run) -> None:
    """Of a step that is looked into."""
    ended = run("train.epochs=1", "train.nonfinite=skip", until="train", before=refusing_to_wait)
    assert ended.code == 1
    assert "aten::_local_scalar_dense waits for the device" in ended.output
