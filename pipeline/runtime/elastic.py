"""Sums to the same bits on any number of processes: those of virtual ones, added in the order of one binary tree.

A process plays a block of virtual processes whose number is a power of two, so its own sum is a
whole branch of that tree; the branches are added in the same order on every process.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Reduction:
    """The gradients and buffers of one step, a virtual process at a time.

    Of n only log2(n) + 1 are kept: two sums of equally many become one of twice as many at once.
    """

    def __init__(self) -> None:
        self._sums: list[tuple[int, list[Tensor]]] = []  # of so many virtual processes: gradients, then running statistics
        self._learnt: list[nn.Parameter] = []
        self._buffers: list[Tensor] = []
        self._before: list[Tensor] = []  # the buffers as the step found them

    @torch.no_grad()
    def begin(self, model: nn.Module) -> None:
        """Let a virtual process find the buffers (BatchNorm's running statistics) as every other does."""
        if not self._sums:
            self._learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
            self._buffers = list(model.buffers())
            self._before = [buffer.clone() for buffer in self._buffers]
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)

    @torch.no_grad()
    def take(self) -> None:
        """Add what a virtual process has come to, and take its gradients off the model."""
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._learnt]
        found += [buffer.clone() for buffer in self._statistics]
        for parameter in self._learnt:
            parameter.grad = None
        count = 1
        while self._sums and self._sums[-1][0] == count:
            before = self._sums.pop()[1]
            torch._foreach_add_(before, found)
            count, found = 2 * count, before
        self._sums.append((count, found))

    @torch.no_grad()
    def end(self, total: Callable[[Sequence[Tensor]], Tensor], virtual: int) -> None:
        """Give the model the mean over all `virtual` processes; `total` adds over the real ones."""
        ((_, sums),) = self._sums
        self._sums.clear()
        mean = total([torch.cat([each.reshape(-1) for each in sums])]) / virtual  # a power of two: nothing is rounded
        pieces = iter(torch.split(mean, [each.numel() for each in sums]))
        for parameter in self._learnt:  # each in memory of its own, laid out as the parameter: a norm adds in that order
            parameter.grad = torch.empty_like(parameter).copy_(next(pieces).view_as(parameter))
        for buffer in self._statistics:
            buffer.copy_(next(pieces).view_as(buffer))

    @property
    def _statistics(self) -> list[Tensor]:
        """The other buffers are counts, the same for every virtual process."""
        return [buffer for buffer in self._buffers if buffer.is_floating_point()]


def in_pairs(branches: Sequence[Tensor], *, out: Tensor | None = None) -> Tensor:
    """The sum of tensors, by adding neighbours until one is left; the last of an odd number waits for the next round.

    That of several is written to `out`, if given.
    """
    while len(branches) > 2:
        odd = branches[len(branches) & ~1 :]
        branches = [*(a + b for a, b in zip(branches[::2], branches[1::2], strict=False)), *odd]
    return branches[0] if len(branches) == 1 else torch.add(*branches, out=out)
