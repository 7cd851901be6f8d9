"""Augmentations, mixes and views of whole batches, each image with draws of its own.

An augmentation draws from `draws` as often, and in the same order, whatever the images and rows.
Torch is imported inside the functions: the names and options are checked before torch is needed.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.data.augment.colour import color_jitter
from pipeline.data.augment.geometry import alternating_flip, crop, cutout, flip, progressive_resize
from pipeline.data.augment.mixes import cutmix, mixup
from pipeline.data.augment.policies import rand_augment, trivial_augment
from pipeline.data.augment.views import View, all_views, mirror, shift

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AUGMENTATIONS", "MIXES", "VIEWS", "View", "all_views", "crop", "flip"]

# uint8 [B, C, H, W] and draws -> uint8 [B, C, h, w]
AUGMENTATIONS: dict[str, Callable[..., "Tensor"]] = {
    "flip": flip,
    "alternating_flip": alternating_flip,
    "crop": crop,
    "cutout": cutout,
    "color_jitter": color_jitter,
    "rand_augment": rand_augment,
    "trivial_augment": trivial_augment,
    "progressive_resize": progressive_resize,
}

# float [B, C, H, W], as many partners, and draws -> float [B, C, H, W], and each image's own share [B] of the label
MIXES: dict[str, Callable[..., tuple["Tensor", "Tensor"]]] = {"mixup": mixup, "cutmix": cutmix}

# float [B, C, H, W] -> several of the same, the first the images themselves
VIEWS: dict[str, Callable[..., list["Tensor"]]] = {"mirror": mirror, "shift": shift}
