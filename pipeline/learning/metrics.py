"""What is measured: counts and sums over images, which add up over batches and processes."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

SETTLE = 1024  # images that wait at most


@dataclass
class Tally:
    """float64 [3] (float32 where the device has none): images, summed loss, hits.

    Small batches wait and are counted together, since counting one takes as long as a layer of a small net. Their losses
    are added one batch after the other, so that the sum is the same however many have waited.
    """

    _sums: Tensor
    _waiting: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    _images: int = 0  # that wait

    @classmethod
    def zero(cls, device: torch.device) -> "Tally":
        return cls(torch.zeros(3, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device))

    @property
    def sums(self) -> Tensor:
        """With all that was added."""
        self.settle()
        return self._sums

    def add(self, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Logits [B, K], labels [B], losses [B], none of which may change from here on; nothing waits for the device."""
        self._waiting.append((logits.detach(), labels, losses.detach()))
        self._images += len(losses)
        if self._images >= SETTLE:
            self.settle()

    def settle(self) -> None:
        """Count what waits."""
        if not self._waiting:
            return
        logits, labels, losses = zip(*self._waiting, strict=True)
        images, loss, hits = self._sums
        images += self._images
        for each in losses:
            loss += each.sum(dtype=loss.dtype)
        hits += (torch.cat(logits).argmax(1) == torch.cat(labels)).sum()
        self._waiting, self._images = [], 0

    def means(self) -> dict[str, float]:
        """Of each image; empty if there were none."""
        images, loss, hits = self.sums.tolist()
        return {"loss": loss / images, "accuracy": hits / images} if images else {}


@dataclass(frozen=True)
class Answers:
    """What a model says of each of N images, and what it should have said."""

    labels: Tensor  # int64 [N]
    predicted: Tensor  # int64 [N]
    in_five: Tensor  # int64 [N]: 1 where the label is among the five highest logits
    losses: Tensor  # float [N]
    confidence: Tensor  # float [N]: the probability of the class that was predicted
    classes: int  # K
    probabilities: Tensor | None = None  # float [N, K], of every class, if they were asked for

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, losses: Tensor, *, with_all: bool = False) -> "Answers":
        """Logits [B, K], labels [B], losses [B]; nothing waits for the device."""
        five = logits.topk(min(5, logits.shape[1])).indices
        in_five = (five == labels[:, None]).any(1).to(labels.dtype)
        shares = logits.softmax(1)
        return cls(labels, logits.argmax(1), in_five, losses, shares.amax(1), logits.shape[1], shares if with_all else None)

    def confusion(self) -> Tensor:
        """int64 [K, K]: how often each label (row) was taken for each class (column)."""
        return torch.bincount(self.labels * self.classes + self.predicted, minlength=self.classes**2).view(self.classes, self.classes)

    def scores(self) -> dict[str, float]:
        labels, predicted = (torch.bincount(each, minlength=self.classes) for each in (self.labels, self.predicted))
        right = torch.bincount(self.labels[self.predicted == self.labels], minlength=self.classes)
        return {
            "loss": self.losses.double().mean().item(),
            "accuracy": (self.predicted == self.labels).double().mean().item(),
            "top5": self.in_five.double().mean().item(),
            "balanced_accuracy": balanced_accuracy(right, labels),
            "macro_f1": macro_f1(right, labels, predicted),
        }


def balanced_accuracy(right: Tensor, labels: Tensor) -> float:
    """The mean over classes of the share that was found; a class without images does not count.

    All int64 [K], images a class: those found, and all.
    """
    there = labels > 0
    return (right[there] / labels[there].double()).mean().item()


def macro_f1(right: Tensor, labels: Tensor, predicted: Tensor) -> float:
    """The mean over classes of F1, the harmonic mean of precision and recall.

    F1 = 2 TP / (2 TP + FP + FN). A class that has no images but was predicted counts with 0; one
    that is neither among the labels nor among the predictions does not count. So does scikit-learn.
    All int64 [K], images a class: those found, all, and those taken for it.
    """
    mentions = labels + predicted
    there = mentions > 0
    return (2 * right[there] / mentions[there].double()).mean().item()
