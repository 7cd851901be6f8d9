"""Every recipe in configs/ can be run, and is measured by bench/recipes.py."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bench.images import write_class_folders
from pipeline.config import Config, load
from pipeline.learning.models import build
from pipeline.learning.optim import OPTIMIZERS
from pipeline.learning.schedules import SCHEDULES, Moment, rate
from pipeline.learning.start import BEGINNINGS, freeze
from pipeline.plan import check

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.stem != "sweep")  # which is a search among them
CHANNELS_AND_SIDE = {"mnist": (1, 28), "digits": (1, 28), "folder": (1, 28), "cifar10": (3, 32)}

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def after_the_run_of_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the recipes are read, `runs/mnist` holds weights to begin with."""
    place = tmp_path / "runs/mnist/export"
    place.mkdir(parents=True)
    save_file(model_of(load(ROOT / "configs/mnist.yaml")).state_dict(), place / "model.safetensors")
    monkeypatch.chdir(tmp_path)


def shape_of(config: Config) -> tuple[int, int, int]:
    channels, side = CHANNELS_AND_SIDE[config.data.source.name]
    return config.data.channels or channels, config.data.size or side, config.data.size or side


def model_of(config: Config) -> torch.nn.Module:
    return build(config.train.model, shape_of(config), 10)


@each_recipe
def test_a_recipe_is_checked_before_any_data_are_there(path: Path) -> None:
    assert check(load(path)).run.name == path.stem


@each_recipe
def test_the_model_of_a_recipe_takes_its_images_and_begins_and_learns_as_it_says(path: Path) -> None:
    config = check(load(path))
    model = model_of(config)
    BEGINNINGS[config.train.init.name](model, **config.train.init.options)
    freeze(model, config.train.freeze)
    optimizers = OPTIMIZERS[config.train.optimizer.name](model, **config.train.optimizer.options)
    assert model(torch.zeros(2, *shape_of(config))).shape == (2, 10)
    learning = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]} == learning


@each_recipe
def test_the_rate_of_a_recipe_is_above_zero_and_never_above_its_own(path: Path) -> None:
    train = check(load(path)).train
    assert isinstance(train.batch_size, int)
    per_epoch = 50_000 / train.batch_size
    steps = math.ceil(train.epochs * per_epoch)
    for step in (*range(0, steps, 100), steps - 1):
        at = Moment(step, steps, per_epoch)
        share = rate(lambda at: SCHEDULES[train.schedule.name](at, **train.schedule.options), at, warmup=train.warmup, by=train.lr_by)
        assert 0 < share <= 1


@each_recipe
def test_a_recipe_says_what_to_type(path: Path) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"configs/{path.name}" in line for line in head)


def test_the_benchmark_has_an_entry_for_every_recipe() -> None:
    assert {path.stem for path in RECIPES} <= set(runpy.run_path(str(ROOT / "bench/recipes.py"))["BENCHES"])


def test_the_benchmark_writes_mnist_as_a_folder_of_class_folders(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = tmp_path / "data/MNIST/raw"
    raw.mkdir(parents=True)
    pixels, labels = rng.integers(0, 256, (12, 28, 28), np.uint8), rng.permutation(np.arange(12, dtype=np.uint8) % 10)
    for part, count in (("train", 12), ("t10k", 5)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            bytes([0, 0, 8, 3]) + np.array([count, 28, 28], ">i4").tobytes() + pixels[:count].tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + np.array([count], ">i4").tobytes() + labels[:count].tobytes())
    write_class_folders("mnist", tmp_path / "data", tmp_path / "png")
    written = {part: {int(p.stem): p for p in (tmp_path / "png" / part).glob("*/*.png")} for part in ("train", "test")}
    assert [len(found) for found in written.values()] == [12, 5]
    for k, path in written["train"].items():
        assert path.parent.name == str(labels[k])
        assert (np.asarray(Image.open(path)) == pixels[k]).all()
