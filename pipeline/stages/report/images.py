"""The pictures of the page: what the model saw, and what its first layer looks for and finds."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.data.shards import Shards
from pipeline.learning import models
from pipeline.stages.artifacts import TrainedModel
from pipeline.stages.report.charts import shortened

SMALL, LARGEST = 64, 128  # pixels a side: up to the one images are kept as they are, the other is what larger ones become
FILTERS, MAPS = 64, 32
COLUMNS, GAP = 8, 1  # of a sheet, pixels between two


@dataclass(frozen=True)
class Shown:
    """An image of the test split, and what was said of it."""

    row: int
    url: str
    label: str
    predicted: str
    confidence: float

    @property
    def right(self) -> bool:
        return self.label == self.predicted


@dataclass(frozen=True)
class Sheet:
    """Several small pictures as one, so many of how many."""

    url: str
    columns: int
    rows: int
    shown: int
    of: int
    name: str  # of the layer


@dataclass(frozen=True)
class Layers:
    """What there is to see of a model's convolutions: the filters of the first, and what the first and the last make of an image."""

    example: str
    filters: Sheet
    maps: list[Sheet]


def most_confident_mistakes(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], confidence: NDArray[np.float32], count: int
) -> list[int]:
    """Rows of the split; of equals the first."""
    wrong = np.flatnonzero(labels != predicted)
    return [int(row) for row in wrong[np.argsort(-confidence[wrong], kind="stable")][:count]]


def spread_out(images: int, count: int) -> list[int]:
    """The same rows for whatever model: evenly over the split, so that one in the order of its classes shows all."""
    return sorted({int(row) for row in np.linspace(0, images - 1, min(count, images)).round()})


def shown(rows: Sequence[int], split: Shards, kept: Mapping[str, NDArray[Any]], classes: Sequence[str]) -> list[Shown]:
    def one(row: int) -> Shown:
        label, predicted, confidence = (kept[f"test.{name}"][row] for name in ("labels", "predicted", "confidence"))
        return Shown(row, image_url(pixels(split, row)), classes[label], classes[predicted], float(confidence))

    return [one(row) for row in rows]


def pixels(split: Shards, row: int) -> NDArray[np.uint8]:
    """uint8 [C, H, W]."""
    for part in split.images:
        if row < len(part):
            found: NDArray[np.uint8] = part[row]
            return found
        row -= len(part)
    raise IndexError(row)


def image_url(image: NDArray[np.uint8]) -> str:
    """Of pixels [C, H, W]: small ones exactly, as PNG; larger ones scaled down, as JPEG."""
    opened = PIL.Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    if max(opened.size) <= SMALL:
        return _url(opened, "PNG")
    opened.thumbnail((LARGEST, LARGEST))
    return _url(opened, "JPEG", quality=85)


def layers(trained: TrainedModel, image: NDArray[np.uint8]) -> Layers | None:
    """By the convolutions of the model, on the CPU; None if it has none. `image` is uint8 [C, H, W]."""
    model = models.build(trained.model, trained.shape, len(trained.classes)).eval()
    model.load_state_dict(load_file(trained.dir / "weights.safetensors"))
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    if not found:
        return None
    outputs: dict[str, Tensor] = {}
    for name, module in found.items():
        module.register_forward_hook(lambda _module, _inputs, output, name=name: outputs.update({name: output}))
    mean, std = (torch.tensor(values)[:, None, None] for values in (trained.mean, trained.std))
    with torch.no_grad():
        model(((torch.from_numpy(np.array(image)).float() / 255 - mean) / std)[None])
    first, last = next(iter(found)), [*found][-1]
    maps = [_sheet(outputs[name][0][:, None].numpy(), MAPS, name) for name in dict.fromkeys((first, last)) if name in outputs]
    return Layers(image_url(image), _sheet(found[first].weight.detach().float().numpy(), FILTERS, first), maps)


def _sheet(tiles: NDArray[np.float32], most: int, name: str) -> Sheet:
    """The first `most` of `tiles` [N, C, H, W], each from its least value, black, to its greatest; three channels are colours."""
    tiles = tiles[:, :, :: (step := -(-max(tiles.shape[2:]) // SMALL)), ::step]
    of, channels, height, width = tiles.shape
    count = min(of, most)
    tiles = tiles[:count] if channels == 3 else tiles[:count, :1]
    low, high = (edge(tiles, axis=(1, 2, 3), keepdims=True) for edge in (np.min, np.max))
    levels = np.rint(255 * (tiles - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    sheet = np.zeros((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 4), np.uint8)
    for k, tile in enumerate(levels):
        top, left = (k // columns) * (height + GAP), (k % columns) * (width + GAP)
        sheet[top : top + height, left : left + width, :3] = tile.transpose(1, 2, 0)
        sheet[top : top + height, left : left + width, 3] = 255
    return Sheet(_url(PIL.Image.fromarray(sheet), "PNG"), columns, rows, count, of, shortened(name, 40))


def _url(image: PIL.Image.Image, kind: str, **options: int) -> str:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
