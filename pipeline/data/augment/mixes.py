"""Two images made one: functions of images and their partners to what is seen, and the image's own share of it."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from pipeline.data.augment.geometry import within

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.data.draws import Draws

Alpha = Annotated[float, Field(gt=0)]


def mixup(images: "Tensor", partners: "Tensor", draws: "Draws", *, alpha: Alpha = 0.2) -> tuple["Tensor", "Tensor"]:
    """A weighted mean, by a weight of Beta(alpha, alpha) for each image. Twice float [B, C, H, W] -> same, and [B].

    H. Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018.
    """
    shares = draws.beta(alpha).to(images.dtype)
    weights = shares[:, None, None, None]
    return weights * images + (1 - weights) * partners, shares


def cutmix(images: "Tensor", partners: "Tensor", draws: "Draws", *, alpha: Alpha = 1.0) -> tuple["Tensor", "Tensor"]:
    """A box of the partner, centred anywhere and clipped at the edges. Twice float [B, C, H, W] -> same, and [B].

    Unclipped, the box leaves a share of Beta(alpha, alpha) to the image; the share given back is that
    of the pixels really kept. S. Yun et al., "CutMix", ICCV 2019.
    """
    height, width = images.shape[-2:]
    halves = (1 - draws.beta(alpha)).sqrt() / 2  # as a share of the sides
    rows = _box(draws.integers(0, height), halves, height)
    columns = _box(draws.integers(0, width), halves, width)
    kept = 1 - (rows.sum(1) * columns.sum(1)).to(images.dtype) / (height * width)
    return partners.where((rows[:, :, None] & columns[:, None, :])[:, None], images), kept


def _box(centres: "Tensor", halves: "Tensor", side: int) -> "Tensor":
    """The positions less than a share of the side away. -> bool [B, side]."""
    reach = (halves * side).long()
    return within(centres, side, -reach, reach)
