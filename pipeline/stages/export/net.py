"""The net as it is exported."""

import torch
from torch import Tensor, nn


class Exported(nn.Module):
    """uint8 pixels [B, C, H, W] -> logits and probabilities [B, K]; the normalisation is inside."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in std])[:, None, None])
        self.register_buffer("shift", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images.float() * self.scale + self.shift)
        return logits, logits.softmax(1)
