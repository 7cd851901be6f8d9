"""What is drawn, made into what the images of a data set were made of."""

import base64
import binascii

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pipeline.data.images import pixels
from pipeline.errors import DataError
from pipeline.predict.exported import About

INK = 32  # of 255: what is fainter is the edge of a line
DRAWN = "that was drawn"
Grey = NDArray[np.uint8]  # [H, W], white ink on black


def drawn(link: str) -> Grey:
    """The picture in a `data:` URL.

    Raises:
        DataError: there is none in it.
    """
    return np.asarray(pixels(content(link, DRAWN), 1, None, DRAWN)[0])


def content(link: str, name: str) -> bytes:
    """What is in a `data:` URL, of the image `name`.

    Raises:
        DataError: it is not base64.
    """
    try:
        return base64.b64decode(link.partition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise DataError(f"cannot read the image {name}: it is not base64") from None


def prepared(ink: Grey, about: About) -> NDArray[np.uint8] | None:
    """A drawing as an image [1, H, W] of the data that a model has learnt from; None if nothing is drawn."""
    rows, columns = (np.flatnonzero((ink > INK).any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    cut = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = about.shape[1:]
    image = (_as_digits if about.source == "digits" else _as_mnist)(cut, height, width)[None]
    return 255 - image if about.is_dark_on_light else image


def _as_mnist(cut: Grey, height: int, width: int) -> Grey:
    """In a box of 20 of 28 pixels a side, its centre of mass in the middle.

    Y. LeCun, C. Cortes, C. Burges, http://yann.lecun.com/exdb/mnist: "size normalized to fit in a 20x20 pixel box while preserving
    their aspect ratio", with the grey levels of anti-aliasing, and "centered in a 28x28 image by computing the center of mass".
    """
    small = _scaled(cut, 20 * height // 28, 20 * width // 28, PIL.Image.Resampling.BILINEAR)
    weight = small / max(1, int(small.sum()))
    middle = [float((np.arange(size) + 0.5) @ weight.sum(1 - axis)) for axis, size in enumerate(small.shape)]
    return _placed(small, height, width, round(height / 2 - middle[0]), round(width / 2 - middle[1]))


def _as_digits(cut: Grey, height: int, width: int) -> Grey:
    """Filling 8 x 8 pixels, each the share of ink in its square, and those enlarged as `data.datasets.digits` does.

    E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998: 32 x 32 bitmaps, counted in squares of 4 x 4.
    """
    small = _scaled(cut, 8, 8, PIL.Image.Resampling.BOX)
    whole = _placed(small, 8, 8, (8 - small.shape[0]) // 2, (8 - small.shape[1]) // 2)
    return np.asarray(PIL.Image.fromarray(whole).resize((width, height), PIL.Image.Resampling.BICUBIC))


def _scaled(cut: Grey, height: int, width: int, how: PIL.Image.Resampling) -> Grey:
    """As large as goes into a box, in its own proportions."""
    scale = min(height / cut.shape[0], width / cut.shape[1])
    size = (max(1, round(cut.shape[1] * scale)), max(1, round(cut.shape[0] * scale)))
    return np.asarray(PIL.Image.fromarray(cut).resize(size, how))


def _placed(small: Grey, height: int, width: int, top: int, left: int) -> Grey:
    """On black, with its corner at (top, left); what is outside is cut."""
    sheet = PIL.Image.new("L", (width, height))
    sheet.paste(PIL.Image.fromarray(small), (left, top))
    return np.asarray(sheet)
