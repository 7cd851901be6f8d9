"""What is measured: counts and sums over images, which add up over batches and processes."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Tally:
    """float64 [3] (float32 where the device has none): images, summed loss, hits."""

    sums: Tensor

    @classmethod
    def zero(cls, device: torch.device) -> "Tally":
        return cls(torch.zeros(3, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device))

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        """Logits [B, K], labels [B], losses [B]; nothing waits for the device."""
        hits = logits.argmax(1) == labels
        self.sums += torch.stack([torch.ones_like(losses), losses, hits.to(losses.dtype)]).sum(1, dtype=self.sums.dtype)

    def means(self) -> dict[str, float]:
        images, loss, hits = self.sums.tolist()
        return {"loss": loss / images, "accuracy": hits / images}


def top5(logits: Tensor, labels: Tensor) -> Tensor:
    """int64 []: how many labels [B] are among the five highest of logits [B, K]."""
    return (logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).sum()


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """int64 [K, K]: how often each label (row) was taken for each class (column)."""
    classes = logits.shape[1]
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)
