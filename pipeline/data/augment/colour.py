"""What the pixels of an image become, by a factor of its own: torchvision's formulas with tensors for numbers.

Like torchvision's, results are cut off to whole levels, not rounded. Sums and products are rounded one
by one, where torchvision fuses some on some processors; at a tie that is one level. So a pixel does not
depend on the images beside it: vector instructions and the rest of a row would round a fused sum differently.
"""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.data.draws import Draws

Most = Annotated[float, Field(ge=0)]


def color_jitter(
    images: "Tensor",
    draws: "Draws",
    *,
    brightness: Most = 0.4,
    contrast: Most = 0.4,
    saturation: Most = 0.4,
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1,
) -> "Tensor":
    """Change the colours of each image, by up to as much. uint8 [B, C, H, W] -> same.

    Factors are uniform in [max(0, 1 - x), 1 + x], turns of the hue in [-x, x] of a circle. The order is
    that of the options; torchvision's ColorJitter shuffles it. To grey images saturation and hue do
    nothing. The defaults are those of X. Chen et al., "Improved baselines with momentum contrastive
    learning", 2020.
    """
    drawn = draws.uniform(4)[:, :, None, None, None]  # [B, 4, 1, 1, 1]
    adjustments = ((adjust_brightness, brightness), (adjust_contrast, contrast), (adjust_saturation, saturation))
    for k, (adjust, most) in enumerate(adjustments):
        if most:
            least = max(0.0, 1 - most)
            images = adjust(images, least + (1 + most - least) * drawn[:, k])
    return adjust_hue(images, (2 * drawn[:, 3] - 1) * hue) if hue else images


# Each takes uint8 [B, C, H, W], with C 1 or 3, and float [B, 1, 1, 1], and gives uint8 [B, C, H, W].


def adjust_brightness(images: "Tensor", factors: "Tensor") -> "Tensor":
    return _levels(images * factors)


def adjust_contrast(images: "Tensor", factors: "Tensor") -> "Tensor":
    """Away from the mean of the image's grey, which as a sum of whole numbers is exact in any order."""
    height, width = images.shape[-2:]
    mean = _grey(images).int().sum((1, 2, 3), keepdim=True) / (height * width)
    return _blended(images, mean, factors)


def adjust_saturation(images: "Tensor", factors: "Tensor") -> "Tensor":
    return images if images.shape[1] == 1 else _blended(images, _grey(images), factors)


def adjust_hue(images: "Tensor", turns: "Tensor") -> "Tensor":
    """From RGB to HSV, round by `turns` of the circle, and back by the formula without cases.

    A. R. Smith, "Color gamut transform pairs", SIGGRAPH 1978. Each level is spread over 255.999 / 255
    of one before it is cut off, as torchvision does.
    """
    import torch

    if images.shape[1] == 1:
        return images
    red, green, blue = images.float().chunk(3, dim=1)
    high, low = images.amax(1, keepdim=True).float(), images.amin(1, keepdim=True).float()
    spread = high - low
    unit = spread.clamp(min=1)  # levels are whole numbers: only where all three are equal is it less
    hue = (4 + (red - green) / unit).where(high > green, 2 + (blue - red) / unit).where(high > red, (green - blue) / unit)
    return _levels(torch.cat([high - spread * _notch(n + hue + 6 * turns) for n in (5, 3, 1)], 1) * (255.999 / 255))


def adjust_sharpness(images: "Tensor", factors: "Tensor") -> "Tensor":
    """Away from the image smoothed by 3x3 weights of 1, and 5 in the middle; its edge stays as it is."""
    from torch.nn import functional as F

    if min(images.shape[-2:]) <= 2:
        return images
    levels = images.float()
    inner = levels[..., 1:-1, 1:-1]
    smooth = ((F.avg_pool2d(levels, 3, stride=1, divisor_override=1) + 4 * inner) / 13).round()
    changed = images.clone()
    changed[..., 1:-1, 1:-1] = _levels(inner + (smooth - inner) * (1 - factors))
    return changed


def posterize(images: "Tensor", masks: "Tensor") -> "Tensor":
    """The upper bits only: `masks` are uint8."""
    return images & masks


def solarize(images: "Tensor", thresholds: "Tensor") -> "Tensor":
    return (~images).where(images >= thresholds, images)


def _blended(images: "Tensor", others: "Tensor", factors: "Tensor") -> "Tensor":
    return _levels(images * factors + others * (1 - factors))


def _grey(images: "Tensor") -> "Tensor":
    """Whole levels of grey as float [B, 1, H, W], with the weights of ITU-R BT.601."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().chunk(3, dim=1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).floor()


def _notch(sixths: "Tensor") -> "Tensor":
    """How far a channel is below the highest, as a share of the spread, at so many sixths of the circle."""
    rest = sixths.remainder(6)
    return rest.minimum(4 - rest).clamp(0, 1)


def _levels(values: "Tensor") -> "Tensor":
    return values.clamp(0, 255).byte()
