"""One model under any strategy, compiled or not: the same names on disk, and the same numbers."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from conftest import TINY, Run
from processes import launch
from safetensors.numpy import load_file
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.runtime import strategies
from pipeline.runtime.world import fewest_parts

# With an optimizer of two moments and an average of the weights, so that there is something to keep.
RECIPE = [
    *TINY,
    "train.precision=fp64",
    "train.optimizer=adamw",
    "train.lr=0.003",
    "train.average={name: ema, decay: 0.9}",
    "train.clip=0.5",
    "train.steps=40",
]
STRATEGIES = MappingProxyType(
    {
        "one process": (1, ()),
        "DataParallel": (1, ("run.strategy=dp",)),
        "DDP": (2, ("run.strategy=ddp",)),
        "FSDP": (2, ("run.strategy=fsdp",)),
    }
)
COMPILED = {f"{name}, compiled": (size, (*words, "run.compile=aot_eager")) for name, (size, words) in STRATEGIES.items()}
ALL = {**STRATEGIES, **COMPILED}


def train(folder: Path, how: str, *, stop_at: int = 0) -> Path:
    """The last checkpoint of the recipe, run in the way `how` to its end, or until it is told to stop."""
    processes, words = ALL[how]
    ended = launch(folder, ["train", *RECIPE, *words], processes=processes, stop_at=stop_at)
    assert ended.code == (75 if stop_at else 0), ended.output
    return sorted(folder.glob("artifacts/train/*/checkpoints/step-*"))[-1]


def assert_equal(a: Path, b: Path) -> None:
    assert a.name == b.name
    names = sorted(path.name for path in a.glob("*.safetensors"))
    assert names == ["average.safetensors", "best.safetensors", "optimizer.safetensors", "weights.safetensors"]
    for name in names:
        ours, theirs = load_file(a / name), load_file(b / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-11, atol=1e-12, err_msg=f"{name} {key}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("alone"), "one process")


@pytest.mark.parametrize("how", ["DataParallel", "DDP", "FSDP"])
def test_every_strategy_gives_the_same_checkpoint(tmp_path: Path, alone: Path, how: str) -> None:
    assert_equal(train(tmp_path, how), alone)


@pytest.mark.parametrize(("before", "after"), [("FSDP", "one process"), ("DDP", "FSDP, compiled")])
def test_begun_under_one_strategy_it_goes_on_under_another(tmp_path: Path, alone: Path, before: str, after: str) -> None:
    train(tmp_path, before, stop_at=15)
    assert_equal(train(tmp_path, after), alone)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The folders in which each strategy was stopped."""
    folders = {how: tmp_path_factory.mktemp("begun") for how in ALL}
    for how, folder in folders.items():
        train(folder, how, stop_at=15)
    yield folders
    for folder in folders.values():
        shutil.rmtree(folder)


@pytest.mark.soak
@pytest.mark.parametrize(("before", "after"), [pair for a in STRATEGIES for b in COMPILED for pair in ((a, b), (b, a))])
def test_saved_under_each_it_loads_in_each(tmp_path: Path, alone: Path, begun: dict[str, Path], before: str, after: str) -> None:
    shutil.copytree(begun[before], tmp_path / "run", symlinks=True)
    assert_equal(train(tmp_path / "run", after), alone)


@pytest.mark.parametrize(
    "how",
    [("run.strategy=fsdp", "run.channels_last=true"), ("run.strategy=fsdp", "train.precision=fp16")],
    ids=["float32, channels last", "float16"],
)
def test_sharded_and_stopped_it_goes_on_to_the_same_bits(run: Run, tmp_path: Path, how: tuple[str, ...]) -> None:
    assert run(*how, until="train", in_folder="whole", processes=2).code == 0
    assert run(*how, until="train", in_folder="parts", processes=2, stop_at=15).code == 75
    assert run(*how, until="train", in_folder="parts", processes=2).code == 0
    for file in ("metrics.jsonl", "train/weights.safetensors"):
        assert (tmp_path / "whole/runs/tiny" / file).read_bytes() == (tmp_path / "parts/runs/tiny" / file).read_bytes()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_needs_several_processes_says_so(run: Run, strategy: str) -> None:
    ended = run(f"run.strategy={strategy}", until="train")
    assert ended.code == 2
    assert f"run.strategy: {strategy} needs several processes; start with torchrun" in ended.output


class LooksInto(nn.Module):
    """Uses the weight of a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1001, 1001)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.layer.weight)


def test_large_parts_that_are_called_are_sharded_by_themselves() -> None:
    first, last, looks = nn.Linear(1000, 1000), nn.Linear(1000, 1001), LooksInto()
    model = nn.Sequential(nn.Linear(10, 1000), first, nn.Sequential(nn.ReLU(), last), looks, nn.BatchNorm1d(1001))
    assert strategies.large_parts(model, torch.zeros(1, 10)) == [first, last, looks]
    assert model.training, "it is left as it was"


@pytest.mark.parametrize(("fits", "parts"), [(64, 1), (63, 2), (20, 4), (1, 64)])
def test_a_batch_is_cut_until_its_parts_fit_into_memory(fits: int, parts: int) -> None:
    def attempt(images: int) -> None:
        if images > fits:
            raise torch.OutOfMemoryError

    assert fewest_parts(attempt, 64, 1, lambda short: short) == parts


def test_parts_are_as_small_as_the_process_with_the_least_memory_needs() -> None:
    others = iter([True, True, False])  # twice, another process was short of memory
    assert fewest_parts(lambda images: None, 64, 1, lambda short: next(others)) == 4


def test_not_even_one_image_that_fits_is_an_error() -> None:
    def attempt(images: int) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(ConfigError, match="not even one image fits"):
        fewest_parts(attempt, 8, 1, lambda short: short)


def test_when_one_optimizer_overflows_all_skip_the_step(run: Run, tmp_path: Path) -> None:
    ended = run("train.optimizer=muon", "train.precision=fp16", "train.clip=1", "train.lr=0.01", until="train")
    assert ended.code == 0, ended.output
    weights = load_file(tmp_path / "runs/tiny/train/weights.safetensors")
    assert all(np.isfinite(value).all() for value in weights.values())
