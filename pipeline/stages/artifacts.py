"""What stages hand to each other: plain facts about files in the stage's directory."""

from typing import Annotated, Any

from pydantic import Field, PositiveInt

from pipeline.config import Spec
from pipeline.data import shards
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.runtime.manifests import Artifact

Shape = tuple[PositiveInt, PositiveInt, PositiveInt]  # channels, height, width
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PreparedData(Artifact):
    shards: dict[str, list[str]]  # split -> files
    counts: dict[str, int]  # split -> images
    classes: list[str]
    shape: Shape
    mean: tuple[float, ...]  # a channel, of the training split's pixels in [0, 1]
    std: tuple[Scale, ...]
    histogram: dict[str, list[int]]  # split -> images a class
    duplicates: dict[str, int]  # split, or pair of splits -> images with the same pixels
    notes: list[str]

    def files(self) -> list[str]:
        return [*(name for names in self.shards.values() for name in names), "samples.png"]

    def open(self, split: str) -> Shards:
        found = shards.read((self.dir / name for name in self.shards[split]), self.shape, len(self.classes))
        if len(found) != self.counts[split]:
            raise DataError(f"{self.dir}: {len(found)} images in {split}, {self.counts[split]} in its manifest; delete it and run again")
        return found


class TrainedModel(Artifact):
    """All that is needed to use the weights, without the recipe."""

    model: Spec
    shape: Shape
    classes: list[str]
    mean: tuple[float, ...]  # what pixels in [0, 1] are normalised with
    std: tuple[Scale, ...]
    loss: Spec
    precision: str
    steps: int
    images: int  # seen, counting each time
    selected: dict[str, Any]  # which weights were kept: by what, of which step

    def files(self) -> list[str]:
        return ["weights.safetensors", "metrics.jsonl"]


class Report(Artifact):
    test: dict[str, float]  # images, loss, accuracy, top5
    validation: dict[str, float] | None

    def files(self) -> list[str]:
        return ["metrics.json", "predictions.safetensors"]  # and report/, which is made from these


class ExportedModel(Artifact):
    images: int  # on which the formats were compared
    largest_difference: float  # of a logit
    agreement: float  # share of images given the same class

    def files(self) -> list[str]:
        return ["model.safetensors", "model.onnx", "model.json", "README.md"]


class RateTest(Artifact):
    suggestion: float  # the rate at which the loss falls fastest

    def files(self) -> list[str]:
        return ["lr_find.json", "lr_find.png"]
