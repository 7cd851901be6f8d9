"""The batch of any step, as a pure function of (seed, step): nothing here has a position.

The order of an epoch is a permutation keyed by (seed, epoch); permutations lie end to end, and
global batch n is their rows [n * batch_size, (n + 1) * batch_size). Draws for augmentation are
made for the whole global batch on the CPU, then cut to the rows of this process. An image that is
mixed with another of the global batch finds it by its number, whichever process holds that one.
A process that plays several virtual ones makes the batch of each by itself: the last digits of what
is computed can depend on how many images there are, and on where in memory they begin.
"""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from pipeline.data.shards import Shards
from pipeline.runtime.signals import die_with_parent
from pipeline.runtime.world import World

ORDER, AUGMENT, MIX, IMAGE = 0, 1, 2, 3  # what a random stream is for
LARGE = 1_000_000  # images, of which to draw an order takes longer than a step


@dataclass(frozen=True)
class Batch:
    images: Tensor  # float [B, C, H, W], normalised
    labels: Tensor  # int64 [B], of the images themselves
    targets: Tensor  # what is to be learnt: the labels, or where images are mixed float [B, K]
    parts: Sequence[slice] = (slice(None),)  # to be taken one after the other


Augmentation = Callable[[Tensor, "Draws"], Tensor]  # uint8 [B, C, H, W] -> uint8 [B, C, h, w]
Mix = Callable[[Tensor, Tensor, "Draws"], tuple[Tensor, Tensor]]  # images and partners -> mixed, each image's own share [B]


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step: drawn for its whole global batch, handed out for `rows` [B]."""

    generator: np.random.Generator
    batch_size: int
    rows: NDArray[np.int64]
    device: torch.device
    progress: float = 0.0  # share of the training done, in [0, 1)
    epochs: NDArray[np.int64] | None = None  # [B]: how often each image was seen before
    fixed: NDArray[np.float32] | None = None  # [B], uniform in [0, 1): the same for an image in every epoch

    def uniform(self, *shape: int) -> Tensor:
        """float32 [B, *shape] in [0, 1)."""
        return self._mine(self.generator.random((self.batch_size, *shape), np.float32))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """int64 [B, *shape] in [low, high)."""
        return self._mine(self.generator.integers(low, high, (self.batch_size, *shape)))

    def beta(self, alpha: float, *shape: int) -> Tensor:
        """float32 [B, *shape] in [0, 1], of Beta(alpha, alpha)."""
        return self._mine(self.generator.beta(alpha, alpha, (self.batch_size, *shape)).astype(np.float32))

    def groups(self, count: int) -> list[Tensor]:
        """The images that drew each of `count` equal chances, as int64 indices; known without waiting for the device."""
        drawn = self.generator.integers(0, count, self.batch_size)[self.rows]
        return [self._placed(np.flatnonzero(drawn == k)) for k in range(count)]

    def alternating(self) -> Tensor:
        """Of each image, bool [B]: by a coin of the image's own in its first epoch, and the other way round in each after."""
        assert self.epochs is not None
        assert self.fixed is not None
        return self._placed((self.fixed < 0.5) ^ (self.epochs % 2 == 1))

    def _mine(self, drawn: NDArray[np.generic]) -> Tensor:
        return self._placed(drawn[self.rows])

    def _placed(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)


class Images:
    """A split where the device can index it: there if it fits, else memory-mapped on the host."""

    def __init__(self, shards: Shards, world: World, mean: Sequence[float], std: Sequence[float]) -> None:
        self.parts = [_tensor(part) for part in shards.images]
        self.resident = world.fits(self.parts)
        if self.resident and world.device.type != "cpu":
            self.parts = [torch.cat(self.parts).to(world.device)] if self.parts else []
        self.labels = torch.from_numpy(shards.labels)
        self.starts = np.cumsum([0, *map(len, self.parts)])
        self._world = world
        self._scale = torch.tensor([1 / (255 * s) for s in std], dtype=world.dtype, device=world.device)[:, None, None]
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=world.dtype, device=world.device)[:, None, None]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64]) -> Tensor:
        """uint8 [B, C, H, W]: rows `index` [B], in that order, wherever they are kept."""
        if len(self.parts) == 1:
            return self.parts[0].index_select(0, torch.from_numpy(index).to(self.parts[0].device, non_blocking=True))
        part = np.searchsorted(self.starts, index, side="right") - 1
        taken = self.parts[0].new_empty((len(index), *self.parts[0].shape[1:]))
        for k in np.unique(part):
            rows = np.flatnonzero(part == k)
            taken[torch.from_numpy(rows)] = self.parts[k][torch.from_numpy(index[rows] - self.starts[k])]
        return taken

    def batch(self, taken: Tensor, index: NDArray[np.int64], change: Callable[[Tensor], Tensor] = lambda images: images) -> Batch:
        """Rows `taken` on the device, changed by `change`, then normalised."""
        images = change(self._world.to_device(taken))
        normalised = images.to(self._scale.dtype).mul_(self._scale).add_(self._shift)
        labels = self._world.to_device(self.labels[torch.from_numpy(index)])
        return Batch(normalised, labels, labels)


class TrainBatches(Dataset[Tensor]):
    """The rows of every global batch that each virtual process of this one has; and, where images are mixed, those of their partners."""

    def __init__(
        self,
        images: Images,
        world: World,
        *,
        batch_size: int,
        seed: int,
        steps: int,
        classes: int,
        parts: int = 1,
        augment: Sequence[Augmentation] = (),
        mix: Sequence[Mix] = (),
    ) -> None:
        self._images, self._device, self._dtype = images, world.device, world.dtype
        self._batch_size, self._seed, self._steps, self._classes = batch_size, seed, steps, classes
        self._augment, self._mix = augment, mix
        cut = [np.arange(batch_size)[share(batch_size, part, parts)] for part in range(parts)]
        mine = [[rows[share(len(rows), shard, world.virtual)] for rows in cut] for shard in world.shards]  # all hold the same part at once
        self._own = [np.concatenate(parts) for parts in mine]
        self._parts = [_laid_end_to_end(parts) for parts in mine]

    def _rows(self, step: int) -> list[NDArray[np.int64]]:
        """Of the global batch: those of each virtual process, followed by the partners to mix them with."""
        if not self._mix:
            return self._own
        partners = random(self._seed, step, MIX).permutation(self._batch_size)
        return [np.concatenate([own, partners[own]]) for own in self._own]

    def index(self, step: int) -> NDArray[np.int64]:
        return global_index(len(self._images), self._batch_size, self._seed, step)[np.concatenate(self._rows(step))]

    def __getitem__(self, step: int) -> Tensor:
        return self._images.take(self.index(step))

    def steps(self, first: int, last: int, workers: int = 0) -> Iterator[list[Batch]]:
        """Of steps `first` to `last` - 1 the batch of each virtual process; workers read ahead what is not on the device."""
        if self._images.resident or workers == 0:
            taken: Iterator[Tensor] = (self[step] for step in range(first, last))
        else:
            loader = functools.partial(DataLoader, multiprocessing_context="fork", worker_init_fn=die_with_parent)
            taken = iter(loader(self, batch_size=None, sampler=range(first, last), num_workers=workers))
        with ThreadPoolExecutor(1, "order") as ahead:
            for step, images in zip(range(first, last), taken, strict=True):
                self._look_ahead(step, last, ahead)
                yield self._batches(step, images)

    def _look_ahead(self, step: int, last: int, ahead: Executor) -> None:
        """Have the order of the next epoch drawn while this one begins: of ten million images it takes a second."""
        examples, next_epoch = len(self._images), step * self._batch_size // len(self._images) + 1
        begins = step * self._batch_size % examples < self._batch_size
        if begins and examples >= LARGE and next_epoch * examples < last * self._batch_size:
            ahead.submit(_order, examples, self._seed, next_epoch)

    def first_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the first images as they are augmented; later ones may be larger."""
        one = np.zeros(1, np.int64)
        draws = Draws(random(self._seed, 0, AUGMENT), 1, one, self._device, epochs=one, fixed=np.zeros(1, np.float32))
        channels, height, width = self._augmented(self._images.take(one).to(self._device), draws).shape[1:]
        return channels, height, width

    def _augmented(self, images: Tensor, draws: Draws) -> Tensor:
        for augmentation in self._augment:
            images = augmentation(images, draws)
        return images

    def _batches(self, step: int, taken: Tensor) -> list[Batch]:
        rows = self._rows(step)
        each = zip(rows, self._own, torch.split(taken, [len(r) for r in rows]), self._parts, strict=True)
        return [dataclasses.replace(self._batch(step, r, own, images), parts=parts) for r, own, images, parts in each]

    def _batch(self, step: int, rows: NDArray[np.int64], own: NDArray[np.int64], taken: Tensor) -> Batch:
        index = global_index(len(self._images), self._batch_size, self._seed, step)[rows]
        if not (self._augment or self._mix):
            return self._images.batch(taken, index)
        draws = Draws(
            random(self._seed, step, AUGMENT),
            self._batch_size,
            rows,
            self._device,
            step / self._steps,
            (step * self._batch_size + rows) // len(self._images),
            _image_draws(len(self._images), self._seed)[index],
        )
        batch = self._images.batch(taken, index, functools.partial(self._augmented, draws=draws))
        return self._mixed(batch, dataclasses.replace(draws, rows=own)) if self._mix else batch

    def _mixed(self, batch: Batch, draws: Draws) -> Batch:
        """Each image with its partner, by one of the mixes; the target shared out between their labels."""
        own = len(draws.rows)
        images, shares = batch.images[:own].clone(), torch.ones(own, dtype=self._dtype, device=self._device)
        for mix, group in zip(self._mix, draws.groups(len(self._mix)), strict=True):
            mixed, share_of = mix(batch.images[:own], batch.images[own:], draws)
            images[group], shares[group] = mixed[group], share_of[group].to(self._dtype)
        targets = F.one_hot(batch.labels, self._classes).to(self._dtype)
        return Batch(images, batch.labels[:own], targets[:own] * shares[:, None] + targets[own:] * (1 - shares)[:, None])


def eval_batches(images: Images, world: World, *, batch_size: int) -> Iterator[Batch]:
    """Each row of a split once over all virtual processes, in order; one of them may have fewer, or none, in the last."""
    for index in eval_rows(len(images), world, batch_size=batch_size):
        yield images.batch(images.take(index), index)


def eval_rows(count: int, world: World, *, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Where each batch of `eval_batches` lies in a split of `count` rows."""
    for start, shard in itertools.product(range(0, count, batch_size), world.shards):
        rows = share(min(batch_size, count - start), shard, world.virtual)
        yield np.arange(start + rows.start, start + rows.stop)


def _laid_end_to_end(parts: Sequence[NDArray[np.int64]]) -> list[slice]:
    ends = np.cumsum([len(rows) for rows in parts]).tolist()
    return [slice(first, last) for first, last in itertools.pairwise([0, *ends])]


def share(count: int, rank: int, size: int) -> slice:
    """The part of `count` rows that process `rank` of `size` has: even, but for one row more or less."""
    return slice(count * rank // size, count * (rank + 1) // size)


def random(seed: int, position: int, purpose: int) -> np.random.Generator:
    """A stream keyed by all three, on any machine.

    Philox: J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    return np.random.Generator(np.random.Philox(key=[seed, position], counter=[0, 0, 0, purpose]))


def global_index(examples: int, batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
    """Rows [batch_size] of the split in global batch `step`."""
    first, last = step * batch_size, (step + 1) * batch_size
    parts = []
    for epoch in range(first // examples, (last - 1) // examples + 1):
        start = epoch * examples
        parts.append(_order(examples, seed, epoch)[max(first - start, 0) : last - start])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@functools.lru_cache(maxsize=2)
def _order(examples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return random(seed, epoch, ORDER).permutation(examples)


@functools.lru_cache(maxsize=2)
def _image_draws(examples: int, seed: int) -> NDArray[np.float32]:
    return random(seed, 0, IMAGE).random(examples, np.float32)


def _tensor(view: NDArray[np.uint8]) -> Tensor:
    """A tensor over the memory map itself. Torch warns that it must not be written to; it is not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(view)
