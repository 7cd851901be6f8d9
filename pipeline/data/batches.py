"""The batch of any step, as a pure function of (seed, step): nothing here has a position.

The order of an epoch is a permutation keyed by (seed, epoch); permutations lie end to end, and
global batch n is their rows [n * batch_size, (n + 1) * batch_size). Draws for augmentation are
made for the whole global batch on the CPU, then cut to the rows of this process.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.data.shards import Shards
from pipeline.runtime.world import World

ORDER, AUGMENT = 0, 1  # what a random stream is for


@dataclass(frozen=True)
class Batch:
    images: Tensor  # float [B, C, H, W], normalised
    labels: Tensor  # int64 [B]


Augmentation = Callable[[Tensor, "Draws"], Tensor]


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step: drawn for its whole global batch, handed out for `rows`."""

    generator: np.random.Generator
    batch_size: int
    rows: slice
    device: torch.device

    def uniform(self, *shape: int) -> Tensor:
        """float32 [B, *shape] in [0, 1)."""
        return self._mine(self.generator.random((self.batch_size, *shape), np.float32))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """int64 [B, *shape] in [low, high)."""
        return self._mine(self.generator.integers(low, high, (self.batch_size, *shape)))

    def _mine(self, drawn: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(drawn[self.rows]).to(self.device, non_blocking=True)


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
        return Batch(normalised, self._world.to_device(self.labels[torch.from_numpy(index)]))


class TrainBatches(Dataset[Tensor]):
    """The rows of this process of every global batch."""

    def __init__(self, images: Images, world: World, *, batch_size: int, seed: int, augment: Sequence[Augmentation] = ()) -> None:
        self._images, self._device, self._augment = images, world.device, augment
        self._batch_size, self._seed = batch_size, seed
        self._rows = share(batch_size, world.rank, world.size)

    def index(self, step: int) -> NDArray[np.int64]:
        return global_index(len(self._images), self._batch_size, self._seed, step)[self._rows]

    def __getitem__(self, step: int) -> Tensor:
        return self._images.take(self.index(step))

    def steps(self, first: int, last: int, workers: int = 0) -> Iterator[Batch]:
        """The batches of steps `first` to `last` - 1; workers read ahead what is not on the device."""
        if self._images.resident or workers == 0:
            taken: Iterator[Tensor] = (self[step] for step in range(first, last))
        else:
            taken = iter(DataLoader(self, batch_size=None, sampler=range(first, last), num_workers=workers, multiprocessing_context="fork"))
        for step, images in zip(range(first, last), taken, strict=True):
            yield self._images.batch(images, self.index(step), functools.partial(self._changed, step))

    def _changed(self, step: int, images: Tensor) -> Tensor:
        if self._augment:
            draws = Draws(random(self._seed, step, AUGMENT), self._batch_size, self._rows, self._device)
            for augmentation in self._augment:
                images = augmentation(images, draws)
        return images


def eval_batches(images: Images, world: World, *, batch_size: int) -> Iterator[Batch]:
    """Each row of a split once over all processes, in order; a process may have fewer, or none, in the last."""
    for start in range(0, len(images), batch_size):
        rows = share(min(batch_size, len(images) - start), world.rank, world.size)
        index = np.arange(start + rows.start, start + rows.stop)
        yield images.batch(images.take(index), index)


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


def _tensor(view: NDArray[np.uint8]) -> Tensor:
    """A tensor over the memory map itself. Torch warns that it must not be written to; it is not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(view)
