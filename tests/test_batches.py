"""The batch of a step is a function of (seed, step), cut in parts without loss."""

import functools
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import RunConfig
from pipeline.data import batches
from pipeline.data.augment import AUGMENTATIONS, MIXES
from pipeline.data.batches import AUGMENT, Images, TrainBatches, eval_batches, global_index, random, share
from pipeline.data.draws import Draws
from pipeline.data.shards import Shards
from pipeline.runtime.launch import Launch, StopFlag
from pipeline.runtime.world import World

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def world() -> Iterator[World]:
    world = World(RunConfig(), Launch(), StopFlag(), precision="no", threads=1)
    with world:
        yield world


def split(sizes: list[int]) -> Shards:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (n, 3, 8, 8), np.uint8) for n in sizes]
    return Shards(images, np.arange(sum(sizes)) % 3 if sum(sizes) == 50 else np.arange(sum(sizes)))


@pytest.mark.parametrize("batch_size", [1, 7, 10, 64, 250])
def test_epochs_are_permutations_laid_end_to_end(batch_size: int) -> None:
    steps = -(-300 // batch_size)
    order = np.concatenate([global_index(100, batch_size, 5, step) for step in range(steps)])
    for epoch in range(3):
        assert sorted(order[epoch * 100 : (epoch + 1) * 100]) == list(range(100))
    assert (order[:100] != order[100:200]).any()


def test_any_step_can_be_asked_for_first() -> None:
    in_order = [global_index(1000, 32, 1, step) for step in range(100)]
    np.testing.assert_array_equal(global_index(1000, 32, 1, 77), in_order[77])


def test_the_order_of_the_next_epoch_is_drawn_ahead_and_is_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SMALL", 1)  # a batch at a time, as of larger ones
    images = Images(split([60]), world, (0.5,) * 3, (0.2,) * 3)
    made = TrainBatches(images, world, batch_size=7, seed=9, steps=20, classes=60)
    expected = [batch.labels.tolist() for (batch,) in made.steps(0, 20)]
    batches._order.cache_clear()
    drawn: list[tuple[int, str]] = []
    draw = batches._order

    def noted(examples: int, seed: int, epoch: int) -> Any:
        drawn.append((epoch, threading.current_thread().name.partition("_")[0]))
        return draw(examples, seed, epoch)

    monkeypatch.setattr(batches, "LARGE", 60)
    monkeypatch.setattr(batches, "_order", noted)
    assert [batch.labels.tolist() for (batch,) in made.steps(0, 20)] == expected
    assert [epoch for epoch, thread in drawn if thread == "order"] == [1, 2]  # there is no fourth epoch


def test_other_seeds_and_other_epochs_have_other_orders() -> None:
    orders = {tuple(global_index(50, 50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@pytest.mark.parametrize(("count", "size"), [(10, 3), (2, 3), (0, 4), (128, 8), (5, 1)])
def test_shares_are_even_and_lose_nothing(count: int, size: int) -> None:
    rows = [range(count)[share(count, rank, size)] for rank in range(size)]
    assert [i for part in rows for i in part] == list(range(count))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_draws_are_made_for_the_whole_batch_then_cut() -> None:
    def drawn(rows: slice) -> torch.Tensor:
        draws = Draws(random(3, 14, AUGMENT), 10, np.arange(10)[rows], torch.device("cpu"))
        return torch.cat([draws.uniform(2), draws.integers(0, 9, 2).float(), draws.beta(0.2, 1)], 1)

    parts = [drawn(share(10, rank, 3)) for rank in range(3)]
    torch.testing.assert_close(torch.cat(parts), drawn(slice(0, 10)), rtol=0, atol=0)


def test_shards_are_one_split(world: World) -> None:
    whole, parts = (Images(split(sizes), world, [0.5] * 3, [0.5] * 3) for sizes in ([60], [25, 1, 34]))
    one = Images(Shards([np.concatenate(split([25, 1, 34]).images)], whole.labels.numpy()), world, [0.5] * 3, [0.5] * 3)
    index = np.array([59, 0, 25, 26, 24, 24])
    assert torch.equal(parts.take(index), one.take(index))


@pytest.mark.parametrize("rank", [0, 1])
def test_small_batches_made_as_one_are_those_made_alone(world: World, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    part = SimpleNamespace(shards=range(rank, rank + 1), virtual=2, device=world.device, dtype=world.dtype)
    images = Images(split([50]), world, [0.5] * 3, [0.25] * 3)
    made = TrainBatches(images, part, batch_size=9, seed=1, steps=99, classes=3, parts=2)  # type: ignore[arg-type]
    monkeypatch.setattr(batches, "SMALL", 1)
    alone = [batch for (batch,) in made.steps(3, 99)]
    monkeypatch.setattr(batches, "SMALL", 40_000)
    together = [batch for (batch,) in made.steps(3, 99)]
    assert together[0].images.untyped_storage().data_ptr() == together[1].images.untyped_storage().data_ptr()
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.images, other.images)
        assert one.labels.tolist() == one.targets.tolist() == other.labels.tolist()
        assert one.parts == other.parts
        assert one.images.data_ptr() % 64 == 0, "kernels may add in another order where an image begins elsewhere"


def test_workers_read_the_same_batches(world: World) -> None:
    images = Images(split([50]), world, [0.5] * 3, [0.25] * 3)
    images.resident = False  # as if they did not fit on the device
    batches = TrainBatches(images, world, batch_size=8, seed=1, steps=9, classes=3)
    for (alone,), (read_ahead,) in zip(batches.steps(3, 9), batches.steps(3, 9, workers=2), strict=True):
        assert torch.equal(alone.images, read_ahead.images)
        assert torch.equal(alone.labels, read_ahead.labels)


def test_partners_are_the_same_whichever_process_holds_them(world: World) -> None:
    images = Images(split([50]), world, [0.5] * 3, [0.25] * 3)

    def mixed(rank: int, size: int) -> list[torch.Tensor]:
        part = SimpleNamespace(shards=range(rank, rank + 1), virtual=size, device=world.device, dtype=world.dtype)
        mixes = [functools.partial(MIXES["mixup"], alpha=0.5), functools.partial(MIXES["cutmix"], alpha=1.0)]
        flips = [functools.partial(AUGMENTATIONS["flip"], probability=0.5), AUGMENTATIONS["alternating_flip"]]
        batches = TrainBatches(images, part, batch_size=8, seed=1, steps=9, classes=3, augment=flips, mix=mixes)  # type: ignore[arg-type]
        (batch,) = next(batches.steps(3, 4))
        return [batch.images, batch.labels, batch.targets]

    whole, parts = mixed(0, 1), zip(*(mixed(rank, 3) for rank in range(3)), strict=True)
    for one, several in zip(whole, parts, strict=True):
        assert torch.equal(one, torch.cat(several))
    torch.testing.assert_close(whole[2].sum(1), torch.ones(8))
    assert (whole[2] < 1).all(1).any(), "some labels are shared out"


def test_an_alternating_coin_turns_over_each_epoch() -> None:
    fixed = np.linspace(0, 0.99, 10, dtype=np.float32)
    cpu = torch.device("cpu")
    epochs = (Draws(random(0, 0, AUGMENT), 10, np.arange(10), cpu, 0.0, np.full(10, epoch), fixed) for epoch in range(3))
    first, second, third = (draws.alternating() for draws in epochs)
    assert first.tolist() == (fixed < 0.5).tolist()
    assert torch.equal(first, ~second)
    assert torch.equal(first, third)


def test_pixels_are_normalised_a_channel(world: World) -> None:
    shards = split([4])
    batch = next(eval_batches(Images(shards, world, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]), world, batch_size=4))
    expected = (shards.images[0] / 255 - np.array([0.1, 0.2, 0.3])[:, None, None]) / np.array([0.5, 0.6, 0.7])[:, None, None]
    np.testing.assert_allclose(batch.images.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_evaluation_reads_each_row_once_in_order(world: World) -> None:
    images = Images(split([23]), world, [0] * 3, [1] * 3)
    labels = torch.cat([batch.labels for batch in eval_batches(images, world, batch_size=5)])
    assert labels.tolist() == list(range(23))


def test_what_the_model_draws_is_a_function_of_seed_and_step(world: World) -> None:
    def drawn(seed: int, step: int) -> tuple[float, ...]:
        with world.playing(0, torch.nn.Identity(), seed=seed, step=step):
            return tuple(torch.rand(3).tolist())

    assert len({drawn(seed, step) for seed in range(3) for step in range(3)}) == 9
    assert drawn(1, 2) == drawn(1, 2)
