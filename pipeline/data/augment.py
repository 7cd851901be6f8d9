"""Augmentations of whole batches of uint8 images, each image with draws of its own.

Torch is imported inside: the names and options here are checked before torch is needed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.data.batches import Draws


def flip(images: "Tensor", draws: "Draws", *, probability: Annotated[float, Field(ge=0, le=1)] = 0.5) -> "Tensor":
    """Mirror each image left to right with `probability`. uint8 [B, C, H, W] -> same."""
    import torch

    coins = draws.uniform() < probability
    return torch.where(coins[:, None, None, None], images.flip(-1), images)


def crop(
    images: "Tensor", draws: "Draws", *, padding: Annotated[int, Field(ge=0)] = 4, mode: Literal["reflect", "zeros"] = "reflect"
) -> "Tensor":
    """Shift each image by up to `padding` pixels both ways. uint8 [B, C, H, W] -> same."""
    import torch

    count, channels, height, width = images.shape
    shifts = draws.integers(-padding, padding + 1, 2)  # [B, 2]
    rows = shifts[:, :1] + torch.arange(height, device=images.device)  # [B, H]
    columns = shifts[:, 1:] + torch.arange(width, device=images.device)  # [B, W]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = _reflect(rows, height), _reflect(columns, width)
    index = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, height * width)
    shifted = images.flatten(2).gather(2, index.expand(-1, channels, -1)).view_as(images)
    return shifted if mode == "reflect" else shifted * inside[:, None]


def _reflect(positions: "Tensor", size: int) -> "Tensor":
    """Positions outside [0, size) mirrored at the edge pixels, which are not repeated."""
    last = max(size - 1, 1)
    return (last - (positions.remainder(2 * last) - last).abs()).clamp(max=size - 1)


AUGMENTATIONS: dict[str, Callable[..., "Tensor"]] = {"flip": flip, "crop": crop}
