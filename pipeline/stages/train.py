"""Stage 2: prepared data -> trained weights. The loop is in `_train`, one step of it in `update`."""

from typing import Any

from pipeline.config import TrainConfig
from pipeline.data.batches import Images
from pipeline.errors import DataError, PipelineError, Stopped
from pipeline.learning import state as checkpoints
from pipeline.learning.start import Beginning, train_mode
from pipeline.learning.state import Scores, TrainState, best
from pipeline.runtime import files
from pipeline.runtime.console import say
from pipeline.runtime.runner import Workspace
from pipeline.stages import scratch
from pipeline.stages.artifacts import PreparedData, TrainedModel
from pipeline.stages.evaluate import scores
from pipeline.stages.recipe import Recipe, initial_state, normalisation
from pipeline.stages.record import Record
from pipeline.stages.update import NonFinite, steps, update


def train(config: TrainConfig, data: PreparedData, _: Beginning, space: Workspace) -> TrainedModel:
    """Update the model, from the newest checkpoint in the workspace if there is one, to the last step."""
    world = space.world
    recipe = Recipe.of(config, data)
    shards = scratch.at_hand(data, space)
    images, held_out = (Images(shards.open(split), world, *normalisation(config, data)) for split in ("train", "validation"))
    left_out: set[int] = set()
    while True:
        try:
            return _train(recipe, data, images, held_out, frozenset(left_out), space)
        except NonFinite as found:
            say(f"train: {found}; going back to the last checkpoint, to leave that step out")
            left_out.add(found.step)
            world.barrier()  # the main process may still be writing that checkpoint


def _train(
    recipe: Recipe, data: PreparedData, images: Images, held_out: Images, left_out: frozenset[int], space: Workspace
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
    if world.is_main:
        space.trackers.facts(environment={**world.environment, "world_size": world.size})
    record = Record(space, state, steps=recipe.steps, batch_size=recipe.batch_size, epoch=recipe.per_epoch)
    with record, world.marks.watched("train"):
        each, learnt = steps(state, recipe, batches, world, run.workers)
        for batch in world.marks.each(each):
            lr = recipe.lr(state)
            logged = due(state.step + 1, run.log_every, recipe.steps)
            record.step(update(state, batch, recipe, lr, world, left_out, learnt, measured=logged))
            if logged:
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


def validate(state: TrainState, images: Images, recipe: Recipe, space: Workspace) -> Scores:
    """Loss, accuracy and the like on the validation split; keeps the weights if they are the best so far."""
    with state.averaged():
        found = {"step": state.step, **scores(state.model, images, recipe.loss, space)}
    train_mode(state.model)
    state.history.append(found)
    if best(state.history, recipe.config.metric) is found:
        state.best = state.weights(wanted=space.world.is_main)
    return found


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
        if selected["step"] != state.step and space.config.run.trackers:
            checkpoints.write(last, space.dir / "last.safetensors")  # to be told of
        timing = {"seconds": state.seconds, "images": images, "images_per_second": images / max(state.seconds, 1e-9)}
        files.write_json(space.dir / "timing.json", timing)
        early = f"; ended early, {config.patience} validations after the best" if state.step < recipe.steps else ""
        speed = f"{state.step} steps in {state.seconds:.1f} s, {timing['images_per_second']:,.0f} images/s"
        say(f"train: {speed}; kept step {selected['step']}, by {selected['by']}{_value(selected, metric)}{early}")
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
