"""Stage 3: trained weights -> what they do on the splits they have not learnt from."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.config import EvaluateConfig
from pipeline.data.batches import Images, eval_batches
from pipeline.errors import GateError, Stopped
from pipeline.learning import metrics, models
from pipeline.learning.losses import LOSSES
from pipeline.learning.metrics import Tally
from pipeline.runtime import files
from pipeline.runtime.console import say
from pipeline.runtime.runner import Workspace
from pipeline.stages.artifacts import PreparedData, Report, TrainedModel


def evaluate(config: EvaluateConfig, data: PreparedData, trained: TrainedModel, space: Workspace) -> Report:
    """Exact at every world size: each image counts once, sums are added over processes.

    Raises:
        GateError: the accuracy on the test split is below `evaluate.min_accuracy`.
    """
    model = load(trained, space.world.dtype).to(space.world.device)
    measured = {split: measure(model, data, trained, split, space) for split in ("validation", "test") if data.counts[split]}
    if not all(math.isfinite(values["loss"]) for values in measured.values()):
        raise GateError("the loss of the trained weights is not a finite number; lower train.lr")
    if space.world.is_main:
        _write(measured, data, trained, space)
    totals = {split: {k: v for k, v in values.items() if isinstance(v, int | float)} for split, values in measured.items()}
    test = totals["test"]
    right = len(data.open("test")) * test["accuracy"]
    say(f"evaluate: test accuracy {test['accuracy']:.4f} ({right:.0f} of {test['images']}), loss {test['loss']:.4f}")
    if test["accuracy"] < config.min_accuracy:
        raise GateError(f"test accuracy {test['accuracy']:.4f} is below evaluate.min_accuracy={config.min_accuracy}")
    return Report(dir=space.dir, test=test, validation=totals.get("validation"))


def load(trained: TrainedModel, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The bare model with its selected weights, on the CPU."""
    model = models.build(trained.model, trained.shape, len(trained.classes)).to(dtype)
    model.load_state_dict(load_file(trained.dir / "weights.safetensors"))
    return model


def measure(model: nn.Module, data: PreparedData, trained: TrainedModel, split: str, space: Workspace) -> dict[str, Any]:
    """Images, loss, accuracy, top-5, and the confusion matrix: counts and sums over all processes."""
    world, classes = space.world, len(data.classes)
    images = Images(data.open(split), world, trained.mean, trained.std)
    loss = functools.partial(LOSSES[trained.loss.name], **trained.loss.options)
    tally = Tally.zero(world.device)
    top5 = torch.zeros((), dtype=torch.int64, device=world.device)
    matrix = torch.zeros(classes, classes, dtype=torch.int64, device=world.device)
    for logits, labels in predictions(model, images, space, stoppable=True):
        tally.add(logits, labels, loss(logits, labels))
        top5 += metrics.top5(logits, labels)
        matrix += metrics.confusion(logits, labels)
    confusion = world.sum(matrix).tolist()
    seen = len(images)
    rows = enumerate(zip(data.classes, confusion, strict=True))
    per_class = [{"class": name, "images": sum(row), "correct": row[k]} for k, (name, row) in rows]
    return {
        "images": seen,
        "loss": Tally(world.sum(tally.sums)).means()["loss"],
        "accuracy": sum(row[k] for k, row in enumerate(confusion)) / seen,
        "top5": int(world.sum(top5).item()) / seen,
        "per_class": per_class,
        "confusion": confusion,
    }


@torch.no_grad()
def predictions(model: nn.Module, images: Images, space: Workspace, *, stoppable: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [B, K] and labels [B] of this process's part of a split, batch by batch.

    Raises:
        Stopped: if `stoppable`, when a process was told to stop.
    """
    world = space.world
    world.share_buffers(model)
    model.eval()
    for k, batch in enumerate(eval_batches(images, world, batch_size=space.config.run.eval_batch_size)):
        if stoppable and world.stopping(k):
            raise Stopped("stopped while evaluating; the trained model is kept, the same command goes on")
        if len(batch.labels):
            yield world.forward(model, batch.images), batch.labels
    model.train()


def _write(measured: dict[str, dict[str, Any]], data: PreparedData, trained: TrainedModel, space: Workspace) -> None:
    from pipeline.stages import report

    (space.dir / "report").mkdir(exist_ok=True)
    files.write_json(space.dir / "metrics.json", {"weights": trained.selected, **measured})
    pictures = report.write(space.dir / "report", measured, data, trained, space.config)
    space.trackers.results({f"{split}/{k}": v for split, m in measured.items() for k, v in m.items() if isinstance(v, int | float)})
    for name, path in {**pictures, "samples": data.dir / "samples.png"}.items():
        space.trackers.picture(name, path)
