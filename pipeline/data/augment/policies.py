"""Operations drawn for each image, with torchvision's (v2) operations and magnitudes.

The images that drew the same operation are changed together, each by its own magnitude.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field, ValidationInfo

from pipeline.data.augment import colour
from pipeline.data.augment.geometry import affine

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.data.draws import Draws


def _above_magnitude(bins: int, info: ValidationInfo) -> int:
    magnitude = info.data.get("magnitude", 0)  # absent where it was refused itself
    if bins <= magnitude:
        raise ValueError(f"the magnitude {magnitude}, counted from 0, needs {magnitude + 1} bins or more")
    return bins


def rand_augment(
    images: "Tensor",
    draws: "Draws",
    *,
    count: Annotated[int, Field(ge=1)] = 2,
    magnitude: Annotated[int, Field(ge=0)] = 9,
    bins: Annotated[int, Field(ge=2, validate_default=True), AfterValidator(_above_magnitude)] = 31,
) -> "Tensor":
    """Change each image by `count` operations of its own, all of one magnitude. uint8 [B, C, H, W] -> same.

    `magnitude` is one of `bins`, from 0. E. D. Cubuk et al., "RandAugment: practical automated data
    augmentation with a reduced search space", 2020.
    """
    height, width = images.shape[-2:]
    reach = Reach(shear=0.3, right=150 / 331 * width, down=150 / 331 * height, degrees=30, blend=0.9, bits=4)
    for _ in range(count):
        images = _drawn(images, draws, _operations(reach, height, width, bins, magnitude))
    return images


def trivial_augment(images: "Tensor", draws: "Draws", *, bins: Annotated[int, Field(ge=2)] = 31) -> "Tensor":
    """Change each image by one operation of its own, of one of `bins` magnitudes. uint8 [B, C, H, W] -> same.

    S. G. Müller, F. Hutter, "TrivialAugment: tuning-free yet state-of-the-art data augmentation", ICCV
    2021, with the wide ranges.
    """
    height, width = images.shape[-2:]
    reach = Reach(shear=0.99, right=32, down=32, degrees=135, blend=0.99, bits=6)
    return _drawn(images, draws, _operations(reach, height, width, bins))


@dataclass(frozen=True)
class Reach:
    """How far a policy goes at its highest magnitude."""

    shear: float
    right: float  # pixels
    down: float  # pixels
    degrees: float
    blend: float
    bits: int  # taken away


@dataclass(frozen=True)
class Operation:
    kernel: Callable[["Tensor", "Tensor"], "Tensor"]  # uint8 [b, C, H, W] and amounts [b, ...] -> uint8 [b, C, H, W]
    amounts: "Tensor"  # [L, ...]: at every magnitude, then at every magnitude the other way


def _drawn(images: "Tensor", draws: "Draws", operations: list[Operation]) -> "Tensor":
    """Each image changed by one operation at one of its amounts."""
    from pipeline.runtime.recorded import to_device

    groups = draws.groups(len(operations))
    levels = draws.integers(0, len(operations[0].amounts))
    changed = images.clone()
    for operation, group in zip(operations, groups, strict=True):
        if len(group):
            amounts = to_device(operation.amounts, images.device)
            changed[group] = operation.kernel(images[group], amounts[levels[group]])
    return changed


@functools.lru_cache(maxsize=16)  # of a size of images; with progressive_resize in front there are several
def _operations(reach: Reach, height: int, width: int, bins: int, magnitude: int | None = None) -> list[Operation]:
    """In torchvision's order; of all magnitudes, or of one."""
    import torch
    from torchvision.transforms.v2 import functional as F

    chosen = slice(magnitude, None if magnitude is None else magnitude + 1)

    def both_ways(most: float) -> list[float]:
        one_way: list[float] = torch.linspace(0, most, bins)[chosen].tolist()
        return one_way + [-amount for amount in one_way]

    shears, turns = both_ways(reach.shear), [math.radians(amount) for amount in both_ways(reach.degrees)]
    blends = torch.tensor([1 + amount for amount in both_ways(reach.blend)])[:, None, None, None]
    bits = (8 - torch.arange(bins) / ((bins - 1) / reach.bits)).round().int()[chosen]
    masks = (256 - 2 ** (8 - bits)).byte().repeat(2)[:, None, None, None]
    thresholds = torch.tensor([255 * share for share in torch.linspace(1, 0, bins)[chosen].tolist() * 2])[:, None, None, None]
    return [
        Operation(lambda images, _: images, blends),
        Operation(affine, torch.tensor([(1, k, k * height / 2, 0, 1, 0) for k in shears])),  # about the upper left corner
        Operation(affine, torch.tensor([(1, 0, 0, k, 1, k * width / 2) for k in shears])),
        Operation(affine, torch.tensor([(1.0, 0, -int(k), 0, 1, 0) for k in both_ways(reach.right)])),
        Operation(affine, torch.tensor([(1.0, 0, 0, 0, 1, -int(k)) for k in both_ways(reach.down)])),
        Operation(affine, torch.tensor([(math.cos(k), -math.sin(k), 0, math.sin(k), math.cos(k), 0) for k in turns])),
        Operation(colour.adjust_brightness, blends),
        Operation(colour.adjust_saturation, blends),
        Operation(colour.adjust_contrast, blends),
        Operation(colour.adjust_sharpness, blends),
        Operation(colour.posterize, masks),
        Operation(colour.solarize, thresholds),
        Operation(lambda images, _: F.autocontrast(images), blends),
        Operation(lambda images, _: F.equalize(images), blends),
    ]
