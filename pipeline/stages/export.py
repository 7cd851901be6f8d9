"""Stage 4: trained weights -> a folder that a stranger can use, proven equal to what was evaluated."""

import contextlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from pipeline.config import ExportConfig
from pipeline.errors import GateError, Stopped
from pipeline.runtime import files
from pipeline.runtime.console import say, show_progress
from pipeline.runtime.runner import Workspace
from pipeline.stages.artifacts import ExportedModel, PreparedData, Report, TrainedModel
from pipeline.stages.evaluate import load

OPSET = 20
BATCH = 500


class Exported(nn.Module):
    """uint8 pixels [B, C, H, W] -> logits and probabilities [B, K]; the normalisation is inside."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in std])[:, None, None])
        self.register_buffer("shift", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])[:, None, None])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images.float() * self.scale + self.shift)
        return logits, logits.softmax(1)


def export(config: ExportConfig, data: PreparedData, trained: TrainedModel, report: Report, space: Workspace) -> ExportedModel:
    """Write every format, compare it with the eager model, and say so on the card.

    Raises:
        GateError: ONNX and the eager model do not agree on the test split.
    """
    model = Exported(load(trained), trained.mean, trained.std).eval()
    with contextlib.closing(show_progress("export", total=3, units="parts")) as progress:
        progress.doing("writing model.safetensors")
        shutil.copyfile(trained.dir / "weights.safetensors", space.dir / "model.safetensors")
        progress.step()
        progress.doing("writing model.onnx")
        _write_onnx(model, data.shape, space.dir / "model.onnx")
        progress.step()
        progress.doing("comparing both on the test images")
        exported = _compare(model, data, config.tolerance, space)
    about = {"model": trained.model.model_dump(), **trained.model_dump(mode="json", include={"shape", "classes", "mean", "std"})}
    files.write_json(space.dir / "model.json", about)
    files.write_whole(space.dir / "README.md", _card(data, trained, report, exported, space))
    return exported


def _write_onnx(model: nn.Module, shape: tuple[int, ...], path: Path) -> None:
    example = torch.zeros(2, *shape, dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits", "probabilities"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=False)


def _compare(model: nn.Module, data: PreparedData, tolerance: float, space: Workspace) -> ExportedModel:
    """Every test image through both; classes must be the same, logits within `tolerance` of the largest.

    Two classes whose eager logits differ by less than that are a draw, which either may win.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(space.dir / "model.onnx", providers=["CPUExecutionProvider"])
    difference = largest = 0.0
    agree = images = decided = 0
    for part in data.open("test").images:
        for at in range(0, len(part), BATCH):
            if space.stop:
                raise Stopped("stopped while exporting; the trained model is kept, the same command goes on")
            block = np.array(part[at : at + BATCH])
            with torch.no_grad():
                eager = model(torch.from_numpy(block))[0].numpy()
            onnx = np.asarray(session.run(["logits"], {"images": block})[0])
            difference = float(np.maximum(difference, np.abs(eager - onnx).max()))  # not a number stays one
            largest = max(largest, float(np.abs(eager).max()))
            same = eager.argmax(1) == onnx.argmax(1)
            first_two = np.sort(eager, 1)[:, -2:]
            agree += int(same.sum())
            decided += int((same | (first_two[:, 1] - first_two[:, 0] <= tolerance * largest)).sum())
            images += len(block)
    say(f"export: ONNX agrees on {agree} of {images} test images; logits differ by at most {difference:.2g} of {largest:.3g}")
    if decided < images or not difference <= tolerance * largest:
        raise GateError(
            f"ONNX differs from the eager model: {images - agree} of {images} classes, "
            f"logits by {difference:.3g} where export.tolerance allows {tolerance * largest:.3g}"
        )
    return ExportedModel(dir=space.dir, images=images, largest_difference=difference, agreement=agree / images)


def _card(data: PreparedData, trained: TrainedModel, report: Report, exported: ExportedModel, space: Workspace) -> str:
    test = report.test
    source = space.config.data.source.name
    name = f"{trained.model.name} on {source}"  # not the run's: other runs share this artifact
    head = {
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "model-index": [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": source, "type": source, "split": "test"},
                        "metrics": [{"type": "accuracy", "value": test["accuracy"]}],
                    }
                ],
            }
        ],
    }
    notes = "".join(f"\n- {note}" for note in data.notes)
    shape = "x".join(map(str, trained.shape))
    return f"""---
{yaml.safe_dump(head, sort_keys=False)}---

# {name}

{trained.model.name} for {shape} images of {len(trained.classes)} classes: {", ".join(trained.classes[:20])}.

| split | images | accuracy | top-5 | loss |
| --- | --- | --- | --- | --- |
| test | {test["images"]:.0f} | {test["accuracy"]:.4f} | {test["top5"]:.4f} | {test["loss"]:.4f} |

Trained for {trained.steps} steps on {data.counts["train"]} images of `{source}`; weights kept by
{trained.selected["by"]}, step {trained.selected["step"]}. The test split was not used for that.{notes}

## Use

`model.onnx` takes raw pixels, uint8 [batch, {", ".join(map(str, trained.shape))}], and gives `logits` and
`probabilities` [batch, {len(trained.classes)}]. On {exported.images} test images it gave the class of the trained model
{exported.agreement:.2%} of the time; logits differed by at most {exported.largest_difference:.2g}.

```python
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
images = np.zeros((1, {", ".join(map(str, trained.shape))}), np.uint8)
logits, probabilities = session.run(None, {{"images": images}})
```

`model.safetensors` holds the weights, `model.json` the architecture, classes, mean and standard deviation.

## Recipe

```json
{json.dumps(space.config.train.model_dump(mode="json"), indent=2)}
```
"""


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress and its deprecations are not the user's."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
