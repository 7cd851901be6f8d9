"""Views of images for test-time augmentation: functions of images to a list, of which they are the first."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.data.augment.geometry import reflect

if TYPE_CHECKING:
    from torch import Tensor

View = Callable[["Tensor"], list["Tensor"]]


def mirror(images: "Tensor") -> list["Tensor"]:
    """As they are, and left to right. [B, C, H, W] -> 2 of the same."""
    return [images, images.flip(-1)]


def shift(images: "Tensor", *, pixels: Annotated[int, Field(ge=1)] = 1) -> list["Tensor"]:
    """As they are, moved up and left, and moved down and right, with reflected edges. [B, C, H, W] -> 3 of the same.

    K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, the section on multi-crop evaluation.
    """
    import torch

    def moved(by: int) -> "Tensor":
        rows, columns = (reflect(torch.arange(side, device=images.device) + by, side) for side in images.shape[-2:])
        return images.index_select(-2, rows).index_select(-1, columns)

    return [images, moved(pixels), moved(-pixels)]


def all_views(images: "Tensor", chosen: Sequence[View]) -> list["Tensor"]:
    """Every combination of the views `chosen`: of mirror and shift, six. Without any, the images alone."""
    views = [images]
    for view in chosen:
        views = [seen for image in views for seen in view(image)]
    return views
