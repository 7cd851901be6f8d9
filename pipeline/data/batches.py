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
from torch.utils.data import DataLoader, Dataset

from pipeline.data.draws import Draw, Draws
from pipeline.data.shards import Shards
from pipeline.runtime.recorded import Recorded, Recorder, Varies, to_device
from pipeline.runtime.signals import die_with_parent
from pipeline.runtime.world import World

WHOLE = (slice(None),)
ORDER, AUGMENT, MIX, IMAGE = 0, 1, 2, 3  # what a random stream is for
ALIGNED = 64  # bytes, to a multiple of which torch aligns a tensor in memory
SMALL = 1 << 20  # bytes of the batches that are made as one
LARGE = 1_000_000  # images, of which to draw an order takes longer than a step


@dataclass(frozen=True)
class Batch:
    images: Tensor  # float [B, C, H, W], normalised
    labels: Tensor  # int64 [B], of the images themselves
    targets: Tensor  # what is to be learnt: the labels, or where images are mixed float [B, K]
    parts: Sequence[slice] = WHOLE  # to be taken one after the other

    def cut(self) -> "list[Batch]":
        """Into its parts."""
        if len(self.parts) == 1:
            return [self]
        return [Batch(self.images[rows], self.labels[rows], self.targets[rows]) for rows in self.parts]


Augmentation = Callable[[Tensor, Draws], Tensor]  # uint8 [B, C, H, W] -> uint8 [B, C, h, w]
Mix = Callable[[Tensor, Tensor, Draws], tuple[Tensor, Tensor]]  # images and partners -> mixed, each image's own share [B]


class Images:
    """A split where the device can index it: there if it fits, else memory-mapped on the host."""

    def __init__(self, shards: Shards, world: World, mean: Sequence[float], std: Sequence[float]) -> None:
        self.parts = [_tensor(part) for part in shards.images]
        self.resident = world.fits(self.parts)
        if self.resident and world.device.type != "cpu":
            self.parts = [torch.cat(self.parts).to(world.device)] if self.parts else []
        self.labels = torch.from_numpy(shards.labels)
        self._labels_there = world.to_device(self.labels) if self.resident else self.labels
        self.starts = np.cumsum([0, *map(len, self.parts)])
        self._world = world
        self._scale = torch.tensor([1 / (255 * s) for s in std], dtype=world.dtype, device=world.device)[:, None, None]
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], dtype=world.dtype, device=world.device)[:, None, None]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def bytes_each(self) -> int:
        """Of a normalised image."""
        return int(np.prod(self.parts[0].shape[1:])) * self._scale.element_size() if self.parts else 0

    def take(self, index: NDArray[np.int64]) -> Tensor:
        """uint8 [B, C, H, W]: rows `index` [B], in that order, wherever they are kept."""
        if len(self.parts) == 1:
            return self.parts[0].index_select(0, to_device(torch.from_numpy(index), self.parts[0].device))
        part = np.searchsorted(self.starts, index, side="right") - 1
        taken = self.parts[0].new_empty((len(index), *self.parts[0].shape[1:]))
        for k in np.unique(part):
            rows = np.flatnonzero(part == k)
            taken[torch.from_numpy(rows)] = self.parts[k][torch.from_numpy(index[rows] - self.starts[k])]
        return taken

    def batch(
        self, taken: Tensor, index: NDArray[np.int64], change: Callable[[Tensor], Tensor] | None = None, parts: Sequence[slice] = WHOLE
    ) -> Batch:
        """Rows `taken` on the device, changed by `change`, then normalised."""
        labels = self._world.to_device(self.labels.index_select(0, torch.from_numpy(index)))
        there = self._world.to_device(taken)
        return Batch(self._normalised(change(there) if change else there), labels, labels, parts)

    def batch_there(self, index: Tensor, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same of rows `index` [B] on the device, where the split is one tensor."""
        (images,), labels = self.parts, self._labels_there.index_select(0, index)
        return Batch(self._normalised(change(images.index_select(0, index))), labels, labels)

    def _normalised(self, images: Tensor) -> Tensor:
        return images.to(self._scale.dtype).mul_(self._scale).add_(self._shift)


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
        self.parts = [_laid_end_to_end(parts) for parts in mine]  # of each virtual process

    @property
    def _together(self) -> int:
        """Steps whose batches are made as one, since they are small and need nothing but to be taken and normalised.

        Where in memory an image begins must not depend on it: kernels may add in another order there.
        """
        if self._augment or self._mix or len(self._own) > 1 or not self._images.resident:
            return 1
        each = len(self._own[0]) * self._images.bytes_each
        return 1 if each % ALIGNED else max(1, SMALL // each)

    def _many(self, first: int, last: int) -> Iterator[list[Batch]]:
        """The batches of the steps `first` to `last` - 1, `_together` at a time."""
        (own,), (parts,) = self._own, self.parts
        for start in range(first, last, self._together):
            count = min(self._together, last - start)
            index = global_index(len(self._images), self._batch_size, self._seed, start, count).reshape(count, -1)[:, own].ravel()
            made = self._images.batch(self._images.take(index), index)
            for images, labels in zip(torch.split(made.images, len(own)), torch.split(made.labels, len(own)), strict=True):
                yield [Batch(images, labels, labels, parts)]

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

    def replayed(self, first: int, last: int, recorder: Recorder) -> Iterator[list[Batch]]:
        """As `steps`, made by what `recorder` records: of each step in the same tensors, valid until the next is asked for.

        Raises:
            Varies: they cannot be.
        """
        if len(self._own) > 1 or not self._images.resident or len(self._images.parts) != 1:
            raise Varies("the images are not on the device as one tensor")
        tape: list[Draw] = []
        self._batches(first, self[first], tape)
        made = Recorded(self._made, recorder, self._device, forget=lambda: None, what="a batch")
        return (self._placed(step, tape, made) for step in range(first, last))

    def _placed(self, step: int, tape: "list[Draw]", made: Recorded[list[Tensor]]) -> list[Batch]:
        numbers: list[NDArray[np.generic]] = [self.index(step)]
        if tape:
            draws = self._draws(step, self._rows(step)[0])
            numbers += [draw(draws) for draw in tape]
        images, labels, targets = made(*map(torch.from_numpy, numbers))
        return [Batch(images, labels, targets, self.parts[0])]

    def _made(self, index: Tensor, *drawn: Tensor) -> list[Tensor]:
        """The images [B, C, H, W], labels and targets of a step, of its rows and draws."""
        own = self._own[0]
        draws = Draws(random(0, 0, AUGMENT), self._batch_size, own, self._device, given=iter(drawn))
        batch = self._images.batch_there(index, functools.partial(self._augmented, draws=draws))
        batch = self._mixed(batch, draws, len(own)) if self._mix else batch
        return [batch.images, batch.labels, batch.targets]

    def steps(self, first: int, last: int, workers: int = 0) -> Iterator[list[Batch]]:
        """Of steps `first` to `last` - 1 the batch of each virtual process; workers read ahead what is not on the device."""
        if self._together > 1:
            each = self._many(first, last)
        elif self._images.resident or workers == 0:
            each = (self._batches(step, self[step]) for step in range(first, last))
        else:
            loader = functools.partial(DataLoader, multiprocessing_context="fork", worker_init_fn=die_with_parent)
            taken = loader(self, batch_size=None, sampler=range(first, last), num_workers=workers)
            each = (self._batches(step, images) for step, images in zip(range(first, last), taken, strict=True))
        with ThreadPoolExecutor(1, "order") as ahead:
            for step, batches in zip(range(first, last), each, strict=True):
                self._look_ahead(step, last, ahead)
                yield batches

    def _look_ahead(self, step: int, last: int, ahead: Executor) -> None:
        """Have the order of the next epoch drawn while this one begins: of ten million images it takes a second."""
        examples, next_epoch = len(self._images), step * self._batch_size // len(self._images) + 1
        begins = step * self._batch_size % examples < self._batch_size
        if begins and examples >= LARGE and next_epoch * examples < last * self._batch_size:
            ahead.submit(_order, examples, self._seed, next_epoch)

    def first_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the first images as they are augmented; later ones may be larger."""
        return first_shape(self._augment, self._images.take(np.zeros(1, np.int64)).to(self._device), self._seed)

    def _augmented(self, images: Tensor, draws: Draws) -> Tensor:
        for augmentation in self._augment:
            images = augmentation(images, draws)
        return images

    def _batches(self, step: int, taken: Tensor, tape: list[Draw] | None = None) -> list[Batch]:
        rows = self._rows(step)
        each = torch.split(taken, [len(r) for r in rows]) if len(rows) > 1 else [taken]
        return [self._batch(step, shard, rows[shard], images, tape) for shard, images in enumerate(each)]

    def _batch(self, step: int, shard: int, rows: NDArray[np.int64], taken: Tensor, tape: list[Draw] | None) -> Batch:
        index = global_index(len(self._images), self._batch_size, self._seed, step)[rows]
        if not (self._augment or self._mix):
            return self._images.batch(taken, index, parts=self.parts[shard])
        draws = dataclasses.replace(self._draws(step, rows), tape=tape)
        batch = self._images.batch(taken, index, functools.partial(self._augmented, draws=draws), self.parts[shard])
        return self._mixed(batch, draws, len(self._own[shard])) if self._mix else batch

    def _draws(self, step: int, rows: NDArray[np.int64]) -> Draws:
        index = global_index(len(self._images), self._batch_size, self._seed, step)[rows]
        return Draws(
            random(self._seed, step, AUGMENT),
            self._batch_size,
            rows,
            self._device,
            step / self._steps,
            (step * self._batch_size + rows) // len(self._images),
            _image_draws(len(self._images), self._seed)[index],
        )

    def _mixed(self, batch: Batch, draws: Draws, own: int) -> Batch:
        """The first `own` images, each with its partner, by one of the mixes; the target shared out between their labels."""
        draws = dataclasses.replace(draws, only=own)
        images, shares = batch.images[:own], torch.ones(own, dtype=self._dtype, device=self._device)
        drawn = draws.integers(0, len(self._mix))
        for k, mix in enumerate(self._mix):
            mixed, share_of = mix(batch.images[:own], batch.images[own:], draws)
            images = mixed.where((drawn == k)[:, None, None, None], images)
            shares = share_of.to(self._dtype).where(drawn == k, shares)
        targets = (batch.labels[:, None] == torch.arange(self._classes, device=self._device)).to(self._dtype)
        targets = targets[:own] * shares[:, None] + targets[own:] * (1 - shares)[:, None]
        return Batch(images, batch.labels[:own], targets, batch.parts)


def first_shape(augment: Sequence[Augmentation], images: Tensor, seed: int) -> tuple[int, int, int]:
    """Channels, height and width of one image, uint8 [1, C, H, W], as it is augmented in the first step."""
    one = np.zeros(1, np.int64)
    draws = Draws(random(seed, 0, AUGMENT), 1, one, images.device, epochs=one, fixed=np.zeros(1, np.float32))
    for augmentation in augment:
        images = augmentation(images, draws)
    channels, height, width = images.shape[1:]
    return channels, height, width


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


def global_index(examples: int, batch_size: int, seed: int, step: int, steps: int = 1) -> NDArray[np.int64]:
    """Rows [steps * batch_size] of the split in global batch `step` and those that follow it."""
    first, last = step * batch_size, (step + steps) * batch_size
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
