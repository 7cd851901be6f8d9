"""Which image is where in a training, and how much it weighs: properties over any plan, drawn by Hypothesis.

python -m bench.faults.plan [--cases N]   N plans for each property
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import hypothesis
import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional as F

from bench.faults.plans import CHANGES, CLASSES, One, Plan, at, held, images_of, noise, plans, processes, put_together, rows, train_batches
from bench.faults.report import report
from pipeline.config import TrainConfig
from pipeline.data import batches
from pipeline.data.batches import Images
from pipeline.learning.metrics import Tally
from pipeline.learning.state import TrainState
from pipeline.stages.recipe import Recipe
from pipeline.stages.update import update

CASES = 10_000


def each_epoch_has_every_image_once(plan: Plan) -> None:
    images, n = noise(plan), plan.examples
    epoch = plan.step % 10_000
    first = epoch * n // plan.batch_size
    last = -(-(epoch + 2) * n // plan.batch_size)
    order = np.concatenate([rows(plan, images, plan.worlds, plan.parts, step) for step in range(first, last)])
    order = order[epoch * n - first * plan.batch_size :]
    for k in range(2):
        np.testing.assert_array_equal(np.sort(order[k * n : (k + 1) * n]), np.arange(n))
    assert n < 20 or (order[:n] != order[n : 2 * n]).any(), "two epochs have one order"


def the_order_is_that_of_one_process(plan: Plan) -> None:
    images = noise(plan)
    alone = rows(plan, images, processes(1), 1, plan.step)
    for worlds, parts in ((plan.worlds, plan.parts), (plan.worlds, 1), (processes(1), plan.parts), (processes(plan.size), 1)):
        np.testing.assert_array_equal(rows(plan, images, worlds, parts, plan.step), alone)


def processes_share_a_batch_without_loss(plan: Plan) -> None:
    images = noise(plan)
    several = [train_batches(plan, images, world, parts=plan.parts) for world in plan.worlds]
    batch, mine = at(several, plan.step), held(several, plan.step)
    assert sum(map(len, mine)) == plan.batch_size, "rows are lost, or held twice"
    counts = np.array([[len(index[part]) for part in each.parts] for each, index in zip(batch, mine, strict=True)])
    assert counts.sum() == plan.batch_size, "the parts are not the whole"
    assert counts.min() > 0, "a process has nothing in a part"
    assert np.ptp(counts, axis=0).max() <= 1, "one process has more to do than another"
    expected = batches.global_index(plan.examples, plan.batch_size, plan.seed, plan.step)
    np.testing.assert_array_equal(put_together(batch, mine), expected)


def evaluation_counts_every_image_once(plan: Plan) -> None:
    worlds, images = plan.worlds, noise(plan, classes=plan.examples)  # a label is a row
    places = [np.concatenate(list(batches.eval_rows(plan.examples, world, batch_size=plan.eval_batch_size))) for world in worlds]
    np.testing.assert_array_equal(np.sort(np.concatenate(places)), np.arange(plan.examples))
    for world, mine in zip(worlds, places, strict=True):
        seen = list(batches.eval_batches(images, world, batch_size=plan.eval_batch_size))
        assert len(seen) == -(-plan.examples // plan.eval_batch_size) * plan.played, "a process misses a batch, where others meet"
        np.testing.assert_array_equal(torch.cat([batch.labels for batch in seen]), mine)


def going_on_at_any_step_is_going_through(plan: Plan) -> None:
    """Pixels, labels and targets, with all that is drawn; gone on with on one process where there were several."""
    images, first = noise(plan), max(0, plan.step - 3)
    through = [train_batches(plan, images, world, parts=plan.parts, **CHANGES).steps(first, plan.step + 2) for world in plan.worlds]
    whole = dict(enumerate(([batch for mine in each for batch in mine] for each in zip(*through, strict=True)), start=first))
    for step in (plan.step + 1, plan.step):  # what comes later is asked for first
        several = at([train_batches(plan, images, world, parts=plan.parts, **CHANGES) for world in plan.worlds], step)
        alone = at([train_batches(plan, images, processes(1)[0], parts=1, **CHANGES)], step)[0]
        for name in ("images", "labels", "targets"):
            before = put_together(whole[step], [getattr(batch, name) for batch in whole[step]])
            np.testing.assert_array_equal(put_together(several, [getattr(batch, name) for batch in several]), before)
            np.testing.assert_array_equal(getattr(alone, name), before)


def updated(plan: Plan, images: Images, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The gradient [parameters] that the processes agree on in one update: the mean over virtual ones, found from one step of plain SGD."""
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    recipe = Recipe(TrainConfig(), plan.batch_size, 2 * 10**6, 1.0, 1, loss, lambda moment: 1.0, lambda moment: None)
    gradients, counted = [], 0.0
    for world in plan.worlds:
        nn.utils.vector_to_parameters(before.clone(), model.parameters())
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        optimizer.param_groups[0]["factor"] = 1.0
        tallies = [Tally.zero(world.device) for _ in world.shards]
        state = TrainState(model, (optimizer,), GradScaler("cpu", enabled=False), tallies, step=plan.step)
        update(state, at([train_batches(plan, images, world, parts=plan.parts)], plan.step), recipe, 1.0, world)
        assert cast(One, world).exchanged == ([False] * (plan.parts - 1) + [True]) * plan.played, (
            "the gradient is to be exchanged with all parts in it"
        )
        gradients.append(before - nn.utils.parameters_to_vector(model.parameters()).detach())
        counted += sum(float(tally.sums[0]) for tally in state.tallies)
    assert counted == plan.batch_size, "the log counts other images than the batch has"
    return torch.stack(gradients).sum(0) / (plan.size * plan.played)


def every_image_weighs_one_in_the_batch(plan: Plan) -> None:
    """Image k is one pixel of its own, and its loss that pixel's weight: the gradient is how much each image counts."""
    images = images_of((np.eye(plan.examples, dtype=np.uint8) * 255)[:, None, None])
    model = nn.Sequential(nn.Flatten(), nn.Linear(plan.examples, 1, bias=False, dtype=torch.float64))
    nn.init.zeros_(cast(Tensor, model[1].weight))
    weights = updated(plan, images, model, lambda logits, _: logits[:, 0])
    index = batches.global_index(plan.examples, plan.batch_size, plan.seed, plan.step)
    np.testing.assert_allclose(weights, np.bincount(index, minlength=plan.examples) / plan.batch_size, rtol=1e-12, atol=0)


def the_gradient_is_that_of_the_mean(plan: Plan) -> None:
    images = noise(plan)
    torch.manual_seed(plan.seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()
    batch = at([train_batches(plan, images, processes(1)[0], parts=1)], plan.step)[0]
    mean = F.cross_entropy(model(batch.images), batch.labels)
    expected = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(mean, list(model.parameters()))])
    found = updated(plan, images, model, functools.partial(F.cross_entropy, reduction="none"))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-13)


Property = Callable[[Plan], None]
PROPERTIES: Sequence[Property] = (
    each_epoch_has_every_image_once,
    the_order_is_that_of_one_process,
    processes_share_a_batch_without_loss,
    evaluation_counts_every_image_once,
    going_on_at_any_step_is_going_through,
    every_image_weighs_one_in_the_batch,
    the_gradient_is_that_of_the_mean,
)


def campaign(holds: Property, cases: int) -> dict[str, Any]:
    """How many plans were drawn, and which of them violate the property."""
    drawn: set[Plan] = set()
    violations: dict[Plan, str] = {}

    @hypothesis.seed(0)
    @hypothesis.settings(max_examples=cases, database=None, deadline=None, phases=[hypothesis.Phase.generate])
    @hypothesis.given(plans())
    def one(plan: Plan) -> None:
        drawn.add(plan)
        try:
            holds(plan)
        except Exception as error:  # counted, so that the rest is still tried
            violations[plan] = f"{holds.__name__}: {plan}: {type(error).__name__}: {' '.join(str(error).split())}"

    began = time.monotonic()
    one()
    return {
        "property": holds.__name__.replace("_", " "),
        "cases": cases,
        "different": len(drawn),
        "violations": len(violations),
        "seconds": round(time.monotonic() - began, 1),
        "failures": list(violations.values()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=CASES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    return report("plan", [campaign(holds, options.cases) for holds in PROPERTIES], cases=options.cases)


if __name__ == "__main__":
    sys.exit(main())
