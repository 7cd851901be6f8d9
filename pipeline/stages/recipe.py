"""`train` of the configuration for the data at hand, and the state that it begins with."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config import TrainConfig
from pipeline.data.augment import AUGMENTATIONS, MIXES
from pipeline.data.batches import Images, TrainBatches, first_shape, global_index
from pipeline.errors import ConfigError
from pipeline.learning import models
from pipeline.learning.losses import LOSSES
from pipeline.learning.metrics import Tally
from pipeline.learning.models import Shape
from pipeline.learning.networks import FastCifar
from pipeline.learning.optim import OPTIMIZERS, keep_rates_on, spare_compiler
from pipeline.learning.schedules import AVERAGES, SCHEDULES, Moment, rate
from pipeline.learning.start import BEGINNINGS, fitting, freeze, train_mode
from pipeline.learning.state import Scores, TrainState, patience_lost, score
from pipeline.runtime import strategies
from pipeline.runtime.world import World
from pipeline.stages.artifacts import PreparedData

PART = 1000  # images of a batch of all that are taken at once
WHITENING = 5000  # images that set the weights of a layer which is not learnt


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
        _check_images(config, data.shape, len(data.classes))
        average = config.average
        recipe = cls(
            config,
            batch_size,
            steps=config.steps or math.ceil(config.epochs * images / batch_size),
            per_epoch=images / batch_size,
            validate_every=max(1, round(config.validate_every * images / batch_size)),
            loss=functools.partial(LOSSES[config.loss.name], **config.loss.options),
            schedule=functools.partial(SCHEDULES[config.schedule.name], **config.schedule.options),
            share=functools.partial(AVERAGES[average.name], **average.options) if average else lambda moment: None,
        )
        rate(recipe.schedule, Moment(0, recipe.steps, recipe.per_epoch), warmup=config.warmup, by=config.lr_by)  # refuses a long warmup
        return recipe

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


def foresee(config: TrainConfig, shape: Shape, classes: int) -> None:
    """See that training can begin on images of `shape`, as far as neither their number nor that of the processes decides; draws nothing.

    Raises:
        ConfigError: it cannot.
    """
    _check_images(config, shape, classes)
    with torch.random.fork_rng(devices=[]):
        model = models.build(config.model, shape, classes)
    augment = [functools.partial(AUGMENTATIONS[spec.name], **spec.options) for spec in config.augment]
    first = first_shape(augment, torch.zeros(1, *shape, dtype=torch.uint8), config.seed)
    if first != shape:
        models.refuse_size(model, config.model, first, classes)
    if config.init.name == "weights":
        fitting(model, **config.init.options)
    freeze(model, config.freeze)


def refuse(config: TrainConfig, data: PreparedData) -> None:
    """As `foresee`, of images that have been prepared: by their number as well."""
    Recipe.of(config, data)
    foresee(config, data.shape, len(data.classes))


def _check_images(config: TrainConfig, shape: Shape, classes: int) -> None:
    if config.metric == "top5" and classes <= 5:
        raise ConfigError(f"train.metric: top5 of {classes} classes is always 1; choose accuracy, or loss")
    for key, values in (("mean", config.mean), ("std", config.std)):
        if values and len(values) not in (1, shape[0]):
            raise ConfigError(f"train.{key}: {len(values)} numbers for images of {shape[0]} channels; give 1 or {shape[0]}")
    side = min(shape[1:])
    for k, spec in enumerate(config.augment):
        if spec.name == "crop" and spec.options["padding"] >= side:
            raise ConfigError(
                f"train.augment.{k}.padding: {spec.options['padding']} pixels are as many as images have; give fewer than {side}"
            )


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


def normalisation(config: TrainConfig, data: PreparedData) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel: the recipe's, or the training split's."""
    channels = data.shape[0]

    def each(values: Sequence[float] | None, found: tuple[float, ...]) -> tuple[float, ...]:
        values = tuple(values or found)
        return values * (channels // len(values))

    return each(config.mean, data.mean), each(config.std, data.std)
