"""What stages hand to each other: plain facts about files in the stage's directory."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from pipeline.config import Spec
from pipeline.data import shards
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.runtime import checksums
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


class Ran(BaseModel):
    """What a process without this package found when it ran one format on the test images, and on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    difference: float  # of a logit from that of the trained model, at most
    agreement: float  # share of images given the class of the trained model
    accuracy: float
    latency: dict[int, float]  # images a batch -> milliseconds, the median of `runs`
    runs: dict[int, int]
    images_per_second: float


class Format(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    bytes: int
    ran: Ran | None  # None: weights, which are not run, but are those that were trained


class ExportedModel(Artifact):
    images: int  # on which the formats were compared
    accuracy: float  # of the trained model, in float32, on them
    largest_logit: float
    threads: int  # on which they were timed
    formats: dict[str, Format]
    left_out: dict[str, str]  # format -> why this machine could not make it

    @property
    def agreement(self) -> float:
        """Share of images to which ONNX gives the class of the trained model."""
        found = self.formats["onnx"].ran
        assert found is not None
        return found.agreement

    def files(self) -> list[str]:
        return [*(made.file for made in self.formats.values()), "model.json", "README.md", checksums.NAME]


class RateTest(Artifact):
    suggestion: float  # the rate at which the loss falls fastest

    def files(self) -> list[str]:
        return ["lr_find.json", "lr_find.png"]
