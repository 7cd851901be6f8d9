"""Where the pixels of an image go: mirrored, shifted, cut out, sampled anew.

Coordinates are computed by plain sums and products, whose rounding is the same for any batch, on any
device: torch's `affine_grid` multiplies matrices, in TF32 where that is allowed.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.data.draws import Draws


def flip(images: "Tensor", draws: "Draws", *, probability: Annotated[float, Field(ge=0, le=1)] = 0.5) -> "Tensor":
    """Mirror each image left to right with `probability`. uint8 [B, C, H, W] -> same."""
    return _mirrored(images, draws.uniform() < probability)


def alternating_flip(images: "Tensor", draws: "Draws") -> "Tensor":
    """Mirror each image left to right in every other epoch; in its first, half of them. uint8 [B, C, H, W] -> same.

    Two epochs in a row show both sides of every image, which coins do for half of them only.
    K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, the section on alternating flip.
    """
    return _mirrored(images, draws.alternating())


def crop(
    images: "Tensor", draws: "Draws", *, padding: Annotated[int, Field(ge=0)] = 4, mode: Literal["reflect", "zeros"] = "reflect"
) -> "Tensor":
    """Shift each image by up to `padding` pixels both ways. uint8 [B, C, H, W] -> same."""
    import torch

    height, width = images.shape[-2:]
    shifts = draws.integers(-padding, padding + 1, 2)  # [B, 2]
    rows = shifts[:, :1] + torch.arange(height, device=images.device)  # [B, H]
    columns = shifts[:, 1:] + torch.arange(width, device=images.device)  # [B, W]
    if mode == "reflect":
        rows, columns = reflect(rows, height), reflect(columns, width)
    return _sampled(images, rows[:, :, None], columns[:, None, :])


def cutout(
    images: "Tensor", draws: "Draws", *, size: Annotated[int, Field(ge=1)] = 16, fill: Annotated[int, Field(ge=0, le=255)] = 0
) -> "Tensor":
    """Fill a square of `size` pixels a side, centred anywhere and clipped at the edges. uint8 [B, C, H, W] -> same.

    T. DeVries, G. W. Taylor, "Improved regularization of convolutional neural networks with cutout",
    2017. They fill images already normalised with 0, which is the mean; here 0 is black.
    """
    height, width = images.shape[-2:]
    rows = within(draws.integers(0, height), height, -(size // 2), size - size // 2)
    columns = within(draws.integers(0, width), width, -(size // 2), size - size // 2)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], fill)


def progressive_resize(
    images: "Tensor",
    draws: "Draws",
    *,
    start: Annotated[int, Field(ge=1)] = 24,
    until: Annotated[float, Field(gt=0, le=1)] = 0.6,
    multiple: Annotated[int, Field(ge=1)] = 4,
) -> "Tensor":
    """Scale all images: sides that grow with the training. uint8 [B, C, H, W] -> uint8 [B, C, h, w].

    The shorter side grows linearly from `start` to its own length, reached at the share `until` of the
    training; both are rounded to a `multiple`, and never longer than the image's. Nothing is drawn.
    """
    from torchvision.transforms.v2 import functional as F

    height, width = images.shape[-2:]
    shorter = min(height, width)
    grown = min(draws.progress / until, 1.0)
    scale = min(start / shorter + (1 - start / shorter) * grown, 1.0) if start < shorter else 1.0
    if scale == 1.0:
        return images
    size = [min(side, max(multiple, multiple * round(side * scale / multiple))) for side in (height, width)]
    resized: Tensor = F.resize(images, size, antialias=True)
    return resized


def affine(images: "Tensor", matrices: "Tensor") -> "Tensor":
    """Move each image's pixels, to the nearest and with black around. uint8 [B, C, H, W], float [B, 6] -> uint8 [B, C, H, W].

    (a, b, c, d, e, f) is the inverse: what is at (x, y), in pixels to the right of and below the
    centre, comes from (a x + b y + c, d x + e y + f).
    """
    import torch

    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2  # [W]
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]  # [H, 1]
    a, b, c, d, e, f = matrices.T[:, :, None, None]  # each [B, 1, 1]
    columns = (a * x + b * y + c + (width - 1) / 2).round().long()
    rows = (d * x + e * y + f + (height - 1) / 2).round().long()
    return _sampled(images, rows, columns)


def within(centres: "Tensor", length: int, low: "Tensor | int", high: "Tensor | int") -> "Tensor":
    """The positions from `low` to below `high`, counted from `centres`, int64 [B]. -> bool [B, length]."""
    import torch

    positions = torch.arange(length, device=centres.device)
    return (positions >= (centres + low)[:, None]) & (positions < (centres + high)[:, None])


def _mirrored(images: "Tensor", chosen: "Tensor") -> "Tensor":
    return images.flip(-1).where(chosen[:, None, None, None], images)


def _sampled(images: "Tensor", rows: "Tensor", columns: "Tensor") -> "Tensor":
    """The pixels at int64 positions that broadcast to [B, H, W]; black where there are none."""
    count, channels, height, width = images.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    pixels = images.flatten(2).gather(2, index.view(count, 1, -1).expand(-1, channels, -1)).view_as(images)
    return pixels * inside[:, None]


def reflect(positions: "Tensor", size: int) -> "Tensor":
    """Positions outside [0, size) mirrored at the edge pixels, which are not repeated."""
    last = max(size - 1, 1)
    return (last - (positions.remainder(2 * last) - last).abs()).clamp(max=size - 1)
