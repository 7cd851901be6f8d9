"""A learning rate range test: short steps, then longer ones, until the loss has had enough.

L. N. Smith, "Cyclical learning rates for training neural networks", WACV 2017; the smoothing and
the rule of the steepest descent are fastai's.
"""

import math

import matplotlib as mpl
from matplotlib.figure import Figure

from pipeline.config import TrainConfig
from pipeline.data.batches import Images
from pipeline.errors import GateError, Stopped
from pipeline.learning.schedules import diverged, range_test_rate, suggest
from pipeline.learning.start import Beginning
from pipeline.runtime import files
from pipeline.runtime.console import say, show_progress
from pipeline.runtime.runner import Workspace
from pipeline.stages.artifacts import PreparedData, RateTest
from pipeline.stages.recipe import Recipe, initial_state, normalisation
from pipeline.stages.report.theme import STYLE
from pipeline.stages.update import update

STEPS, LOW, HIGH = 200, 1e-6, 10.0


def lr_find(config: TrainConfig, data: PreparedData, _: Beginning, space: Workspace) -> RateTest:
    """Train for `STEPS` updates while the rate rises from `LOW` to `HIGH`; nothing of it is kept but the losses.

    Raises:
        GateError: the loss was never finite, or never fell.
    """
    world = space.world
    recipe = Recipe.of(config.model_copy(update={"steps": STEPS, "warmup": 0, "average": None, "nonfinite": "stop"}), data)
    images = Images(data.open("train"), world, *normalisation(config, data))
    state, parts = initial_state(recipe, data, images, world)
    rates: list[float] = []
    losses: list[float] = []
    progress = show_progress("lr-find", total=STEPS, units="steps")
    for step, batch in enumerate(recipe.batches(images, data, world, parts).steps(0, STEPS, space.config.run.workers)):
        if world.stopping():
            raise Stopped("stopped while looking for a rate; the same command starts again")
        rates.append(range_test_rate(step, STEPS, LOW, HIGH))
        update(state, batch, recipe, rates[-1], world)
        losses.append(state.means(world.total)["loss"])
        progress.step()
        if not math.isfinite(losses[-1]) or diverged(losses):
            break
    progress.close()
    found = suggest(rates, losses)
    if found == rates[0]:
        raise GateError("no rate made the loss fall; look at train.loss, train.optimizer and the data")
    if world.is_main:
        files.write_json(space.dir / "lr_find.json", {"suggestion": found, "rates": rates, "losses": losses})
        with mpl.rc_context(STYLE):  # type: ignore[arg-type]
            _picture(rates, losses, found).savefig(space.dir / "lr_find.png", dpi=120)
    say(f"lr-find: the loss falls fastest at {found:.2g}; try train.lr={found:.2g}")
    return RateTest(dir=space.dir, suggestion=found)


def _picture(rates: list[float], losses: list[float], found: float) -> Figure:
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.plot(rates, losses, linewidth=1.2)
    axis.axvline(found, color="tab:orange", linestyle="--", label=f"fastest at {found:.2g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel="loss of the batch", title="learning rate range test")
    axis.set_ylim(0, 1.5 * max(losses[: max(3, len(losses) // 4)]))
    axis.legend(frameon=False)
    return figure
