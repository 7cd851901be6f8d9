"""What the page is told of an image."""

import base64
import io

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pipeline.predict.exported import Exported

Answer = tuple[dict[str, float] | None, str]  # probabilities by class, and the image that was looked at, as HTML


def answer(exported: Exported, image: NDArray[np.uint8] | None) -> Answer:
    """What the export says of an image [C, H, W]; nothing of none."""
    if image is None:
        return None, ""
    (shares,) = exported.probabilities(image[None])
    large = PIL.Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    written = io.BytesIO()
    large.save(written, "PNG")
    link = f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
    shown = f'<figure><img src="{link}" alt="the image as the model is given it"><figcaption>as the model is given it</figcaption></figure>'
    return dict(zip(exported.about.classes, shares.tolist(), strict=True)), shown
