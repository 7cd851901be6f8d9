"""One step of a training: gradients of the mean over the global batch, and the descent by them."""

import functools
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from pipeline.data.batches import Batch, TrainBatches
from pipeline.learning.state import TrainState
from pipeline.runtime.console import say
from pipeline.runtime.recorded import Recorded, Varies
from pipeline.runtime.strategies import whole
from pipeline.runtime.world import World
from pipeline.stages.recipe import Recipe


class NonFinite(Exception):
    """A step whose loss or gradient is no number."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss or a gradient of step {step + 1} is no number")
        self.step = step  # from 0


def steps(
    state: TrainState, recipe: Recipe, batches: TrainBatches, world: World, workers: int
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
    recipe: Recipe,
    lr: float,
    world: World,
    left_out: frozenset[int] = frozenset(),
    learnt: Recorded[None] | None = None,
    *,
    measured: bool = False,
) -> bool:
    """One optimizer step on one global batch, of which this process has `batches`; advances `state.step`.

    False if the step was left out. `learnt` does as one what the device does in it. If `measured`, which all
    processes have to ask for, the gradient's norm is in `state.gradient_norm` then.
    """
    state.gradient_norm = state.gradient_norm if learnt is not None else None
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
        descend(state, recipe, measured=measured)
    if recipe.config.average:
        state.fold(recipe.share(recipe.moment(state)))
    state.step += 1
    return True


def learn(state: TrainState, recipe: Recipe, world: World, parts: Sequence[slice], images: Tensor, labels: Tensor, targets: Tensor) -> None:
    """All that the device does in a step: what it reads are tensors, and no number in here is another in another step."""
    find_gradients(state, [Batch(images, labels, targets, parts)], recipe, world)
    state.tallies[0].settle()  # the tensors are other batches' later
    descend(state, recipe, measured=True)


def find_gradients(state: TrainState, batches: Sequence[Batch], recipe: Recipe, world: World) -> None:
    """Of the mean over the global batch, whatever the number of processes and parts.

    Each sums its own losses over the global count, and the mean over processes is undone.
    """
    for shard, batch, tally in zip(world.shards, batches, state.tallies, strict=True):
        with world.playing(shard, state.model, seed=recipe.config.seed, step=state.step):
            parts = batch.cut()
            for part in parts:
                with world.micro_batch(state.model, last=part is parts[-1]):
                    logits = world.forward(state.model, part.images)
                    losses = recipe.loss(logits, part.targets)
                    world.backward(losses, state.scaler.scale(losses.new_full(losses.shape, world.virtual / recipe.batch_size)))
                tally.add(logits, part.labels, losses)
    world.exchange()
    world.marks.at("optimizer")
    for optimizer in state.optimizers:
        state.scaler.unscale_(optimizer)
    world.agree_on_overflow(state.scaler, state.optimizers)


def descend(state: TrainState, recipe: Recipe, *, measured: bool) -> None:
    """By the gradients, which are then forgotten, but for their norm before it was clipped, if `measured`."""
    parameters = list(state.model.parameters())
    norm = None
    if recipe.config.clip is not None:
        norm = nn.utils.clip_grad_norm_(parameters, recipe.config.clip)
    elif measured:
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    state.gradient_norm = whole(norm) if measured and norm is not None else None
    for optimizer in state.optimizers:
        state.scaler.step(optimizer)
    state.forget_gradients()
    state.scaler.update()
