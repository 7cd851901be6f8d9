"""Stage 3: trained weights -> what they do on the splits they have not learnt from."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.config import EvaluateConfig
from pipeline.data.augment import VIEWS, View, all_views
from pipeline.data.batches import Images, eval_batches, eval_rows
from pipeline.errors import GateError, Stopped
from pipeline.learning import models
from pipeline.learning.losses import LOSSES
from pipeline.learning.metrics import Answers
from pipeline.learning.state import write
from pipeline.runtime import files
from pipeline.runtime.console import say, show_progress
from pipeline.runtime.progress import Progress
from pipeline.runtime.runner import Workspace
from pipeline.runtime.world import World
from pipeline.stages.artifacts import PreparedData, Report, TrainedModel

MANY = 1000  # classes: of more, the matrix would take gigabytes
FEW, NUMBERS = 100, 10**7  # classes, and images times classes: the probability of every class is kept of no more
Loss = Callable[[Tensor, Tensor], Tensor]  # logits [B, K], labels [B] -> [B]


def evaluate(config: EvaluateConfig, data: PreparedData, trained: TrainedModel, space: Workspace) -> Report:
    """Exact at every world size: each image counts once, in its place.

    With `evaluate.views` a second figure is given besides, of logits averaged over the views of
    each image. The gate `evaluate.min_accuracy`, the predictions that are kept and the export stay
    with the images themselves.

    Raises:
        GateError: the accuracy on the test split is below `evaluate.min_accuracy`.
    """
    model = load(trained, space.world.dtype).to(space.world.device)
    answered = {split: _answers(model, config, data, trained, split, space) for split in ("validation", "test") if data.counts[split]}
    measured = {name: measure(found, data.classes) for several in answered.values() for name, found in several.items()}
    if not all(math.isfinite(values["loss"]) for values in measured.values()):
        raise GateError("the loss of the trained weights is not a finite number; lower train.lr")
    totals = {name: _numbers(values) for name, values in measured.items()}
    test, views = totals["test"], totals.get("test_views")
    right = round(test["images"] * test["accuracy"])
    besides = f", with views {views['accuracy']:.4f}" if views else ""
    say(f"evaluate: test accuracy {test['accuracy']:.4f} ({right} of {test['images']}), loss {test['loss']:.4f}{besides}")
    if space.world.is_main:
        _keep({split: several[split] for split, several in answered.items()}, space)
        _write(measured, data, trained, space)
    if test["accuracy"] < config.min_accuracy:
        raise GateError(f"test accuracy {test['accuracy']:.4f} is below evaluate.min_accuracy={config.min_accuracy}")
    return Report(dir=space.dir, test=test, validation=totals.get("validation"))


def load(trained: TrainedModel, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The bare model with its selected weights, on the CPU."""
    model = models.build(trained.model, trained.shape, len(trained.classes)).to(dtype)
    model.load_state_dict(load_file(trained.dir / "weights.safetensors"))
    return model


def measure(answers: Answers, classes: Sequence[str]) -> dict[str, Any]:
    """Images, scores, and the confusion matrix; of very many classes without it, which would be larger than all the predictions."""
    right = answers.labels[answers.predicted == answers.labels]
    counts = (torch.bincount(each, minlength=len(classes)).tolist() for each in (answers.labels, right))
    per_class = [{"class": name, "images": images, "correct": correct} for name, images, correct in zip(classes, *counts, strict=True)]
    matrix = {"confusion": answers.confusion().tolist()} if len(classes) <= MANY else {}
    return {"images": len(answers.labels), **answers.scores(), "per_class": per_class, **matrix}


def scores(model: nn.Module, images: Images, loss: Loss, space: Workspace) -> dict[str, float]:
    """Loss, accuracy, top5, balanced_accuracy and macro_f1 over all images and processes; the same on each."""
    return answers(model, images, loss, space)[0].scores()


@torch.no_grad()
def answers(
    model: nn.Module,
    images: Images,
    loss: Loss,
    space: Workspace,
    *,
    views: Sequence[View] = (),
    with_all: bool = False,
    stoppable: bool = False,
    progress: Progress | None = None,
) -> list[Answers]:
    """What `model` says of each image, in the order of the split; then, if there are views, of all views of it together.

    The probability of every class is among it if it is to be `with_all`.

    Raises:
        Stopped: if `stoppable`, when a process was told to stop.
    """
    world, batch_size = space.world, space.config.run.eval_batch_size
    model.eval()
    parts: list[list[Answers]] = []
    for batch in world.marks.each(eval_batches(images, world, batch_size=batch_size)):
        if stoppable and world.stopping():
            raise Stopped("stopped while evaluating; the trained model is kept, the same command goes on")
        several = _logits(model, batch.images, views, world)
        parts.append([Answers.of(logits, batch.labels, loss(logits, batch.labels), with_all=with_all) for logits in several])
        if progress:
            progress.step()
    model.train()
    places = np.concatenate(list(eval_rows(len(images), world, batch_size=batch_size)))
    return [_together(of_one_kind, places, len(images), world) for of_one_kind in zip(*parts, strict=True)]


def _logits(model: nn.Module, images: Tensor, views: Sequence[View], world: World) -> list[Tensor]:
    """[B, K] of the images, and if there are views the mean over these, of which the images are the first.

    A process whose part of a batch is empty goes along with one black image: where the weights are
    shared out, a way through the model is a meeting of all processes.
    """
    shown = images if len(images) else images.new_zeros(1, *images.shape[1:])
    logits = [world.forward(model, view)[: len(images)] for view in all_views(shown, views)]
    return [logits[0], torch.stack(logits).mean(0)] if views else logits


def _together(parts: Sequence[Answers], places: np.ndarray[Any, np.dtype[np.int64]], count: int, world: World) -> Answers:
    """Each process's answers in their places among `count`, on the CPU: what a process has not is zero, so that sums are the whole."""
    index = world.to_device(torch.from_numpy(places))

    def whole(mine: list[Tensor]) -> Tensor:
        found = torch.cat(mine)
        return world.sum(found.new_zeros(count, *found.shape[1:]).index_copy(0, index, found)).cpu()

    shares = [part.probabilities for part in parts if part.probabilities is not None]
    return Answers(
        labels=whole([part.labels for part in parts]),
        predicted=whole([part.predicted for part in parts]),
        in_five=whole([part.in_five for part in parts]),
        losses=whole([part.losses for part in parts]),
        confidence=whole([part.confidence for part in parts]),
        classes=parts[0].classes,
        probabilities=whole(shares) if shares else None,
    )


def _answers(
    model: nn.Module, config: EvaluateConfig, data: PreparedData, trained: TrainedModel, split: str, space: Workspace
) -> dict[str, Answers]:
    """By name: `split`, and if there are views `split_views`."""
    images = Images(data.open(split), space.world, trained.mean, trained.std)
    loss = functools.partial(LOSSES[trained.loss.name], **trained.loss.options)
    views = [functools.partial(VIEWS[spec.name], **spec.options) for spec in config.views]
    with_all = len(trained.classes) <= FEW and len(images) * len(trained.classes) <= NUMBERS
    batches = -(-len(images) // space.config.run.eval_batch_size) * len(space.world.shards)
    progress = show_progress(f"evaluate {split}", total=batches, units="batches")
    with space.world.marks.watched("evaluate"), contextlib.closing(progress):
        found = answers(model, images, loss, space, views=views, with_all=with_all, stoppable=True, progress=progress)
    return dict(zip((split, f"{split}_views"), found, strict=False))


def _keep(answered: dict[str, Answers], space: Workspace) -> None:
    """`<split>.labels`, `<split>.predicted` (int64) and `<split>.confidence` (float32), [N] in the order of the split.

    And `<split>.probabilities`, float32 [N, K], where that is not large.
    """
    kept: dict[str, Tensor] = {}
    for split, found in answered.items():
        kept |= {f"{split}.labels": found.labels, f"{split}.predicted": found.predicted, f"{split}.confidence": found.confidence.float()}
        if found.probabilities is not None:
            kept[f"{split}.probabilities"] = found.probabilities.float()
    write(kept, space.dir / "predictions.safetensors")


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in values.items() if isinstance(v, int | float)}


def _write(measured: dict[str, dict[str, Any]], data: PreparedData, trained: TrainedModel, space: Workspace) -> None:
    of = {"prepare": data.digest, "train": trained.digest}  # for one that fails its gate, and so has no manifest
    files.write_json(space.dir / "metrics.json", {"weights": trained.selected, "of": of, **measured})
    space.trackers.results({f"{name}/{k}": v for name, values in measured.items() for k, v in _numbers(values).items()})
    if not space.config.run.trackers:
        return
    from pipeline.stages.report import pictures

    (space.dir / "report").mkdir(exist_ok=True)
    pictures.write(space.dir / "report", measured, trained)
