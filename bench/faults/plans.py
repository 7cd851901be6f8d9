"""Any plan of batches, and what each of its processes holds, without the others: no process is started."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from pipeline.data.augment import AUGMENTATIONS, MIXES
from pipeline.data.batches import Batch, Images, TrainBatches
from pipeline.data.shards import Shards
from pipeline.runtime.watch import Marks
from pipeline.runtime.world import World

CLASSES = 3
CHANGES: Mapping[str, Any] = MappingProxyType(
    {
        "augment": [functools.partial(AUGMENTATIONS["flip"], probability=0.5), AUGMENTATIONS["alternating_flip"]],
        "mix": [functools.partial(MIXES["mixup"], alpha=0.5), functools.partial(MIXES["cutmix"], alpha=1.0)],
    }
)


@dataclass(frozen=True)
class Plan:
    examples: int
    batch_size: int
    size: int  # processes
    played: int  # virtual processes that each one plays
    parts: int  # of a batch, one after the other
    seed: int
    step: int
    eval_batch_size: int

    @property
    def worlds(self) -> list[World]:
        return processes(self.size, self.played)


@st.composite
def plans(draw: st.DrawFn, examples: int = 200, processes: int = 9, parts: int = 9) -> Plan:
    """Any plan that is not refused, of so many at most; batches seldom divide the epoch, nor processes and parts the batch."""
    count = draw(st.integers(1, examples))
    batch_size = draw(st.integers(1, count) | st.just(count))
    size = draw(st.integers(1, min(processes, batch_size)))
    played = draw(st.integers(1, min(4, batch_size // size)))
    return Plan(
        examples=count,
        batch_size=batch_size,
        size=size,
        played=played,
        parts=draw(st.integers(1, min(parts, batch_size // (size * played)))),
        seed=draw(st.integers(0, 2**32 - 1)),
        step=draw(st.integers(0, 20) | st.integers(0, 10**6)),
        eval_batch_size=draw(st.integers(1, count + 3)),
    )


@dataclass(frozen=True)
class One:
    """One process of several, without the others: what batches and an update ask of a World."""

    rank: int = 0
    size: int = 1
    played: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float64
    marks: Marks = field(default_factory=Marks)
    exchanged: list[bool] = field(default_factory=list)  # for each part, whether the gradient was

    @property
    def virtual(self) -> int:
        return self.size * self.played

    @property
    def shards(self) -> range:
        return range(self.rank * self.played, (self.rank + 1) * self.played)

    def fits(self, _: Sequence[Tensor]) -> bool:
        return True

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor

    @contextlib.contextmanager
    def playing(self, shard: int, model: nn.Module, *, seed: int, step: int) -> Iterator[None]:
        yield

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        return cast(Tensor, model(images))

    @contextlib.contextmanager
    def micro_batch(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        self.exchanged.append(last)
        yield

    def backward(self, losses: Tensor, weights: Tensor) -> None:
        losses.backward(weights)  # type: ignore[no-untyped-call]

    def exchange(self) -> None: ...

    def agree_on_overflow(self, scaler: GradScaler, optimizers: Sequence[torch.optim.Optimizer]) -> None: ...


def processes(size: int, played: int = 1) -> list[World]:
    return [cast(World, One(rank, size, played)) for rank in range(size)]


def images_of(pixels: NDArray[np.uint8], classes: int = CLASSES) -> Images:
    """A split of `pixels` [N, 1, H, W], labelled in turn."""
    return Images(Shards([pixels], np.arange(len(pixels)) % classes), processes(1)[0], [0.0], [1.0])


def noise(plan: Plan, classes: int = CLASSES) -> Images:
    return images_of(np.random.default_rng(plan.seed).integers(0, 256, (plan.examples, 1, 3, 2), np.uint8), classes)


def train_batches(plan: Plan, images: Images, world: World, *, parts: int, **changes: Any) -> TrainBatches:
    return TrainBatches(images, world, batch_size=plan.batch_size, seed=plan.seed, steps=2 * 10**6, classes=CLASSES, parts=parts, **changes)


def at(several: Sequence[TrainBatches], step: int) -> list[Batch]:
    """The batch of `step` as each virtual process has it."""
    return [batch for each in several for batch in next(each.steps(step, step + 1))]


def held(several: Sequence[TrainBatches], step: int) -> list[NDArray[np.int64]]:
    """Which rows of the split each virtual process has in `step`."""
    found = []
    for each in several:
        ends = np.cumsum([len(batch.labels) for batch in next(each.steps(step, step + 1))])
        *whole, rest = np.split(each.index(step), ends)
        assert not len(rest), "rows that no virtual process has"
        found += whole
    return found


def put_together(several: Sequence[Batch], values: Sequence[Any]) -> Any:
    """What each process holds of a batch, as the whole: part after part, and of each part process after process."""
    return np.concatenate([mine[batch.parts[k]] for k in range(len(several[0].parts)) for batch, mine in zip(several, values, strict=True)])


def rows(plan: Plan, images: Images, worlds: Sequence[World], parts: int, step: int) -> NDArray[np.int64]:
    several = [train_batches(plan, images, world, parts=parts) for world in worlds]
    whole: NDArray[np.int64] = put_together(at(several, step), held(several, step))
    return whole
