"""With train.determinism=elastic 1, 2 and 4 processes give the same bits, also where one takes over from another."""

from pathlib import Path

import pytest
import torch
from conftest import Run
from torch import nn

from pipeline.runtime.elastic import Reduction, in_pairs

# Dropout and BatchNorm in one net, an average; lines of the log that span a stop.
NET = "train.model={name: wrn_16_4, depth: 10, widen: 1, dropout: 0.3}"
ELASTIC = ["train.determinism=elastic", "train.shards=4", "train.batch_norm=local", "run.log_every=3"]
RECIPE = [*ELASTIC, NET, "train.average={name: ema, decay: 0.9}", "train.steps=12", "train.validate_every=0.5"]
SMALL = "data.source={name: synthetic, train: 120, test: 57}"
RECIPES = {
    "mixed, groups": ["train.mix=[mixup, cutmix]", "train.batch_norm=2", "train.batch_size=16", "train.augment=[alternating_flip, cutout]"],
    "random augmentation": ["train.augment=[rand_augment, color_jitter, {name: progressive_resize, start: 6}]"],
    "clipped AdamW": ["train.optimizer=adamw", "train.clip=0.5", "train.lr=0.003"],
    "Muon, channels last": ["train.optimizer=muon", "run.channels_last=true"],
    "float16": ["train.precision=fp16"],
    "bfloat16": ["train.precision=bf16"],
    "float64, in parts": ["train.precision=fp64", "train.accumulate=2"],
    "compiled": ["run.compile=aot_eager"],
    "shards of unequal size": ["train.batch_size=23", "train.shards=8"],
    "frozen": ["train.freeze=['*bn*']"],
}


def results(folder: Path, *more: str) -> list[bytes]:
    return [(folder / "runs/tiny" / path).read_bytes() for path in ("train/weights.safetensors", "metrics.jsonl", *more)]


def test_stopped_on_two_processes_and_gone_on_with_by_one_it_equals_one_undisturbed(run: Run, tmp_path: Path) -> None:
    words = [*RECIPE, SMALL]
    assert run(*words, until="train", in_folder="whole").code == 0
    assert run(*words, until="train", in_folder="parts", processes=2, stop_at=3).code == 75
    second = run(*words, until="train", in_folder="parts")
    assert second.code == 0, second.output
    assert "going on from step-" in second.output
    assert results(tmp_path / "parts") == results(tmp_path / "whole")


@pytest.mark.soak
def test_shards_and_threads_by_default_are_what_other_numbers_of_processes_agree_on_too(run: Run, tmp_path: Path) -> None:
    words = ["train.determinism=elastic", "train.epochs=1", "run.threads=null"]
    for processes in (1, 2):
        ended = run(*words, until="evaluate", in_folder=str(processes), processes=processes)
        assert ended.code == 0, ended.output
        assert "(elastic) on cpu, 1 thread each" in ended.output
    assert results(tmp_path / "1", "evaluate/metrics.json") == results(tmp_path / "2", "evaluate/metrics.json")


@pytest.mark.soak
@pytest.mark.parametrize("recipe", RECIPES)
def test_one_two_and_four_processes_give_the_same_bits(run: Run, tmp_path: Path, recipe: str) -> None:
    for processes in (1, 2, 4):
        ended = run(*RECIPE, *RECIPES[recipe], SMALL, until="evaluate", in_folder=str(processes), processes=processes)
        assert ended.code == 0, ended.output
    whole = results(tmp_path / "1", "evaluate/predictions.safetensors")
    assert results(tmp_path / "2", "evaluate/predictions.safetensors") == whole
    assert results(tmp_path / "4", "evaluate/predictions.safetensors") == whole


@pytest.mark.parametrize(
    ("words", "processes", "message"),
    [
        (["train.shards=6"], 1, "train.shards: shards are halved over and over, so take a power of two, as 4 or 8 (got 6)"),
        ([], 3, "train.shards: 4 cannot be shared out evenly to 3 processes; start one of 1, 2, 4"),
        (["run.strategy=fsdp"], 2, "run.strategy: fsdp adds up gradients in an order of its own; with train.determinism=elastic use auto"),
        (["train.batch_size=3"], 1, "train.batch_size: 3 images cannot be cut into 4 parts (4 shards, train.accumulate=1); use 4 or more"),
        ([NET, "train.batch_norm=sync"], 1, "know nothing of each other; use train.batch_norm=local"),
    ],
)
def test_what_cannot_be_elastic_is_refused_in_one_line(run: Run, words: list[str], processes: int, message: str) -> None:
    ended = run(*ELASTIC, *words, until="train", processes=processes)
    assert ended.code == 2, ended.output
    assert ended.output.splitlines()[-1].endswith(message)


def test_the_sum_of_many_is_that_of_the_sums_of_their_blocks() -> None:
    values = list(torch.randn(16, 1000, generator=torch.Generator().manual_seed(0)))
    blocks = [in_pairs(values[k : k + 4]) for k in range(0, 16, 4)]
    assert torch.equal(in_pairs(blocks), in_pairs(values))
    assert not torch.equal(sum(values[1:], values[0]), in_pairs(values)), "the order shows in the bits"


def test_gradients_of_virtual_processes_are_added_in_pairs_and_few_are_kept() -> None:
    model = nn.Linear(3, 2)
    gradients = list(torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(0)))
    reduction = Reduction()
    for gradient in gradients:
        reduction.begin(model)
        model.weight.grad = gradient.clone()
        reduction.take()
        assert len(reduction._sums) <= 3
    reduction.end(in_pairs, virtual=8)
    torch.testing.assert_close(model.weight.grad, in_pairs(gradients) / 8, rtol=0, atol=0)
