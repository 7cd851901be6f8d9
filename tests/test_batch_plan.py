"""Over any plan: each image once an epoch, in one order, with one weight, whoever holds it."""

from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pytest

from bench.faults import plan
from bench.faults.plan import PROPERTIES, Property
from bench.faults.plans import Plan, plans
from pipeline.data import batches
from pipeline.runtime.world import World
from pipeline.stages.update import update

CASES = 150
UNEVEN = Plan(examples=23, batch_size=11, size=2, played=1, parts=3, seed=5, step=9, eval_batch_size=7)


@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda holds: holds.__name__)
def test_over_any_plan(holds: Property) -> None:
    hypothesis.settings(max_examples=CASES, database=None, deadline=None, derandomize=True)(hypothesis.given(plans())(holds))()


def overlapping(count: int, rank: int, size: int) -> slice:
    return slice(count * rank // size, -(-count * (rank + 1) // size))


def padded(count: int, world: World, *, batch_size: int) -> Any:
    """As a sampler that fills the ragged tail up from the start."""
    for start in range(0, count, batch_size):
        yield (start + np.arange(batch_size)[batches.share(batch_size, world.rank, world.size)]) % count


def drawn_with_replacement(examples: int, seed: int, epoch: int) -> Any:
    return batches.random(seed, epoch, batches.ORDER).integers(0, examples, examples)


def with_a_position(draw: Callable[..., np.random.Generator]) -> Callable[..., np.random.Generator]:
    """Draws that go on from those before."""
    calls: list[int] = []

    def random(seed: int, position: int, purpose: int) -> np.random.Generator:
        calls.append(position)
        return draw(seed, len(calls), purpose)

    return random


def by_means(update: Callable[..., object]) -> Callable[..., None]:
    """The mean of means: each process divides by its own count."""

    def of_its_own(state: Any, batches: Any, recipe: Any, lr: float, world: World) -> None:
        unfair = recipe.batch_size / world.size / len(batches[0].labels)
        loss = recipe.loss
        object.__setattr__(recipe, "loss", lambda logits, targets: loss(logits, targets) * unfair)
        update(state, batches, recipe, lr, world)
        object.__setattr__(recipe, "loss", loss)

    return of_its_own


@pytest.mark.parametrize(
    ("place", "name", "wrong", "violated"),
    [
        (batches, "share", overlapping, plan.processes_share_a_batch_without_loss),
        (batches, "share", overlapping, plan.the_order_is_that_of_one_process),
        (batches, "share", overlapping, plan.every_image_weighs_one_in_the_batch),
        (batches, "eval_rows", padded, plan.evaluation_counts_every_image_once),
        (batches, "_order", drawn_with_replacement, plan.each_epoch_has_every_image_once),
        (batches, "random", with_a_position(batches.random), plan.going_on_at_any_step_is_going_through),
        (plan, "update", by_means(update), plan.every_image_weighs_one_in_the_batch),
        (plan, "update", by_means(update), plan.the_gradient_is_that_of_the_mean),
    ],
)
def test_a_plan_that_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, wrong: Any, violated: Property) -> None:
    violated(UNEVEN)
    monkeypatch.setattr(place, name, wrong)
    with pytest.raises(AssertionError):
        violated(UNEVEN)
