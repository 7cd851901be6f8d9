"""Stage 2: prepared data -> trained weights. The loop is in `train`, one update in `update`."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import TrainConfig
from pipeline.data.augment import AUGMENTATIONS, MIXES
from pipeline.data.batches import Batch, Images, TrainBatches, global_index
from pipeline.errors import ConfigError, DataError, PipelineError, Stopped
from pipeline.learning import models
from pipeline.learning import state as checkpoints
from pipeline.learning.losses import LOSSES
from pipeline.learning.metrics import Tally
from pipeline.learning.networks import FastCifar
from pipeline.learning.optim import OPTIMIZERS, keep_rates_on, spare_compiler
from pipeline.learning.schedules import AVERAGES, SCHEDULES, Moment, rate
from pipeline.learning.start import BEGINNINGS, Beginning, freeze, train_mode
from pipeline.learning.state import Scores, TrainState, best, patience_lost, score
from pipeline.runtime import files, strategies
from pipeline.runtime.console import say
from pipeline.runtime.recorded import Recorded, Varies
from pipeline.runtime.runner import Workspace
from pipeline.runtime.world import World
from pipeline.stages.artifacts import PreparedData, TrainedModel
from pipeline.stages.evaluate import scores
from pipeline.stages.record import Record

PART = 1000  # images of a batch of all that are taken at once
WHITENING = 5000  # images that set the weights of a layer which is not learnt


def train(config: TrainConfig, data: PreparedData, _: Beginning, space: Workspace) -> TrainedModel:
    """Update the model, from the newest checkpoint in the workspace if there is one, to the last step."""
    world = space.world
    recipe = Recipe.of(config, data)
    images, held_out = (Images(data.open(split), world, *normalisation(config, data)) for split in ("train", "validation"))
    left_out: set[int] = set()
    while True:
        try:
            return _train(recipe, data, images, held_out, frozenset(left_out), space)
        except NonFinite as found:
            say(f"train: {found}; going back to the last checkpoint, to leave that step out")
            left_out.add(found.step)
            world.barrier()  # the main process may still be writing that checkpoint


def _train(
    recipe: "Recipe", data: PreparedData, images: Images, held_out: Images, left_out: frozenset[int], space: Workspace
) -> TrainedModel:
    """From the newest checkpoint to the end; the steps `left_out` change nothing.

    Raises:
        NonFinite: a step that is to be left out, with train.nonfinite=restore.
    """
    world, run = space.world, space.config.run
    state, parts = initial_state(recipe, data, images, world)
    batches = recipe.batches(images, data, world, parts)
    restored = checkpoints.restore(state, space.dir, world.shards, world.virtual, world.environment)
    if world.any(world.agree(restored) != restored):
        raise DataError(f"the processes see different checkpoints in {space.dir}; all nodes must see the same run.artifacts folder")
    if restored:
        say(f"train: going on from {restored} of {recipe.steps}")
    if recipe.has_ended(state.history):
        return finish(state, recipe, data, space)
    if short := world.agree(checkpoints.shortage(state, space.dir, run.keep)):
        raise PipelineError(f"{short}; make room, lower run.keep, or choose another run.artifacts folder")

    say(f"train: {world}")
    with Record(space, state, steps=recipe.steps, batch_size=recipe.batch_size) as record, world.marks.watched("train"):
        each, learnt = steps(state, recipe, batches, world, run.workers)
        for batch in world.marks.each(each):
            lr = recipe.lr(state)
            record.step(update(state, batch, recipe, lr, world, left_out, learnt))
            if due(state.step, run.log_every, recipe.steps):
                record.training(lr)
            if due(state.step, recipe.validate_every, recipe.steps) and len(held_out):
                with record.paused():
                    record.validation(validate(state, held_out, recipe, space))
            stopping = world.stopping()
            if stopping or due(state.step, run.checkpoint_every, recipe.steps):
                record.save(run.keep)
            if stopping:
                record.saved()
                raise Stopped(
                    f"stopped{space.stop.why} after step {state.step} of {recipe.steps}, with a checkpoint; the same command goes on"
                )
            if recipe.has_ended(state.history):
                break
    return finish(state, recipe, data, space)


def steps(
    state: TrainState, recipe: "Recipe", batches: TrainBatches, world: World, workers: int
) -> tuple[Iterator[list[Batch]], Recorded[None] | None]:
    """The batches from here to the last step; and, where a step can be launched as one, what learns from them."""
    here, last = state.step, recipe.steps
    try:
        recorders = world.recorder(), world.recorder()
        if recorders[0] is None or recorders[1] is None:
            return batches.steps(here, last, workers), None
        if recipe.config.nonfinite != "stop":
            raise Varies(f"train.nonfinite={recipe.config.nonfinite} looks into each step")
        if not all(isinstance(group["lr"], Tensor) for group in state.groups):
            raise Varies(f"train.optimizer={recipe.config.optimizer.name} takes its rate from the host")
        each = batches.replayed(here, last, recorders[0])
        work = functools.partial(learn, state, recipe, world, batches.parts[0])
        learnt = Recorded(work, recorders[1], world.device, forget=state.forget_gradients, what="a step")
    except Varies as why:
        say(f"train: a step is launched piece by piece, not as one: {why}")
        return batches.steps(here, last, workers), None
    say("train: a step is recorded and launched as one (run.cuda_graph=no: piece by piece)")
    return each, learnt


def update(
    state: TrainState,
    batches: Sequence[Batch],
    recipe: "Recipe",
    lr: float,
    world: World,
    left_out: frozenset[int] = frozenset(),
    learnt: "Recorded[None] | None" = None,
) -> bool:
    """One optimizer step on one global batch, of which this process has `batches`; advances `state.step`.

    False if the step was left out. `learnt` does as one what the device does in it.
    """
    if state.step in left_out:
        state.step += 1
        return False
    before = None if recipe.config.nonfinite == "stop" else [tensor.clone() for tensor in state.volatile()]
    state.set_rate(lr)
    if learnt is not None:
        (batch,) = batches
        world.seed(world.shards[0], seed=recipe.config.seed, step=state.step)
        learnt(batch.images, batch.labels, batch.targets)
    else:
        find_gradients(state, batches, recipe, world)
        if before is not None and world.any(not state.is_finite()):
            if recipe.config.nonfinite == "restore":
                raise NonFinite(state.step)
            state.leave_out(before)
            return False
        descend(state, recipe)
    if recipe.config.average:
        state.fold(recipe.share(recipe.moment(state)))
    state.step += 1
    return True


def learn(
    state: TrainState, recipe: "Recipe", world: World, parts: Sequence[slice], images: Tensor, labels: Tensor, targets: Tensor
) -> None:
    """All that the device does in a step: what it reads are tensors, and no number in here is another in another step."""
    find_gradients(state, [Batch(images, labels, targets, parts)], recipe, world)
    descend(state, recipe)


def find_gradients(state: TrainState, batches: Sequence[Batch], recipe: "Recipe", world: World) -> None:
    """Of the mean over the global batch, whatever the number of processes and parts.

    Each sums its own losses over the global count, and the mean over processes is undone.
    """
    for shard, batch, tally in zip(world.shards, batches, state.tallies, strict=True):
        with world.playing(shard, state.model, seed=recipe.config.seed, step=state.step):
            for rows in batch.parts:
                with world.micro_batch(state.model, last=rows is batch.parts[-1]):
                    logits = world.forward(state.model, batch.images[rows])
                    losses = recipe.loss(logits, batch.targets[rows])
                    world.backward(losses, state.scaler.scale(losses.new_full(losses.shape, world.virtual / recipe.batch_size)))
                tally.add(logits, batch.labels[rows], losses)
    world.exchange()
    world.marks.at("optimizer")
    for optimizer in state.optimizers:
        state.scaler.unscale_(optimizer)
    world.agree_on_overflow(state.scaler, state.optimizers)


def descend(state: TrainState, recipe: "Recipe") -> None:
    """By the gradients, which are then forgotten."""
    if recipe.config.clip is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), recipe.config.clip)
    for optimizer in state.optimizers:
        state.scaler.step(optimizer)
    state.forget_gradients()
    state.scaler.update()


class NonFinite(Exception):
    """A step whose loss or gradient is no number."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss or a gradient of step {step + 1} is no number")
        self.step = step  # from 0


@dataclass(frozen=True)
class Recipe:
    """`train` of the configuration for the data at hand: every choice a function, every epoch a number of steps."""

    config: TrainConfig
    batch_size: int  # images an update, over all processes
    steps: int  # updates in all
    per_epoch: float  # updates
    validate_every: int  # updates
    loss: Callable[[Tensor, Tensor], Tensor]
    schedule: Callable[[Moment], float]
    share: Callable[[Moment], float | None]  # of the current weights in their average

    @classmethod
    def of(cls, config: TrainConfig, data: PreparedData) -> "Recipe":
        images = data.counts["train"]
        batch_size = images if config.batch_size == "all" else config.batch_size
        if batch_size > images:
            raise ConfigError(f"train.batch_size: {batch_size} is more than the {images} training images; use all")
        if not data.counts["validation"] and (config.patience or config.schedule.name == "plateau"):
            what = "train.patience" if config.patience else "train.schedule: plateau"
            raise ConfigError(f"{what} looks at the validation split, which is empty; raise data.validation")
        average = config.average
        return cls(
            config,
            batch_size,
            steps=config.steps or math.ceil(config.epochs * images / batch_size),
            per_epoch=images / batch_size,
            validate_every=max(1, round(config.validate_every * images / batch_size)),
            loss=functools.partial(LOSSES[config.loss.name], **config.loss.options),
            schedule=functools.partial(SCHEDULES[config.schedule.name], **config.schedule.options),
            share=functools.partial(AVERAGES[average.name], **average.options) if average else lambda moment: None,
        )

    def batches(self, images: Images, data: PreparedData, world: World, parts: int = 1) -> TrainBatches:
        return TrainBatches(
            images,
            world,
            batch_size=self.batch_size,
            parts=parts,
            seed=self.config.seed,
            steps=self.steps,
            classes=len(data.classes),
            augment=[functools.partial(AUGMENTATIONS[spec.name], **spec.options) for spec in self.config.augment],
            mix=[functools.partial(MIXES[spec.name], **spec.options) for spec in self.config.mix],
        )

    def moment(self, state: TrainState) -> Moment:
        return Moment(state.step, self.steps, self.per_epoch, [score(scores, self.config.metric) for scores in state.history])

    def lr(self, state: TrainState) -> float:
        return self.config.lr * rate(self.schedule, self.moment(state), warmup=self.config.warmup, by=self.config.lr_by)

    def has_ended(self, history: Sequence[Scores]) -> bool:
        return patience_lost(history, self.config.metric, self.config.patience)

    def parts(self, world: World) -> int:
        """Into how many the global batch is cut, one after the other; not for the number of processes to change."""
        parts = self.config.accumulate or (-(-self.batch_size // PART) if self.config.batch_size == "all" else 1)
        if self.batch_size < parts * world.virtual:
            each = f"{world.virtual} processes (or shards)"
            raise ConfigError(f"train.accumulate: {self.batch_size} images cannot be cut into {parts} parts for each of {each}")
        return parts


def initial_state(recipe: Recipe, data: PreparedData, images: Images, world: World) -> tuple[TrainState, int]:
    """The state before the first step, the same on every process; and into how many parts a batch is cut."""
    config = recipe.config
    torch.manual_seed(config.seed)
    bare = models.build(config.model, data.shape, len(data.classes))
    if isinstance(bare, FastCifar):
        index = global_index(len(images), min(WHITENING, len(images)), config.seed, 0)
        bare.whiten(images.batch(images.take(index), index).images.cpu())
    models.refuse_size(bare, config.model, recipe.batches(images, data, world).first_shape(), len(data.classes))
    together = 1 if config.batch_norm == "sync" else world.virtual
    if recipe.batch_size // (recipe.parts(world) * together) < 2:
        models.refuse_one(bare, config.model, data.shape, len(data.classes))
    BEGINNINGS[config.init.name](bare, **config.init.options)
    freeze(bare, config.freeze)
    model = world.wrap(bare, data.shape, recipe.batch_size, batch_norm=config.batch_norm)
    largest = -(-recipe.batch_size // world.virtual)
    parts = world.parts(model, data.shape, largest, recipe.parts(world))
    strategies.refuse_parts(model, config.batch_norm, recipe.batch_size, world.virtual * parts)
    train_mode(model)
    spare_compiler()
    optimizers = OPTIMIZERS[config.optimizer.name](strategies.bare(model), **config.optimizer.options)
    if world.can_record:
        keep_rates_on(world.device, optimizers)
    return TrainState(model, optimizers, world.scaler(), [Tally.zero(world.device) for _ in world.shards]), parts


def validate(state: TrainState, images: Images, recipe: Recipe, space: Workspace) -> Scores:
    """Loss, accuracy and the like on the validation split; keeps the weights if they are the best so far."""
    with state.averaged():
        found = {"step": state.step, **scores(state.model, images, recipe.loss, space)}
    train_mode(state.model)
    state.history.append(found)
    if best(state.history, recipe.config.metric) is found:
        state.best = state.weights(wanted=space.world.is_main)
    return found


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


def finish(state: TrainState, recipe: Recipe, data: PreparedData, space: Workspace) -> TrainedModel:
    """Keep the selected weights, and say which they are."""
    config, metric = recipe.config, recipe.config.metric
    found = best(state.history, metric) if config.select == "best" else None
    selected: dict[str, Any] = {"by": "last step", "step": state.step}
    if found is not None:
        selected = {"by": f"validation {metric}", "step": found["step"], metric: found[metric]}
    last = state.weights(wanted=space.world.is_main)
    images = state.step * recipe.batch_size
    if space.world.is_main:
        checkpoints.write(last if found is None else state.best, space.dir / "weights.safetensors")
        timing = {"seconds": state.seconds, "images": images, "images_per_second": images / max(state.seconds, 1e-9)}
        files.write_json(space.dir / "timing.json", timing)
        early = f"; ended early, {config.patience} validations after the best" if state.step < recipe.steps else ""
        speed = f"{state.step} steps in {state.seconds:.1f} s, {timing['images_per_second']:,.0f} images/s"
        say(f"train: {speed}; kept step {selected['step']}, by {selected['by']}{_value(selected, metric)}{early}")
        space.trackers.artifact(space.config.run.name, "model", [space.dir / "weights.safetensors"], selected)
    mean, std = normalisation(config, data)
    return TrainedModel(
        dir=space.dir,
        model=config.model,
        shape=data.shape,
        classes=data.classes,
        mean=mean,
        std=std,
        loss=config.loss,
        precision=config.precision,
        steps=state.step,
        images=images,
        selected=selected,
    )


def _value(selected: dict[str, Any], metric: str) -> str:
    return f" {selected[metric]:.4f}" if metric in selected else ""
