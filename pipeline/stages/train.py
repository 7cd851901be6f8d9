"""Stage 2: prepared data -> trained weights. The loop is in `train`, one update in `update`."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.config import TrainConfig
from pipeline.data.augment import AUGMENTATIONS
from pipeline.data.batches import Batch, Images, TrainBatches, share
from pipeline.errors import ConfigError, DataError, Stopped
from pipeline.learning import models
from pipeline.learning import state as checkpoints
from pipeline.learning.losses import LOSSES
from pipeline.learning.metrics import Tally
from pipeline.learning.optim import OPTIMIZERS, SCHEDULES
from pipeline.learning.state import Best, TrainState
from pipeline.runtime import files
from pipeline.runtime.console import say
from pipeline.runtime.runner import Workspace
from pipeline.runtime.world import World
from pipeline.stages.artifacts import PreparedData, TrainedModel
from pipeline.stages.evaluate import predictions
from pipeline.stages.record import Record

Loss = Callable[[Tensor, Tensor], Tensor]


def train(config: TrainConfig, data: PreparedData, space: Workspace) -> TrainedModel:
    """Update the model, from the newest checkpoint in the workspace if there is one, to the last step."""
    world, run = space.world, space.config.run
    normalise = normalisation(config, data)
    images = Images(data.open("train"), world, *normalise)
    held_out = Images(data.open("validation"), world, *normalise)
    augment = [functools.partial(AUGMENTATIONS[spec.name], **spec.options) for spec in config.augment]
    batches = TrainBatches(images, world, batch_size=config.batch_size, seed=config.seed, augment=augment)
    per_epoch = len(images) / config.batch_size
    steps = config.steps or math.ceil(config.epochs * per_epoch)
    validate_every = max(1, round(config.validate_every * per_epoch))
    rate = functools.partial(SCHEDULES[config.schedule.name], steps=steps, per_epoch=per_epoch, **config.schedule.options)
    loss = functools.partial(LOSSES[config.loss.name], **config.loss.options)
    state = initial_state(config, data, world)
    restored = checkpoints.restore(state, space.dir / "checkpoints", space.dir / "metrics.jsonl", world.rank, world.size)
    if world.any(world.agree(restored) != restored):
        raise DataError(f"the processes see different checkpoints in {space.dir}; all nodes must see the same run.artifacts folder")
    if restored:
        say(f"train: going on from {restored} of {steps}")

    say(f"train: {world}")
    with Record(space, state, steps=steps, batch_size=config.batch_size) as record:
        for batch in batches.steps(state.step, steps, run.workers):
            lr = config.lr * rate(state.step)
            update(state, batch, config, loss, lr, world)
            record.step()
            if due(state.step, run.log_every, steps):
                record.training(lr)
            if due(state.step, validate_every, steps) and len(held_out):
                with record.paused():
                    record.validation(validate(state, held_out, loss, space))
            stopping = world.stopping(state.step)
            if stopping or due(state.step, run.checkpoint_every, steps):
                record.save(run.keep)
            if stopping:
                raise Stopped(f"stopped after step {state.step} of {steps}, with a checkpoint; the same command goes on")
    return finish(state, config, data, normalise, space)


def update(state: TrainState, batch: Batch, config: TrainConfig, loss: Loss, lr: float, world: World) -> None:
    """One optimizer step on one global batch; advances `state.step`.

    The gradient is that of the mean over the global batch, whatever the number of processes and
    parts: each sums its own losses over the global count, and DDP's mean over processes is undone.
    """
    world.seed(config.seed, state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    for part in range(config.accumulate):
        rows = share(len(batch.labels), part, config.accumulate)
        with world.micro_batch(state.model, last=part == config.accumulate - 1):
            logits = world.forward(state.model, batch.images[rows])
            losses = loss(logits, batch.labels[rows])
            world.backward(losses.sum() * (world.size / config.batch_size))
        state.tally.add(logits, batch.labels[rows], losses)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1


def initial_state(config: TrainConfig, data: PreparedData, world: World) -> TrainState:
    """The state before the first step, the same on every process."""
    torch.manual_seed(config.seed)
    model = world.wrap(models.build(config.model, data.shape, len(data.classes)), data.shape, config.batch_size)
    optimizer = OPTIMIZERS[config.optimizer.name](model, **config.optimizer.options)
    return TrainState(model, optimizer, Tally.zero(world.device))


def validate(state: TrainState, images: Images, loss: Loss, space: Workspace) -> dict[str, float]:
    """Loss and accuracy on the validation split; keeps the weights if they are the best so far."""
    tally = Tally.zero(space.world.device)
    for logits, labels in predictions(state.model, images, space):
        tally.add(logits, labels, loss(logits, labels))
    means = Tally(space.world.sum(tally.sums)).means()
    if state.best is None or (means["accuracy"], -means["loss"]) > (state.best.accuracy, -state.best.loss):
        state.best = Best(state.step, means["accuracy"], means["loss"], state.weights())
    return means


def normalisation(config: TrainConfig, data: PreparedData) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel: the recipe's, or the training split's."""
    channels = data.shape[0]

    def each(values: Sequence[float] | None, found: tuple[float, ...], key: str) -> tuple[float, ...]:
        values = tuple(values or found)
        if len(values) not in (1, channels):
            raise ConfigError(f"train.{key}: {len(values)} numbers for images of {channels} channels; give 1 or {channels}")
        return values * (channels // len(values))

    return each(config.mean, data.mean, "mean"), each(config.std, data.std, "std")


def due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last


def finish(
    state: TrainState, config: TrainConfig, data: PreparedData, normalise: tuple[tuple[float, ...], tuple[float, ...]], space: Workspace
) -> TrainedModel:
    """Keep the selected weights, and say which they are."""
    if config.select == "best" and state.best is not None:
        weights, selected = state.best.weights, {"by": "validation accuracy", "step": state.best.step, "accuracy": state.best.accuracy}
    else:
        weights, selected = state.weights(), {"by": "last step", "step": state.step}
    images = state.step * config.batch_size
    if space.world.is_main:
        save_file(weights, space.dir / "weights.safetensors")
        timing = {"seconds": state.seconds, "images": images, "images_per_second": images / max(state.seconds, 1e-9)}
        files.write_json(space.dir / "timing.json", timing)
        say(f"train: {state.step} steps in {state.seconds:.1f} s, {timing['images_per_second']:,.0f} images/s; kept {_words(selected)}")
        space.trackers.artifact(space.config.run.name, "model", [space.dir / "weights.safetensors"], selected)
    return TrainedModel(
        dir=space.dir,
        model=config.model,
        shape=data.shape,
        classes=data.classes,
        mean=normalise[0],
        std=normalise[1],
        loss=config.loss,
        precision=config.precision,
        steps=state.step,
        images=images,
        selected=selected,
    )


def _words(selected: dict[str, Any]) -> str:
    score = f" {selected['accuracy']:.4f}" if "accuracy" in selected else ""
    return f"step {selected['step']}, by {selected['by']}{score}"
