"""The random numbers of one step: drawn for its whole global batch, whichever process asks, and cut to the rows of that one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.runtime.recorded import Varies, to_device


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step: drawn for its whole global batch, handed out for `rows` [B].

    With a `tape` each draw is noted there, as a function that makes it for the draws of another step; those that
    were made so are `given` back, in that order.
    """

    generator: np.random.Generator
    batch_size: int
    rows: NDArray[np.int64]
    device: torch.device
    done: float = 0.0  # share of the training, in [0, 1)
    epochs: NDArray[np.int64] | None = None  # [B]: how often each image was seen before
    fixed: NDArray[np.float32] | None = None  # [B], uniform in [0, 1): the same for an image in every epoch
    only: int | None = None  # draws are for the first so many of the rows
    tape: "list[Draw] | None" = None
    given: Iterator[Tensor] | None = None

    @property
    def progress(self) -> float:
        """The share of the training done, in [0, 1)."""
        self._refuse_tape("an augmentation changes with the progress of the training")
        return self.done

    def uniform(self, *shape: int) -> Tensor:
        """float32 [B, *shape] in [0, 1)."""
        return self._placed(lambda draws: draws.generator.random((draws.batch_size, *shape), np.float32))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """int64 [B, *shape] in [low, high)."""
        return self._placed(lambda draws: draws.generator.integers(low, high, (draws.batch_size, *shape)))

    def beta(self, alpha: float, *shape: int) -> Tensor:
        """float32 [B, *shape] in [0, 1], of Beta(alpha, alpha)."""
        return self._placed(lambda draws: draws.generator.beta(alpha, alpha, (draws.batch_size, *shape)).astype(np.float32))

    def groups(self, count: int) -> list[Tensor]:
        """The images that drew each of `count` equal chances, as int64 indices; known without waiting for the device."""
        self._refuse_tape("an augmentation changes groups of images, whose sizes are drawn")
        drawn = self.generator.integers(0, count, self.batch_size)[self.rows[: self.only]]
        return [to_device(torch.from_numpy(np.flatnonzero(drawn == k)), self.device) for k in range(count)]

    def alternating(self) -> Tensor:
        """Of each image, bool [B]: by a coin of the image's own in its first epoch, and the other way round in each after."""
        return self._noted(_turned)

    def _placed(self, draw: "Callable[[Draws], NDArray[np.generic]]") -> Tensor:
        only = self.only
        return self._noted(lambda draws: draw(draws)[draws.rows[:only]])

    def _noted(self, draw: "Draw") -> Tensor:
        if self.given is not None:
            return next(self.given)
        if self.tape is not None:
            self.tape.append(draw)
        return to_device(torch.from_numpy(draw(self)), self.device)

    def _refuse_tape(self, why: str) -> None:
        if self.tape is not None:
            raise Varies(why)


Draw = Callable[[Draws], NDArray[np.generic]]  # for the rows of the process


def _turned(draws: Draws) -> NDArray[np.bool_]:
    assert draws.epochs is not None
    assert draws.fixed is not None
    turned: NDArray[np.bool_] = (draws.fixed < 0.5) ^ (draws.epochs % 2 == 1)
    return turned
