"""Any image as the uint8 array [C, H, W] that models are given; the same in `prepare` and `predict`."""

import functools
import io
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from pipeline import reading
from pipeline.errors import DataError

# Those that hold pixels and nothing else, whatever a file is called: Pillow would hand PostScript to Ghostscript.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP")
PIXELS = 8192**2  # of an image as it is decoded, which takes up to 11 bytes each
warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)  # it would come when it is too late


def pixels(
    image: NDArray[np.uint8] | Path | bytes, channels: int | None, size: tuple[int, int] | None, name: str = "an image"
) -> NDArray[np.uint8]:
    """`image` as uint8 [channels, *size]; None keeps the image's own.

    It is turned as its EXIF data say, made grey or colour, then scaled and cut about its centre
    so that it fills `size`, height and width.

    Raises:
        DataError: it cannot be read; the message has the file's name, or `name` if it has none.
    """
    if isinstance(image, np.ndarray):
        if (channels or image.shape[0]) == image.shape[0] and (size or image.shape[1:]) == image.shape[1:]:
            return image
        return _fitted(PIL.Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)), channels, size)
    name = str(image) if isinstance(image, Path) else name
    try:
        return _fitted(_open(image, name), channels, size)
    except DataError:
        raise
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError):  # from 89 million on
        raise DataError(f"the image {name} has more than {PIXELS:,} pixels; scale it down") from None
    except PIL.UnidentifiedImageError:
        raise DataError(f"cannot read the image {name}: it is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # a decoder that is given nonsense fails in any way
        raise DataError(f"cannot read the image {name}: {' '.join(str(error).split())[:200] or type(error).__name__}") from None


def _fitted(opened: PIL.Image.Image, channels: int | None, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    grey = channels == 1 or (channels is None and opened.mode in ("1", "L", "LA"))
    opened = opened.convert("L" if grey else "RGB")
    if size is not None and opened.size != size[::-1]:
        opened = PIL.ImageOps.fit(opened, size[::-1], PIL.Image.Resampling.BILINEAR)
    array = np.asarray(opened)
    return array[None] if grey else np.ascontiguousarray(array.transpose(2, 0, 1))


def _open(image: Path | bytes, name: str) -> PIL.Image.Image:
    with (
        io.BytesIO(image) if isinstance(image, bytes) else reading.opened(image) as source,
        PIL.Image.open(source, formats=_formats()) as opened,
    ):
        if opened.width * opened.height > PIXELS:
            raise DataError(f"the image {name} is {opened.width:,} x {opened.height:,}, more than {PIXELS:,} pixels; scale it down")
        opened.load()
        turned = PIL.ImageOps.exif_transpose(opened)
    if turned.mode.startswith("I;16"):  # 16 bits a pixel: keep the upper eight
        return PIL.Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
    if turned.mode in ("I", "F"):
        raise DataError(f"the image {name} has 32-bit pixels, whose range is anyone's guess; convert it to 8 or 16 bits")
    return turned.convert("RGBA") if turned.mode == "P" else turned


@functools.cache
def _formats() -> tuple[str, ...]:
    """Of `FORMATS`, those that this Pillow was built with."""
    PIL.Image.init()
    return tuple(name for name in FORMATS if name in PIL.Image.OPEN)


@functools.cache
def suffixes() -> frozenset[str]:
    """Of the names of images, in lower case; also of those that are refused, not to be left out unseen."""
    return frozenset(PIL.Image.registered_extensions())


def grid(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: list[str], columns: int = 10) -> PIL.Image.Image:
    """A picture of the first `columns` images of each class (of 20 at most), a row a class, its name on the left."""
    from PIL import ImageDraw, ImageFont

    classes = classes[:20]
    side = max(32, min(96, images.shape[-1]))
    font = ImageFont.load_default(14)
    margin = 16 + max(int(font.getlength(name)) for name in classes)
    sheet = PIL.Image.new("RGB", (margin + columns * (side + 2), len(classes) * (side + 2)), "white")
    draw = ImageDraw.Draw(sheet)
    for k, name in enumerate(classes):
        top = k * (side + 2)
        draw.text((8, top + side // 2), name, fill="black", font=font, anchor="lm")
        for column, row in enumerate(np.flatnonzero(labels == k)[:columns]):
            image = images[row].transpose(1, 2, 0)
            tile = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            sheet.paste(tile.resize((side, side), PIL.Image.Resampling.NEAREST), (margin + column * (side + 2), top))
    return sheet
